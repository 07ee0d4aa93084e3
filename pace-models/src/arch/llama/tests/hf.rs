use serde_json::{Value, json};

use super::super::*;
use crate::{RopeScaling, RopeSpec};

/// A small configuration with `changes` over it; a change to `"absent"` removes the field.
fn config(changes: &Value) -> Value {
    let mut config = json!({
        "model_type": "llama",
        "vocab_size": 99,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 100,
        "max_position_embeddings": 2048,
    });
    let fields = config.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        if value == "absent" {
            fields.remove(name);
        } else {
            fields.insert(name.clone(), value.clone());
        }
    }
    config
}

fn spec(changes: &Value) -> Result<DecoderSpec, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config(changes).to_string()).unwrap();
    let config = HfConfig::read(dir.path())?;
    Architecture::from_hf(&config)?.spec_from_hf(&config)
}

#[test]
fn defaults_are_those_of_transformers() {
    let expected = DecoderSpec {
        vocab_size: 99,
        hidden: 64,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: 4,
        head_dim: 16,
        ffn: 100,
        max_positions: 2048,
        norm_eps: 1e-6,
        activation: Activation::Silu,
        qkv_bias: false,
        out_bias: false,
        mlp_bias: false,
        tied_embeddings: false,
        rope: RopeSpec { theta: 10_000.0, scaling: RopeScaling::Default },
    };
    assert_eq!(spec(&json!({})).unwrap(), expected);
    let nulls = json!({
        "head_dim": null, "num_key_value_heads": null, "rope_scaling": null, "rope_parameters": null,
        "rope_theta": null, "attention_bias": null, "mlp_bias": null, "sliding_window": null,
        "quantization_config": null, "hidden_act": null, "rms_norm_eps": null, "tie_word_embeddings": null,
    });
    assert_eq!(spec(&nulls).unwrap(), expected);
    let ignored =
        json!({"pretraining_tp": 2, "sliding_window": 4, "use_sliding_window": false, "extra": [1]});
    assert_eq!(spec(&ignored).unwrap(), expected);
}

#[test]
fn every_field_is_read() {
    let changes = json!({
        "hidden_size": 60, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 10,
        "rms_norm_eps": 1e-5, "hidden_act": "gelu_pytorch_tanh", "attention_bias": true, "mlp_bias": true,
        "tie_word_embeddings": true, "rope_theta": 500000,
    });
    let got = spec(&changes).unwrap();
    assert_eq!((got.hidden, got.n_heads, got.n_kv_heads, got.head_dim), (60, 8, 2, 10));
    assert_eq!((got.norm_eps, got.activation), (1e-5, Activation::GeluTanh));
    assert!(got.qkv_bias && got.out_bias && got.mlp_bias && got.tied_embeddings);
    assert_eq!(got.rope, RopeSpec { theta: 500_000.0, scaling: RopeScaling::Default });
    assert_eq!(spec(&json!({"num_key_value_heads": 1})).unwrap().n_kv_heads, 1);
}

#[test]
fn rope_is_read_as_old_and_new_releases_write_it() {
    let llama3 = |original_max| RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max,
    };
    let blend =
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    let with = |section: &Value, name: &str, value: Value| {
        let mut section = section.clone();
        section[name] = value;
        section
    };
    let original = "original_max_position_embeddings";
    let linear = json!({"rope_type": "linear", "factor": 2.5});
    let cases = [
        (json!({"rope_scaling": {}}), 1e4, RopeScaling::Default, 2048),
        (json!({"rope_scaling": {"type": "default"}}), 1e4, RopeScaling::Default, 2048),
        (json!({"rope_scaling": {"factor": 2}}), 1e4, RopeScaling::Default, 2048),
        (json!({"rope_scaling": linear, "rope_theta": 7.0}), 7.0, RopeScaling::Linear { factor: 2.5 }, 5120),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2}}),
            1e4,
            RopeScaling::Linear { factor: 2.0 },
            4096,
        ),
        (
            json!({"rope_scaling": {"type": "llama3", "rope_type": "linear", "factor": 2}}),
            1e4,
            RopeScaling::Linear { factor: 2.0 },
            4096,
        ),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}, "rope_theta": 6.0}),
            5.0,
            RopeScaling::Default,
            2048,
        ),
        (
            json!({"rope_parameters": {"rope_theta": 5.0}, "rope_scaling": linear, "rope_theta": 6.0}),
            6.0,
            RopeScaling::Linear { factor: 2.5 },
            5120,
        ),
        (
            json!({"rope_scaling": {}, "rope_parameters": linear}),
            1e4,
            RopeScaling::Linear { factor: 2.5 },
            5120,
        ),
        // `dynamic` starts at the trained length, whatever else is said.
        (
            json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, original: 512}}),
            1e4,
            RopeScaling::Dynamic { factor: 2.0, original_max: 2048 },
            4096,
        ),
        (json!({"rope_scaling": blend}), 1e4, llama3(2048), 2048),
        (json!({"rope_scaling": with(&blend, original, json!(512))}), 1e4, llama3(512), 2048),
        (json!({"rope_scaling": with(&blend, original, json!(512)), original: 64}), 1e4, llama3(64), 2048),
        (json!({"rope_parameters": with(&blend, "rope_theta", json!(5e5))}), 5e5, llama3(2048), 2048),
    ];
    for (changes, theta, scaling, max_positions) in cases {
        let got = spec(&changes).unwrap_or_else(|e| panic!("{changes}: {e}"));
        assert_eq!(got.rope, RopeSpec { theta, scaling }, "{changes}");
        assert_eq!(got.max_positions, max_positions, "{changes}");
    }
}

#[test]
fn other_architectures_are_refused_by_name() {
    let message = spec(&json!({"model_type": "mamba"})).unwrap_err().to_string();
    assert!(message.ends_with("config.json: unknown architecture `mamba`; known: llama"), "{message}");
    for (value, expected) in
        [(json!("absent"), "is missing"), (json!(null), "is missing"), (json!(3), "a string")]
    {
        let message = spec(&json!({"model_type": value})).unwrap_err().to_string();
        assert!(message.contains("field `model_type`: ") && message.contains(expected), "{message}");
    }
}

fn assert_refused(cases: &[(Value, &str)]) {
    for (changes, expected) in cases {
        let message = spec(changes).expect_err(&changes.to_string()).to_string();
        assert!(message.contains("config.json: field `"), "{changes}: {message}");
        assert!(message.contains(expected), "{changes}: {message}");
    }
}

#[test]
fn sizes_that_are_wrong_or_contradict_each_other() {
    let required = [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    ];
    for name in required {
        for bad in
            [json!("absent"), json!(null), json!(0), json!(-1), json!(1.5), json!("x"), json!(u64::MAX)]
        {
            assert_refused(&[(json!({name: bad}), &format!("field `{name}`: "))]);
        }
    }
    assert_refused(&[
        (json!({"vocab_size": (1 << 24) + 1}), "`vocab_size`: must be a whole number from 1 to 16777216"),
        (json!({"hidden_size": 1 << 21}), "`hidden_size`: must be a whole number from 1 to 1048576"),
        (json!({"hidden_size": 66}), "`hidden_size`: must be a multiple of the 4 attention heads"),
        (json!({"hidden_size": 3}), "`hidden_size`: must be a multiple"),
        (json!({"hidden_size": 4}), "`head_dim`: must be even and from 2 to 1024, but is 1"),
        (json!({"hidden_size": 60}), "`head_dim`: must be even and from 2 to 1024, but is 15"),
        (json!({"hidden_size": 8192}), "`head_dim`: must be even and from 2 to 1024, but is 2048"),
        (json!({"num_hidden_layers": 4097}), "`num_hidden_layers`: must be a whole number from 1 to 4096"),
        (json!({"num_attention_heads": 1 << 17}), "`num_attention_heads`: must be"),
        (json!({"num_key_value_heads": 0}), "`num_key_value_heads`: must be a whole number from 1"),
        (
            json!({"num_key_value_heads": 3}),
            "`num_key_value_heads`: must divide the number of attention heads, 4",
        ),
        (json!({"num_key_value_heads": 8}), "`num_key_value_heads`: must divide"),
        (json!({"head_dim": 0}), "`head_dim`: must be a whole number from 2 to 1024"),
        (json!({"head_dim": 7}), "`head_dim`: must be even"),
        (json!({"head_dim": 1026}), "`head_dim`: must be a whole number from 2 to 1024"),
        (json!({"intermediate_size": 1 << 21}), "`intermediate_size`: must be"),
        (json!({"max_position_embeddings": (1u64 << 31) + 1}), "`max_position_embeddings`: must be"),
        (json!({"rms_norm_eps": 0}), "`rms_norm_eps`: must be above 0"),
        (json!({"rms_norm_eps": -1e-6}), "`rms_norm_eps`: must be above 0"),
        (json!({"rms_norm_eps": 1e-60}), "`rms_norm_eps`: must be above 0 and finite in f32"),
        (json!({"rms_norm_eps": 1e60}), "`rms_norm_eps`: must be above 0 and finite in f32"),
        (json!({"rms_norm_eps": "1e-6"}), "`rms_norm_eps`: must be a finite number, but is \"1e-6\""),
    ]);
}

#[test]
fn switches_that_are_wrong_or_not_supported() {
    assert_refused(&[
        (json!({"hidden_act": "quick_gelu"}), "`hidden_act`: `quick_gelu` is not supported; supported: silu"),
        (json!({"hidden_act": 1}), "`hidden_act`: must be a string"),
        (json!({"attention_bias": "yes"}), "`attention_bias`: must be true or false"),
        (json!({"mlp_bias": 1}), "`mlp_bias`: must be true or false"),
        (json!({"tie_word_embeddings": 0}), "`tie_word_embeddings`: must be true or false"),
        (json!({"sliding_window": 4096}), "`sliding_window`: must be absent or null"),
        (
            json!({"sliding_window": 4096, "use_sliding_window": true}),
            "`sliding_window`: must be absent or null",
        ),
        (json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor`: must be 1"),
        (
            json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
            "`rope_parameters.partial_rotary_factor`: must",
        ),
    ]);
}

#[test]
fn rope_that_is_wrong_or_not_supported() {
    let scaling = |section: Value| json!({"rope_scaling": section});
    let llama3 = |name: &str, value: Value| {
        let mut section = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        });
        section[name] = value;
        json!({"rope_parameters": section})
    };
    let supported = "is not supported; supported: default, linear, dynamic, llama3";
    let named = |field: &str, kind: &str| format!("`{field}`: `{kind}` {supported}");
    assert_refused(&[
        (scaling(json!([])), "`rope_scaling`: must be an object, but is an array"),
        (scaling(json!("linear")), "`rope_scaling`: must be an object"),
        (json!({"rope_parameters": 1}), "`rope_parameters`: must be an object"),
        (scaling(json!({"rope_type": "yarn", "factor": 4.0})), &named("rope_scaling.rope_type", "yarn")),
        (scaling(json!({"type": "longrope"})), &named("rope_scaling.type", "longrope")),
        (json!({"rope_parameters": {"rope_type": "mrope"}}), &named("rope_parameters.rope_type", "mrope")),
        (scaling(json!({"rope_type": 3})), "`rope_scaling.rope_type`: must be a string"),
        (scaling(json!({"rope_type": "linear"})), "`rope_scaling.factor`: is missing"),
        (
            scaling(json!({"rope_type": "linear", "factor": 0.5})),
            "`rope_scaling.factor`: must be a finite number of",
        ),
        (
            scaling(json!({"rope_type": "linear", "factor": "2"})),
            "`rope_scaling.factor`: must be a finite number, but",
        ),
        (scaling(json!({"rope_type": "linear", "factor": 1e300})), "`rope_scaling.factor`: "),
        (scaling(json!({"rope_type": "linear", "factor": 2e6})), "makes 2048 positions more than 2147483648"),
        (scaling(json!({"rope_type": "dynamic"})), "`rope_scaling.factor`: is missing"),
        (
            scaling(json!({"rope_type": "dynamic", "factor": -1})),
            "`rope_scaling.factor`: must be a finite number of",
        ),
        (
            json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2}, "head_dim": 2}),
            "`head_dim`: must be at least 4",
        ),
        (json!({"rope_theta": 0}), "`rope_theta`: must be a finite number of at least 1, but is 0"),
        (json!({"rope_theta": -5.0}), "`rope_theta`: must be a finite number of at least 1"),
        (json!({"rope_theta": "1e4"}), "`rope_theta`: must be a finite number"),
        (
            json!({"rope_parameters": {"rope_theta": 0.5}}),
            "`rope_parameters.rope_theta`: must be a finite number of",
        ),
        (llama3("factor", json!(null)), "`rope_parameters.factor`: is missing"),
        (llama3("factor", json!(0)), "`rope_parameters.factor`: must be a finite number of at least 1"),
        (llama3("low_freq_factor", json!(null)), "`rope_parameters.low_freq_factor`: is missing"),
        (llama3("low_freq_factor", json!(0)), "`rope_parameters.low_freq_factor`: must be above 0"),
        (llama3("high_freq_factor", json!(null)), "`rope_parameters.high_freq_factor`: is missing"),
        (
            llama3("high_freq_factor", json!(1.0)),
            "`rope_parameters.high_freq_factor`: must be above low_freq_factor",
        ),
        (
            llama3("original_max_position_embeddings", json!(0)),
            "`rope_parameters.original_max_position_embeddings`: must be a whole number from 1",
        ),
    ]);
}
