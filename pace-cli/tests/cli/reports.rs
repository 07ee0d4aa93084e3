//! `score` and `info`: what they report, in both formats.

use serde_json::Value;

use super::common::{arg, fixture, pace};
use super::{expected, ids, json, keys, list};

#[test]
fn score_gives_the_log_probabilities_of_transformers() {
    let case = &expected("gqa-tied").cases[2];
    let (dir, tokens) = (fixture("gqa-tied"), list(&case.prompt));
    let args =
        ["score", "-m", arg(&dir), "--tokens", &tokens, "--dtype", "f32", "--top", "7", "--format", "json"];
    let out = json(&pace(&args));
    assert_eq!(keys(&out), ["tokens", "logprobs", "next", "perplexity"]);
    assert_eq!(ids(&out["tokens"]), case.prompt);
    let logprobs: Vec<Option<f64>> = serde_json::from_value(out["logprobs"].clone()).unwrap();
    assert_eq!((logprobs.len(), logprobs[0]), (case.logprobs.len(), None));
    let given: Vec<(f64, f64)> =
        logprobs.iter().zip(&case.logprobs).filter_map(|(a, b)| Some(((*a)?, (*b)?))).collect();
    assert_eq!(given.len(), case.prompt.len() - 1);
    assert!(given.iter().all(|(a, b)| (a - b).abs() < 1e-3), "{given:?}");
    let mean = -given.iter().map(|(a, _)| a).sum::<f64>() / given.len() as f64;
    assert!((out["perplexity"].as_f64().unwrap() / mean.exp() - 1.0).abs() < 1e-9);
    let next = out["next"].as_array().unwrap();
    assert_eq!(next.len(), 7);
    for entry in next {
        assert_eq!(keys(entry), ["id", "logprob"]);
        let id = entry["id"].as_u64().unwrap() as usize;
        assert!((entry["logprob"].as_f64().unwrap() - case.next_logprobs[id]).abs() < 1e-3);
    }
    let best = case.next_logprobs.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    assert_eq!(next[0]["id"], best.0);
}

#[test]
fn score_reports_as_many_next_tokens_as_there_are() {
    let next = |top: &str| {
        let args = ["score", "-m", "random:tiny", "--tokens", "1,2", "--top", top, "--format", "json"];
        json(&pace(&args))["next"].as_array().unwrap().len()
    };
    assert_eq!((next("0"), next("3"), next("100000")), (0, 3, 259));
}

#[test]
fn one_token_has_no_log_probability() {
    let out = json(&pace(&["score", "-m", "random:tiny", "--tokens", "1", "--format", "json"]));
    assert_eq!((&out["logprobs"], &out["perplexity"]), (&Value::from(vec![Value::Null]), &Value::Null));
}

#[test]
fn score_reads_a_text_and_prints_its_pieces() {
    let dir = fixture("gqa-tied");
    let out = pace(&["score", "-m", arg(&dir), "--text", "the train"]);
    let text = out.text();
    for part in ["\"ain\"", "most likely next tokens", "perplexity"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn info_tells_the_shape_without_the_weights() {
    let out = json(&pace(&["info", "random:llama-1b", "--format", "json"]));
    let values = [
        ("architecture", Value::from("llama")),
        ("parameters", 1_235_814_400.into()),
        ("vocab_size", 128_256.into()),
        ("hidden", 2048.into()),
        ("layers", 16.into()),
        ("heads", 32.into()),
        ("kv_heads", 8.into()),
        ("head_dim", 64.into()),
        ("ffn", 8192.into()),
        ("tied_embeddings", true.into()),
        ("tokenizer", Value::Null),
        ("chat_template", false.into()),
    ];
    for (key, value) in values {
        assert_eq!(out[key], value, "{key}");
    }
    assert_eq!(out["memory"]["weights_bf16_bytes"].as_u64().unwrap() / 2 / 1_000_000, 1235);
}

#[test]
fn info_of_a_directory_and_of_a_file_agree() {
    let (dir, gguf) = (fixture("gqa-tied"), fixture("gguf-bf16").join("model.gguf"));
    let info = |model: &str| json(&pace(&["info", model, "--format", "json"]));
    let (mut one, mut other) = (info(arg(&dir)), info(arg(&gguf)));
    assert_eq!(one["formats"][0]["format"], "BF16");
    assert_eq!(one["chat_template"], true);
    // Names and the spelling of formats differ, and a converter keeps norms in F32.
    for out in [&mut one, &mut other] {
        let object = out.as_object_mut().unwrap();
        assert!(object.remove("model").is_some() && object.remove("formats").is_some());
    }
    assert_eq!(one, other);
}

#[test]
fn info_in_text_names_everything() {
    let dir = fixture("gqa-tied");
    let text = pace(&["info", arg(&dir)]).text().to_owned();
    for part in
        ["llama", "101.9 k", "293, tied", "BF16", "KV cache a token", "tokenizer", "chat template  yes"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}
