//! Directories and configurations that are none, or contradict themselves.

use std::fs;

use serde_json::{Value, json};

use super::common::{Outcome, arg, copy, pace};
use super::generate;

/// What becomes of `gqa-tied` with `fields` in its `config.json` (`null` removes one).
fn with_config(fields: Value) -> Outcome {
    let dir = copy("gqa-tied");
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    fs::write(&path, config.to_string()).unwrap();
    generate(dir.path())
}

#[test]
fn a_path_without_a_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("gone");
    generate(&missing).assert_refused(3, &[arg(&missing), "No such file"]);
    generate(dir.path()).assert_refused(3, &["config.json", "No such file"]);
    let other = dir.path().join("model.bin");
    fs::write(&other, "no model").unwrap();
    generate(&other).assert_refused(3, &["model.bin", "config.json", ".gguf", "random:NAME"]);
    pace(&["info", arg(&missing)]).assert_refused(3, &[arg(&missing)]);
}

#[test]
fn a_message_says_each_thing_once() {
    let dir = tempfile::tempdir().unwrap();
    let stderr = generate(&dir.path().join("gone")).stderr;
    assert_eq!(stderr.matches("No such file").count(), 1, "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn a_configuration_that_is_no_json_object_is_refused() {
    for (text, what) in
        [("", "not JSON"), ("{\"model_type\": ", "not JSON"), ("[1]", "must be a JSON object")]
    {
        let dir = copy("gqa-tied");
        fs::write(dir.path().join("config.json"), text).unwrap();
        generate(dir.path()).assert_refused(3, &["config.json", what]);
    }
}

#[test]
fn an_unknown_architecture_comes_with_the_known_ones() {
    let words = ["config.json", "unknown architecture `brontosaurus`", "known: llama"];
    with_config(json!({"model_type": "brontosaurus"})).assert_refused(3, &words);
    with_config(json!({"model_type": null, "architectures": null}))
        .assert_refused(3, &["config.json", "model_type"]);
}

#[test]
fn contradictions_and_absurd_sizes_are_named() {
    for (fields, words) in [
        (json!({"num_key_value_heads": 4}), ["num_key_value_heads", "divide"]),
        (
            json!({"head_dim": null, "num_attention_heads": 7, "num_key_value_heads": 7}),
            ["hidden_size", "multiple"],
        ),
        (json!({"head_dim": 9}), ["head_dim", "even"]),
        (json!({"hidden_size": 0}), ["hidden_size", "from 1"]),
        (json!({"hidden_size": -60}), ["hidden_size", "whole number"]),
        (json!({"hidden_size": "60"}), ["hidden_size", "whole number"]),
        (json!({"num_hidden_layers": 1_000_000_000}), ["num_hidden_layers", "to 4096"]),
        (json!({"vocab_size": u64::MAX}), ["vocab_size", "whole number"]),
        (json!({"max_position_embeddings": null}), ["max_position_embeddings", "missing"]),
        (json!({"rms_norm_eps": -1.0}), ["rms_norm_eps", "above 0"]),
        (json!({"hidden_act": "swoosh"}), ["hidden_act", "silu"]),
        (json!({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}), ["rope_type", "spiral"]),
        (
            json!({"quantization_config": {"quant_method": "bitsandbytes"}}),
            ["quantization_config.quant_method", "not supported"],
        ),
    ] {
        let out = with_config(fields);
        out.assert_refused(3, &["config.json", words[0], words[1]]);
    }
}

#[test]
fn a_configuration_that_contradicts_the_weights_names_the_tensor() {
    for (fields, tensor) in [
        (json!({"vocab_size": 400}), "model.embed_tokens.weight"),
        (json!({"num_hidden_layers": 4}), "model.layers.3."),
        (json!({"intermediate_size": 128}), "mlp."),
        (json!({"head_dim": 12}), "self_attn."),
        (json!({"attention_bias": true}), ".bias"),
        (json!({"tie_word_embeddings": false}), "lm_head.weight"),
    ] {
        let what = fields.to_string();
        let out = with_config(fields);
        out.assert_refused(3, &["model.safetensors", tensor]);
        assert!(out.stderr.contains("missing") || out.stderr.contains("shape"), "{what}: {}", out.stderr);
    }
}

#[test]
fn a_generation_config_that_makes_no_sense_is_refused() {
    for (text, words) in [
        ("{\"temperature\": -1}", &["temperature", "-1"][..]),
        ("{\"top_p\": 7}", &["top_p", "7"]),
        ("{\"top_k\": \"many\"}", &["top_k"]),
        ("{\"eos_token_id\": \"</s>\"}", &["eos_token_id"]),
        ("{\"do_sample\": ", &[]),
        ("[]", &["object"]),
    ] {
        let dir = copy("gqa-tied");
        fs::write(dir.path().join("generation_config.json"), text).unwrap();
        generate(dir.path()).assert_refused(3, &[&["generation_config.json"], words].concat());
    }
}
