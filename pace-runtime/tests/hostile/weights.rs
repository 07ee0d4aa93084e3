//! Tensors that do not fit the configuration, or hold numbers that no model has.

use super::case::{Case, Stage};
use super::sample::{CONFIG, GgufContents, Sample, Tensor, WEIGHTS, gguf_embedding, tensors};

const EMBEDDING: &str = "model.embed_tokens.weight";
const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const NORM: &str = "model.norm.weight";

pub(crate) fn cases() -> Vec<Case> {
    [absent(), misshapen(), contradictions(), types(), numbers(), zeros(), gguf()]
        .into_iter()
        .flatten()
        .collect()
}

/// Models that are whole but for numbers that no model has.
pub(crate) fn damaged() -> Vec<(String, Sample)> {
    [numbers(), zeros(), gguf()].into_iter().flatten().map(Case::into_sample).collect()
}

/// A checkpoint in which `change` was made to the tensor `name`.
fn changed(name: &str, change: impl FnOnce(&mut Tensor)) -> Sample {
    Sample::with_tensors(|tensors| change(tensors.iter_mut().find(|t| t.name == name).unwrap()))
}

fn case(label: &str, stage: Stage, sample: Sample, tensor: &str, what: &str) -> Case {
    Case::new(format!("weights: {label}"), stage, sample, &[WEIGHTS, &format!("tensor `{tensor}`"), what])
}

fn absent() -> Vec<Case> {
    let all = tensors().into_iter().map(|gone| {
        let sample = Sample::with_tensors(|tensors| tensors.retain(|t| t.name != gone.name));
        case(&format!("no {}", gone.name), Stage::Open, sample, &gone.name, "missing")
    });
    all.collect()
}

fn misshapen() -> Vec<Case> {
    let shape = |label: &str, name: &str, shape: &[usize], what: &str| {
        let sample = changed(name, |t| *t = Tensor::f32(name, shape));
        case(label, Stage::Open, sample, name, what)
    };
    vec![
        shape("transposed", EMBEDDING, &[8, 12], "transposed"),
        shape("half of the heads", Q, &[4, 8], "shape"),
        shape("one row more", EMBEDDING, &[13, 8], "shape"),
        shape("flat", Q, &[64], "shape"),
        shape("one dimension more", NORM, &[8, 1], "shape"),
        shape("no dimensions", NORM, &[], "shape"),
        shape("empty", NORM, &[0], "shape"),
        shape("empty rows", Q, &[8, 0], "shape"),
    ]
}

fn contradictions() -> Vec<Case> {
    let rows = [
        (serde_json::json!({"vocab_size": 1 << 24}), EMBEDDING),
        (serde_json::json!({"num_hidden_layers": 4096}), "model.layers.1."),
        (serde_json::json!({"hidden_size": 1 << 20}), EMBEDDING),
        (serde_json::json!({"intermediate_size": 32}), "mlp."),
        (serde_json::json!({"head_dim": 8}), "self_attn."),
        (serde_json::json!({"num_key_value_heads": 2}), "self_attn.k_proj"),
        (serde_json::json!({"attention_bias": true}), ".bias"),
        (serde_json::json!({"mlp_bias": true}), ".bias"),
    ];
    let rows = rows.into_iter().map(|(fields, tensor)| {
        let label = format!("weights: configuration with {fields}");
        Case::new(label, Stage::Open, Sample::hf().fields(CONFIG, fields), &[WEIGHTS, tensor])
    });
    rows.collect()
}

fn types() -> Vec<Case> {
    let stored = |dtype: &str, bytes: usize| {
        let sample = changed(Q, |t| {
            t.dtype = dtype.to_owned();
            t.data = vec![1; 64 * bytes];
        });
        case(&format!("stored as {dtype}"), Stage::Load, sample, Q, dtype)
    };
    vec![
        stored("F64", 8),
        stored("I64", 8),
        stored("I32", 4),
        stored("I8", 1),
        stored("U8", 1),
        stored("BOOL", 1),
        stored("F8_E4M3", 1),
        stored("F8_E5M2", 1),
    ]
}

fn numbers() -> Vec<Case> {
    let bits = |label: &str, name: &str, dtype: &str, bits: &[u8], what: &str| {
        let sample = changed(name, |t| {
            let elements = t.data.len() / 4;
            t.dtype = dtype.to_owned();
            // The last number of an otherwise good tensor.
            t.data = bits.repeat(elements);
            let good = if bits.len() == 4 { vec![0, 0, 0x80, 0x3f] } else { vec![0, 0x3c] };
            t.data[..(elements - 1) * bits.len()].copy_from_slice(&good.repeat(elements - 1));
        });
        case(label, Stage::Load, sample, name, what)
    };
    vec![
        bits("NaN in F32", Q, "F32", &f32::NAN.to_le_bytes(), "NaN"),
        bits("NaN with a payload", EMBEDDING, "F32", &0xffff_ffff_u32.to_le_bytes(), "NaN"),
        bits("infinity in F32", NORM, "F32", &f32::INFINITY.to_le_bytes(), "inf"),
        bits("-infinity in F32", "lm_head.weight", "F32", &f32::NEG_INFINITY.to_le_bytes(), "inf"),
        bits("NaN in F16", Q, "F16", &0x7e00_u16.to_le_bytes(), "NaN"),
        bits("infinity in F16", Q, "F16", &0x7c00_u16.to_le_bytes(), "inf"),
        bits("NaN in BF16", Q, "BF16", &0x7fc0_u16.to_le_bytes(), "NaN"),
        bits("infinity in BF16", Q, "BF16", &0xff80_u16.to_le_bytes(), "inf"),
        bits("absurd in F32", Q, "F32", &1e30_f32.to_le_bytes(), "element 63 is 1e30"),
        bits("absurd in F32, negative", NORM, "F32", &(-2e18_f32).to_le_bytes(), "-2e18"),
        bits("absurd in BF16", EMBEDDING, "BF16", &0x7f7f_u16.to_le_bytes(), "3.3895314e38"),
    ]
}

fn zeros() -> Vec<Case> {
    let zero = |name: &str| {
        let sample = changed(name, |t| t.data.fill(0));
        case(&format!("zeros in {name}"), Stage::Load, sample, name, "zeros")
    };
    [
        EMBEDDING,
        Q,
        NORM,
        "lm_head.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.input_layernorm.weight",
    ]
    .map(zero)
    .into()
}

fn gguf() -> Vec<Case> {
    let with = |label: &str, change: fn(&mut GgufContents), what: &str| {
        let mut file = GgufContents::good();
        change(&mut file);
        let words = ["model.gguf", &format!("tensor `{}`", gguf_embedding()), what];
        Case::new(format!("weights: GGUF, {label}"), Stage::Load, file.sample(), &words)
    };
    vec![
        // The embedding comes first.
        with("NaN", |file| file.data[..4].copy_from_slice(&f32::NAN.to_le_bytes()), "NaN"),
        with("infinity", |file| file.data[..4].copy_from_slice(&f32::INFINITY.to_le_bytes()), "inf"),
        with("zeros", |file| file.data[..12 * 8 * 4].fill(0), "zeros"),
    ]
}
