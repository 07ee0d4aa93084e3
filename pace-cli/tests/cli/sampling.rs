//! The flags that choose tokens: seeds, greedy limits, the model's own defaults.

use serde_json::Value;

use super::common::{arg, copy, pace};
use super::{ids, json};

fn generate(model: &str, args: &[&str]) -> Value {
    let head = ["generate", "-m", model, "--prompt-tokens", "3,1,4,1,5", "-n", "24", "--ignore-eos"];
    json(&pace(&[&head, args, &["--format", "json"]].concat()))
}

fn tokens(args: &[&str]) -> Vec<u32> {
    ids(&generate("random:tiny", args)["tokens"])
}

#[test]
fn a_seed_fixes_the_text() {
    let hot = |seed: &str| tokens(&["--temperature", "1.5", "--seed", seed]);
    assert_eq!(hot("5"), hot("5"));
    assert_ne!(hot("5"), hot("6"));
}

#[test]
fn the_seed_of_a_free_run_is_told_and_repeats_it() {
    let free = generate("random:tiny", &["--temperature", "1.5"]);
    let seed = free["seed"].as_u64().unwrap().to_string();
    assert_eq!(ids(&free["tokens"]), tokens(&["--temperature", "1.5", "--seed", &seed]));
}

#[test]
fn limits_that_leave_one_token_are_greedy() {
    let greedy = tokens(&["--temperature", "0"]);
    assert_eq!(tokens(&[]), greedy, "without a flag");
    assert_eq!(tokens(&["--temperature", "0.000001"]), greedy);
    assert_eq!(tokens(&["--temperature", "2", "--top-k", "1"]), greedy);
    assert_eq!(tokens(&["--temperature", "2", "--min-p", "1"]), greedy);
    assert_eq!(tokens(&["--top-p", "0.0001"]), greedy);
}

#[test]
fn penalties_keep_tokens_from_coming_back() {
    let repeats = |ids: &[u32]| ids.len() - ids.iter().collect::<std::collections::HashSet<_>>().len();
    assert!(repeats(&tokens(&[])) > 0, "random weights repeat themselves");
    assert_eq!(repeats(&tokens(&["--presence-penalty", "1000"])), 0);
    assert_eq!(repeats(&tokens(&["--frequency-penalty", "1000"])), 0);
    assert_ne!(tokens(&["--repetition-penalty", "5"]), tokens(&[]));
    assert_eq!(tokens(&["--frequency-penalty=0", "--presence-penalty=0"]), tokens(&[]));
}

#[test]
fn the_models_own_defaults_sample_and_flags_win() {
    let dir = copy("gqa-tied");
    let greedy = generate(arg(dir.path()), &[]);
    let config = r#"{"do_sample": true, "temperature": 1.8, "top_k": 200,}"#;
    std::fs::write(dir.path().join("generation_config.json"), config).unwrap();
    let run = |args: &[&str]| ids(&generate(arg(dir.path()), args)["tokens"]);
    assert_ne!(run(&["--seed", "1"]), run(&["--seed", "2"]), "the file asks for sampling");
    assert_eq!(run(&["--seed", "1"]), run(&["--seed", "1"]));
    assert_eq!(run(&["--temperature", "0"]), ids(&greedy["tokens"]));
}
