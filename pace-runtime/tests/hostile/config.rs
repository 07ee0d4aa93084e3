//! `config.json` and `generation_config.json`.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::case::{Case, Stage};
use super::sample::{CONFIG, Entry, GENERATION, Sample};

pub(crate) fn cases() -> Vec<Case> {
    let files = containers(CONFIG, 4 << 20).into_iter().chain([(
        "missing",
        Sample::hf().without(CONFIG),
        "No such file",
    )]);
    let files = files.map(|(label, sample, what)| case(&format!("config: {label}"), sample, &[CONFIG, what]));
    let fields =
        [architecture(), sizes(), attention(), numbers(), rope(), scaling(), llama3(), unsupported()];
    let fields = fields.concat().into_iter().map(|(fields, field, what)| {
        let sample = Sample::hf().fields(CONFIG, fields.clone());
        case(&format!("config: {fields:.120}"), sample, &[CONFIG, field, what])
    });
    files.chain(fields).collect()
}

pub(crate) fn generation_cases() -> Vec<Case> {
    let files = containers(GENERATION, 1 << 20);
    let files = files
        .into_iter()
        .map(|(label, sample, _)| case(&format!("generation: {label}"), sample, &[GENERATION]));
    let fields = [
        (json!({"do_sample": 1}), "do_sample"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": 1e300}), "temperature"),
        (json!({"top_k": -1}), "top_k"),
        (json!({"top_k": 2.5}), "top_k"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 7}), "top_p"),
        (json!({"min_p": -0.1}), "min_p"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"max_new_tokens": 1e30}), "max_new_tokens"),
        (json!({"eos_token_id": "</s>"}), "eos_token_id"),
        (json!({"eos_token_id": [9, 1u64 << 32]}), "eos_token_id"),
        (json!({"bos_token_id": -2}), "bos_token_id"),
        (json!({"top_k": "\u{1b}[2J".repeat(5000)}), "top_k"),
    ];
    let fields = fields.into_iter().map(|(fields, field)| {
        let label = format!("generation: {fields:.80}");
        case(&label, Sample::hf().fields(GENERATION, fields), &[GENERATION, field])
    });
    files.chain(fields).collect()
}

fn case(label: &str, sample: Sample, words: &[&str]) -> Case {
    Case::new(label, Stage::Open, sample, words)
}

/// What can be wrong with a JSON file of at most `limit` bytes before its fields matter.
fn containers(name: &str, limit: usize) -> Vec<(&'static str, Sample, &'static str)> {
    let text = |text: &str| Sample::hf().text(name, text);
    let with = |entry| Sample::hf().with(name, entry);
    vec![
        ("empty", text(""), "not JSON"),
        ("open", text("{\"model_type\": \"llama\""), "not JSON"),
        ("a list", text("[1]"), "must be a JSON object"),
        ("a number", text("7"), "must be a JSON object"),
        ("NaN", text("{\"rope_theta\": NaN}"), "not JSON"),
        ("beyond f64", text("{\"rope_theta\": 1e999}"), "not JSON"),
        ("text behind", text("{} {}"), "not JSON"),
        ("nested", text(&format!("{{\"a\": {}", "[".repeat(60_000))), "not JSON"),
        ("nested deeper", text(&format!("{{\"a\": {}", "[".repeat(100_000))), "JSON values"),
        ("a million values", text(&format!("{{\"a\": [{}0]}}", "0,".repeat(limit / 2 - 20))), "JSON values"),
        (
            "a million objects",
            text(&format!("{{\"a\": [{}0]}}", "{},".repeat(limit / 3 - 20))),
            "JSON values",
        ),
        ("one long string", text(&format!("{{\"model_type\": \"{}", "x".repeat(limit - 40))), "not JSON"),
        ("too long", with(Entry::Sparse(b"{}".to_vec(), limit as u64 + 1)), "at most"),
        ("huge", with(Entry::Sparse(b"{}".to_vec(), 1 << 40)), "at most"),
        ("not UTF-8", Sample::hf().text(name, b"{\"model_type\": \"\xff\"}".as_slice()), "UTF-8"),
        ("a lone surrogate", text("{\"model_type\": \"\\ud800\"}"), "not JSON"),
        ("a directory", with(Entry::Directory), "is a directory"),
        ("a FIFO", with(Entry::Fifo), "regular file"),
        ("a device", with(Entry::Link(PathBuf::from("/dev/zero"))), "regular file"),
        ("a link to itself", with(Entry::Link(PathBuf::from(name))), "symbolic links"),
    ]
}

type Fields = Vec<(Value, &'static str, &'static str)>;

fn architecture() -> Fields {
    vec![
        (json!({"model_type": null}), "`model_type`", "missing"),
        (json!({"model_type": 7}), "`model_type`", "a string"),
        (json!({"model_type": ""}), "unknown architecture", "known: llama"),
        (json!({"model_type": "brontosaurus"}), "`brontosaurus`", "known: llama"),
        (json!({"model_type": "llama\u{1b}[31m"}), "unknown architecture", "known: llama"),
        (json!({"model_type": "x".repeat(1 << 20)}), "unknown architecture", "known: llama"),
        (json!({"eos_token_id": "</s>"}), "`eos_token_id`", "a token id"),
        (json!({"eos_token_id": [1, "2"]}), "`eos_token_id`", "a token id"),
        (json!({"eos_token_id": -5}), "`eos_token_id`", "a token id"),
        (json!({"eos_token_id": 1u64 << 32}), "`eos_token_id`", "a token id"),
    ]
}

fn sizes() -> Fields {
    vec![
        (json!({"hidden_size": null}), "`hidden_size`", "missing"),
        (json!({"hidden_size": 0}), "`hidden_size`", "from 1"),
        (json!({"hidden_size": -8}), "`hidden_size`", "whole number"),
        (json!({"hidden_size": "8"}), "`hidden_size`", "whole number"),
        (json!({"hidden_size": 8.5}), "`hidden_size`", "whole number"),
        (json!({"hidden_size": [8]}), "`hidden_size`", "whole number"),
        (json!({"hidden_size": 1e30}), "`hidden_size`", "whole number"),
        (json!({"hidden_size": 1 << 21}), "`hidden_size`", "to 1048576"),
        (json!({"hidden_size": 9, "head_dim": null}), "`hidden_size`", "multiple"),
        (json!({"num_hidden_layers": null}), "`num_hidden_layers`", "missing"),
        (json!({"num_hidden_layers": 0}), "`num_hidden_layers`", "from 1"),
        (json!({"num_hidden_layers": 1_000_000_000}), "`num_hidden_layers`", "to 4096"),
        (json!({"intermediate_size": null}), "`intermediate_size`", "missing"),
        (json!({"intermediate_size": 0}), "`intermediate_size`", "from 1"),
        (json!({"intermediate_size": 1u64 << 40}), "`intermediate_size`", "to 1048576"),
        (json!({"vocab_size": null}), "`vocab_size`", "missing"),
        (json!({"vocab_size": 0}), "`vocab_size`", "from 1"),
        (json!({"vocab_size": u64::MAX}), "`vocab_size`", "whole number"),
    ]
}

fn attention() -> Fields {
    vec![
        (json!({"num_attention_heads": null}), "`num_attention_heads`", "missing"),
        (json!({"num_attention_heads": 0}), "`num_attention_heads`", "from 1"),
        (json!({"num_attention_heads": true}), "`num_attention_heads`", "whole number"),
        (json!({"num_attention_heads": 1 << 17}), "`num_attention_heads`", "to 65536"),
        (json!({"num_attention_heads": 3, "head_dim": null}), "`hidden_size`", "multiple"),
        (json!({"num_key_value_heads": 0}), "`num_key_value_heads`", "from 1"),
        (json!({"num_key_value_heads": 4}), "`num_key_value_heads`", "divide"),
        (json!({"num_key_value_heads": -1}), "`num_key_value_heads`", "whole number"),
        (json!({"head_dim": 0}), "`head_dim`", "from 2"),
        (json!({"head_dim": 3}), "`head_dim`", "even"),
        (json!({"head_dim": 2048}), "`head_dim`", "to 1024"),
        (json!({"attention_bias": "yes"}), "`attention_bias`", "true or false"),
        (json!({"mlp_bias": 1}), "`mlp_bias`", "true or false"),
        (json!({"tie_word_embeddings": "no"}), "`tie_word_embeddings`", "true or false"),
    ]
}

fn numbers() -> Fields {
    vec![
        (json!({"max_position_embeddings": null}), "`max_position_embeddings`", "missing"),
        (json!({"max_position_embeddings": 0}), "`max_position_embeddings`", "from 1"),
        (json!({"max_position_embeddings": "64"}), "`max_position_embeddings`", "whole number"),
        (json!({"max_position_embeddings": (1u64 << 31) + 1}), "`max_position_embeddings`", "to 2147483648"),
        (json!({"max_position_embeddings": 1u64 << 40}), "`max_position_embeddings`", "to 2147483648"),
        (json!({"rms_norm_eps": 0}), "`rms_norm_eps`", "above 0"),
        (json!({"rms_norm_eps": -1e-5}), "`rms_norm_eps`", "above 0"),
        (json!({"rms_norm_eps": 1e-300}), "`rms_norm_eps`", "above 0"),
        (json!({"rms_norm_eps": 1e300}), "`rms_norm_eps`", "finite"),
        (json!({"rms_norm_eps": "1e-5"}), "`rms_norm_eps`", "a finite number"),
        (json!({"hidden_act": "swoosh"}), "`hidden_act`", "silu"),
        (json!({"hidden_act": 3}), "`hidden_act`", "a string"),
        (json!({"hidden_act": "\u{1b}]0;title\u{7}"}), "`hidden_act`", "silu"),
    ]
}

fn rope() -> Fields {
    let parameters = |fields: Value| json!({"rope_parameters": fields});
    vec![
        (json!({"rope_theta": 0}), "`rope_theta`", "at least 1"),
        (json!({"rope_theta": -1e4}), "`rope_theta`", "at least 1"),
        (json!({"rope_theta": "1e4"}), "`rope_theta`", "a finite number"),
        (parameters(json!({"rope_theta": 0.5})), "`rope_parameters.rope_theta`", "at least 1"),
        (parameters(json!("linear")), "`rope_parameters`", "an object"),
        (parameters(json!([])), "`rope_parameters`", "an object"),
        (parameters(json!({"rope_type": "spiral"})), "`rope_parameters.rope_type`", "spiral"),
        (parameters(json!({"rope_type": 7})), "`rope_parameters.rope_type`", "a string"),
        (parameters(json!({"type": "spiral"})), "`rope_parameters.type`", "spiral"),
        (json!({"rope_scaling": 2.0}), "`rope_scaling`", "an object"),
        (json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor`", "must be 1"),
        (
            parameters(json!({"partial_rotary_factor": "1"})),
            "`rope_parameters.partial_rotary_factor`",
            "finite",
        ),
    ]
}

fn scaling() -> Fields {
    let scaling = |fields: Value| json!({"rope_scaling": fields});
    vec![
        (scaling(json!({"type": "linear"})), "`rope_scaling.factor`", "missing"),
        (scaling(json!({"rope_type": "linear", "factor": 0.5})), "`rope_scaling.factor`", "at least 1"),
        (scaling(json!({"rope_type": "linear", "factor": -2})), "`rope_scaling.factor`", "at least 1"),
        (scaling(json!({"rope_type": "linear", "factor": "2"})), "`rope_scaling.factor`", "a finite number"),
        (scaling(json!({"rope_type": "linear", "factor": 1e300})), "`rope_scaling.factor`", "smaller"),
        (scaling(json!({"type": "dynamic"})), "`rope_scaling.factor`", "missing"),
        (scaling(json!({"type": "dynamic", "factor": 0})), "`rope_scaling.factor`", "at least 1"),
        (scaling(json!({"type": "dynamic", "factor": 1u64 << 40})), "`rope_scaling.factor`", "smaller"),
        (
            json!({"rope_scaling": {"type": "dynamic", "factor": 2}, "head_dim": 2}),
            "`head_dim`",
            "at least 4",
        ),
    ]
}

fn llama3() -> Fields {
    let with = |change: Value| {
        let mut fields = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
        fields.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        json!({"rope_scaling": fields})
    };
    const ORIGINAL: &str = "`rope_scaling.original_max_position_embeddings`";
    vec![
        (with(json!({"factor": null})), "`rope_scaling.factor`", "missing"),
        (with(json!({"factor": 0.1})), "`rope_scaling.factor`", "at least 1"),
        (with(json!({"low_freq_factor": null})), "`rope_scaling.low_freq_factor`", "missing"),
        (with(json!({"low_freq_factor": 0})), "`rope_scaling.low_freq_factor`", "above 0"),
        (with(json!({"high_freq_factor": null})), "`rope_scaling.high_freq_factor`", "missing"),
        (with(json!({"high_freq_factor": 1.0})), "`rope_scaling.high_freq_factor`", "above low_freq_factor"),
        (with(json!({"original_max_position_embeddings": 0})), ORIGINAL, "from 1"),
        (with(json!({"original_max_position_embeddings": 1u64 << 40})), ORIGINAL, "to 2147483648"),
    ]
}

/// What would change the computation and is not known.
fn unsupported() -> Fields {
    vec![
        (json!({"quantization_config": {"bits": 4}}), "`quantization_config.quant_method`", "missing"),
        (json!({"quantization_config": {"quant_method": "bitsandbytes"}}), "quant_method`", "not supported"),
        (json!({"quantization_config": {"quant_method": "gptq", "bits": 3}}), ".bits`", "4 or 8"),
        (json!({"quantization_config": {"quant_method": "awq", "bits": 4}}), ".group_size`", "missing"),
        (
            json!({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 1u64 << 40}}),
            ".group_size`",
            "whole number",
        ),
        (
            json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}),
            "`quantization_config`",
            "the files do not hold",
        ),
        (json!({"sliding_window": 4096}), "`sliding_window`", "not supported"),
        (json!({"use_sliding_window": "no"}), "`use_sliding_window`", "true or false"),
    ]
}
