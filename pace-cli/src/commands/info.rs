//! `pace-cli info`.

use std::fmt::Write as _;

use anyhow::Result;
use pace_kernels::{KvDType, WeightFormat};
use pace_models::file::clip;
use pace_models::weights::packed::{Loss, Manifest, OriginFile};
use pace_models::{DecoderSpec, RopeScaling};
use pace_runtime::config::Env;
use pace_runtime::kv_cache::{KvCacheKind, KvConfig, KvShape};
use pace_runtime::{FormatShare, ModelFiles};
use serde_json::{Value, json};

use crate::args::{EngineArgs, Format, InfoArgs, PlatformArgs};
use crate::operators;
use crate::output::{self, bytes, count};
use crate::session::open;

/// Weights and cache as the default flags keep them.
const WEIGHTS: WeightFormat = WeightFormat::Bf16;
const KV: KvDType = KvDType::Bf16;

pub(crate) fn run(env: &Env, args: &InfoArgs) -> Result<()> {
    let engine = EngineArgs {
        model: args.model.clone(),
        dtype: args.dtype,
        platform: PlatformArgs { threads: args.threads, ..PlatformArgs::default() },
        quant: args.quant.clone(),
        operators: args.operators.clone(),
        ..EngineArgs::default()
    };
    let config = engine.config(env)?;
    let files = open(env, args.model.as_deref())?;
    let selection = config.choose(&files)?;
    let (chosen, bit_equal) = (selection.chosen(), selection.is_bit_equal());
    match args.format {
        Format::Json => {
            let mut out = to_json(&files);
            let packed = files.packed_formats(&config.load);
            out["packed"] = operators::formats_json(&packed, files.spec());
            out["memory"]["weights_bytes"] = json!(packed.bytes(files.spec()));
            out["operators"] = operators::to_json(chosen);
            out["chosen_by"] = operators::chosen_by(chosen);
            out["bit_equal"] = json!(bit_equal);
            output::json(&out)?;
        }
        Format::Text => {
            let mut out = to_text(&files);
            let bits = operators::expected_bits(chosen, bit_equal);
            let packed = files.packed_formats(&config.load);
            let _ = writeln!(
                out,
                "{:<15}{}, {} in all",
                "packed as",
                operators::formats_text(&packed, files.spec()),
                bytes(packed.bytes(files.spec()))
            );
            let _ = writeln!(out, "{:<15}{}", "operators", operators::to_text(chosen));
            let _ =
                writeln!(out, "{:<15}{}\n{:<15}{bits}", "chosen by", operators::chosen_by_text(chosen), "");
            if let Some(meaning) = operators::meaning(chosen) {
                let _ = writeln!(out, "{:<15}{meaning}", "");
            }
            output::stream(&out)?;
        }
    }
    Ok(())
}

pub(crate) fn to_json(files: &ModelFiles) -> Value {
    let spec = files.spec();
    json!({
        "model": files.name(),
        "architecture": files.architecture().name(),
        "parameters": spec.parameters(),
        "vocab_size": spec.vocab_size,
        "hidden": spec.hidden,
        "layers": spec.n_layers,
        "heads": spec.n_heads,
        "kv_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "ffn": spec.ffn,
        "context": spec.max_positions,
        "activation": spec.activation.to_string(),
        "norm_eps": spec.norm_eps,
        "biases": {"qkv": spec.qkv_bias, "out": spec.out_bias, "mlp": spec.mlp_bias},
        "tied_embeddings": spec.tied_embeddings,
        "rope": {"theta": spec.rope.theta, "scaling": rope(spec)},
        "formats": formats(files),
        "memory": {
            "weights_f32_bytes": spec.weight_bytes(WeightFormat::F32),
            "weights_bf16_bytes": spec.weight_bytes(WEIGHTS),
            "kv_bf16_bytes_per_token": spec.kv_bytes_per_token(KV),
            "kv_f32_bytes_per_token": spec.kv_bytes_per_token(KvDType::F32),
            "kv_int8_bytes_per_token": spec.kv_bytes_per_token(KvDType::Int8),
            "kv_bf16_context_bytes": Value::Object(context_bytes(spec)),
        },
        "tokenizer": files.tokenizer().map(|t| json!({
            "vocab_size": t.vocab_size(),
            "bos": t.bos(),
            "eos": files.eos(),
        })),
        "chat_template": files.chat_template().is_some(),
        "pack": files.source().packed().map(|packed| pack_json(packed.manifest())),
    })
}

/// How the weights are stored: `[{format, tensors, weights}]`.
pub(crate) fn formats(files: &ModelFiles) -> Value {
    let share = |f: FormatShare| json!({"format": f.format, "tensors": f.tensors, "weights": f.weights});
    files.formats().into_iter().map(share).collect()
}

pub(crate) fn to_text(files: &ModelFiles) -> String {
    let spec = files.spec();
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<15}{value}");
    };
    row("model", files.name().to_owned());
    row("architecture", files.architecture().name().to_owned());
    row("parameters", count(spec.parameters()));
    row("layers", spec.n_layers.to_string());
    row("hidden", format!("{}, feed-forward {}", spec.hidden, spec.ffn));
    row("heads", format!("{}, {} for keys and values, of {}", spec.n_heads, spec.n_kv_heads, spec.head_dim));
    row("vocabulary", format!("{}{}", spec.vocab_size, if spec.tied_embeddings { ", tied" } else { "" }));
    row("context", format!("{} tokens", spec.max_positions));
    row("rope", format!("{}, base {}", rope(spec), spec.rope.theta));
    for f in files.formats() {
        row("stored as", format!("{}: {} tensors, {} weights", f.format, f.tensors, count(f.weights)));
    }
    let kv = spec.kv_bytes_per_token(KV);
    row("memory, bf16", format!("{} of weights", bytes(spec.weight_bytes(WEIGHTS))));
    row(
        "",
        format!(
            "{} of KV cache a token, {} for the whole context",
            bytes(kv),
            bytes(kv * spec.max_positions)
        ),
    );
    let by_kind = context_bytes(spec)
        .into_iter()
        .map(|(kind, n)| format!("{} {kind}", bytes(n.as_u64().unwrap_or_default() as usize)));
    row("", format!("at most {} while it grows to there", by_kind.collect::<Vec<_>>().join(", ")));
    row("memory, f32", format!("{} of weights", bytes(spec.weight_bytes(WeightFormat::F32))));
    row("memory, int8", format!("{} of KV cache a token", bytes(spec.kv_bytes_per_token(KvDType::Int8))));
    row("tokenizer", tokenizer(files));
    row("chat template", if files.chat_template().is_some() { "yes" } else { "none" }.to_owned());
    if let Some(packed) = files.source().packed() {
        let m = packed.manifest();
        row("packed from", clip(&m.origin.name));
        row("packed by", format!("PACE {} with {}, layout {}", clip(&m.version), clip(&m.isa), m.layout));
    }
    out
}

/// What a packed model's manifest says of its making.
fn pack_json(manifest: &Manifest) -> Value {
    let file = |f: &OriginFile| json!({"name": f.name, "bytes": f.bytes, "modified": f.modified});
    let loss = |l: &Loss| json!({"format": l.format.to_string(), "weights": l.weights, "relative_rms": l.relative_rms});
    json!({
        "origin": manifest.origin.name,
        "origin_files": manifest.origin.files.iter().map(file).collect::<Vec<_>>(),
        "version": manifest.version,
        "isa": manifest.isa,
        "layout": manifest.layout,
        "importance": manifest.importance,
        "losses": manifest.losses.iter().map(loss).collect::<Vec<_>>(),
    })
}

/// Bytes that a cache of each kind comes to hold at most for the whole context.
fn context_bytes(spec: &DecoderSpec) -> serde_json::Map<String, Value> {
    let shape = KvShape::new(spec, KV, spec.max_positions);
    let peak = |kind: KvCacheKind| (kind.name().to_owned(), json!(KvConfig::from(kind).peak_bytes(&shape)));
    KvCacheKind::ALL.map(peak).into_iter().collect()
}

fn tokenizer(files: &ModelFiles) -> String {
    let Some(t) = files.tokenizer() else { return "none: works by token ids".to_owned() };
    let name = |id: u32| format!("{id} {:?}", t.piece(id).unwrap_or_default());
    let eos: Vec<String> = files.eos().iter().map(|&id| name(id)).collect();
    let bos = t.bos().map_or_else(|| "none".to_owned(), name);
    format!("{} tokens, begins with {bos}, ends with {}", t.vocab_size(), eos.join(", "))
}

fn rope(spec: &DecoderSpec) -> String {
    match &spec.rope.scaling {
        RopeScaling::Default => "default".to_owned(),
        RopeScaling::Linear { factor } => format!("linear x{factor}"),
        RopeScaling::Dynamic { factor, original_max } => format!("dynamic x{factor} beyond {original_max}"),
        RopeScaling::Llama3 { factor, original_max, .. } => format!("llama3 x{factor} of {original_max}"),
        RopeScaling::Factors { factors } => format!("{} factors from the file", factors.len()),
    }
}
