//! Tokenizers and templates that do not work.

use std::fs;

use serde_json::{Value, json};

use super::common::{Outcome, arg, copy, pace};

/// What becomes of a prompt with `text` as the tokenizer.
fn with_tokenizer(text: &str) -> Outcome {
    let dir = copy("gqa-tied");
    fs::write(dir.path().join("tokenizer.json"), text).unwrap();
    pace(&["generate", "-m", arg(dir.path()), "-p", "ab", "-n", "1"])
}

/// What becomes of a chat with `value` as `field` of the tokenizer's configuration.
fn with_tokenizer_config(field: &str, value: Value) -> Outcome {
    let dir = copy("gqa-tied");
    let path = dir.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config[field] = value;
    fs::write(path, config.to_string()).unwrap();
    pace(&["chat", "-m", arg(dir.path()), "Hello", "-n", "1"])
}

#[test]
fn a_merge_whose_result_has_no_id_is_named() {
    let model = json!({"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]});
    let out = with_tokenizer(&json!({"version": "1.0", "added_tokens": [], "model": model}).to_string());
    out.assert_refused(3, &["tokenizer.json", "model.merges", "`ab`"]);
}

#[test]
fn a_tokenizer_that_is_none_is_named() {
    for text in ["", "{", "[]", "{\"model\": 1}", "{\"version\": \"1.0\"}"] {
        with_tokenizer(text).assert_refused(3, &["tokenizer.json"]);
    }
}

#[test]
fn a_tokenizer_with_ids_beyond_the_vocabulary_is_refused() {
    let model = json!({"type": "BPE", "vocab": {"a": 0, "b": 100_000}, "merges": []});
    let out = with_tokenizer(&json!({"version": "1.0", "added_tokens": [], "model": model}).to_string());
    assert!([Some(2), Some(3)].contains(&out.code), "{out:?}");
    assert!(out.stderr.contains("100000") || out.stderr.contains("100001"), "{}", out.stderr);
}

#[test]
fn templates_that_fail_say_where() {
    with_tokenizer_config("chat_template", json!("{% for x in %}"))
        .assert_refused(3, &["chat template", "line 1"]);
    let refusal = "{{ raise_exception('only in pairs') }}";
    with_tokenizer_config("chat_template", json!(refusal))
        .assert_refused(3, &["chat template", "only in pairs"]);
    let endless = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    with_tokenizer_config("chat_template", json!(endless)).assert_refused(3, &["chat template"]);
}

#[test]
fn a_chat_without_a_template_is_refused() {
    with_tokenizer_config("chat_template", Value::Null).assert_refused(2, &["no chat template"]);
}
