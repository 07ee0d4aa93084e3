//! How long an answer becomes and why it ends: length, context, end-of-sequence tokens, stop texts.

use serde_json::Value;

use super::common::{arg, copy, fixture, pace};
use super::{expected, ids, json, list};

/// The JSON object of greedy `generate` in f32 on `model`.
fn generate(model: &str, args: &[&str]) -> Value {
    let head = ["generate", "-m", model, "--dtype", "f32", "--temperature", "0", "--format", "json"];
    json(&pace(&[&head, args].concat()))
}

#[test]
fn no_new_tokens_fill_the_cache_and_nothing_else() {
    let out = generate("random:tiny", &["--prompt-tokens", "1,2,3", "--max-new-tokens", "0"]);
    assert!(ids(&out["tokens"]).is_empty());
    assert_eq!((&out["text"], &out["finish_reason"]), (&Value::from(""), &Value::from("length")));
    assert_eq!((&out["prefill_steps"], &out["timings"]["predicted_n"]), (&Value::from(1), &Value::from(0)));
}

#[test]
fn an_answer_ends_with_the_context() {
    let out = generate("random:tiny", &["--prompt-tokens", "5,6,7,8", "-n", "100000"]);
    assert_eq!(ids(&out["tokens"]).len(), 512 - 4, "the context of random:tiny holds 512 tokens");
    assert_eq!(out["finish_reason"], "length");
}

#[test]
fn a_prompt_may_fill_the_context() {
    let prompt = list(&vec![7; 512]);
    let out = generate("random:tiny", &["--prompt-tokens", &prompt, "-n", "0"]);
    assert_eq!(out["timings"]["prompt_n"], 512);
}

#[test]
fn ctx_size_only_adds_room() {
    let rows = |args: &[&str]| {
        let args = [&["--kv-cache", "static", "--prompt-tokens", "1,2,3", "-n", "4"], args].concat();
        generate("random:tiny", &args)["kv_cache"]["capacity_rows"].as_u64().unwrap()
    };
    let needed = rows(&[]);
    assert!((7..512).contains(&needed), "{needed}");
    assert_eq!(rows(&["--ctx-size", "2"]), needed);
    assert!(rows(&["--ctx-size", "400"]) >= 400);
    assert!(rows(&["--ctx-size", "512"]) >= 512);
}

#[test]
fn end_tokens_of_all_files_count_unless_ignored() {
    let case = &expected("gqa-tied").cases[1];
    let dir = copy("gqa-tied");
    let eos = case.greedy[5];
    let config = format!("{{\"eos_token_id\": [{eos}, 1,],}}");
    std::fs::write(dir.path().join("generation_config.json"), config).unwrap();
    let prompt = list(&case.prompt);
    let args = ["--prompt-tokens", &prompt, "-n", "32"];
    let out = generate(arg(dir.path()), &args);
    assert_eq!(ids(&out["tokens"]), case.greedy[..6], "up to and with the end token");
    assert_eq!(out["finish_reason"], "stop");
    let out = generate(arg(dir.path()), &[&args[..], &["--ignore-eos"]].concat());
    assert_eq!(ids(&out["tokens"]), case.greedy);
    assert_eq!(out["finish_reason"], "length");
}

#[test]
fn stop_texts_end_the_answer_and_are_cut_off() {
    let case = &expected("gqa-tied").cases[2];
    let (dir, prompt) = (fixture("gqa-tied"), list(&case.prompt));
    let args = ["--prompt-tokens", &prompt, "-n", "32", "--ignore-eos"];
    let whole = generate(arg(&dir), &args);
    let text = whole["text"].as_str().unwrap();
    assert_eq!(whole["finish_reason"], "length");
    let stop = plain_run(text, 3);
    let end = text.find(&stop).unwrap();
    assert!(end > 0, "{text:?} begins with the only stop text there is");
    let out = generate(arg(&dir), &[&args[..], &["--stop", "not in it", "--stop", &stop]].concat());
    assert_eq!(out["text"], text[..end]);
    assert_eq!(out["finish_reason"], "stop");
    let made = ids(&out["tokens"]);
    assert!(made.len() < 32 && ids(&whole["tokens"]).starts_with(&made));
    let streamed = ["generate", "-m", arg(&dir), "--dtype", "f32", "--temperature", "0", "--stop", &stop];
    let streamed = pace(&[&streamed, &args[..]].concat());
    assert_eq!(streamed.text(), format!("{}\n", &text[..end]));
}

/// The first `n` whole characters in a row that come after the beginning of `text`.
fn plain_run(text: &str, n: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    let runs = chars.windows(n).skip(1);
    let mut plain = runs.filter(|run| !run.contains(&char::REPLACEMENT_CHARACTER));
    plain.next().expect("whole characters in a row").iter().collect()
}
