//! Packed models whose files were cut, mixed up, or lie.

use std::sync::OnceLock;

use pace_kernels::{DType, WeightFormat};
use pace_models::LoadOptions;
use pace_runtime::{EngineConfig, ModelFiles, PackTarget};
use serde_json::{Value, json};

use super::case::{Case, Stage};
use super::sample::{CONFIG, Entry, Sample};

pub(crate) const WEIGHTS: &str = "model.pace.safetensors";
const MANIFEST: &str = "pace.json";

/// The good model of [`Sample::hf`], packed in f32.
pub(crate) fn good() -> Sample {
    static FILES: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = FILES.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("model"), dir.path().join("packed"));
        std::fs::create_dir(&from).unwrap();
        let sample = Sample::hf();
        sample.write(&from);
        let config = EngineConfig {
            pin: false,
            load: LoadOptions::new(WeightFormat::F32, DType::F32),
            ..EngineConfig::detect(DType::F32, Some(1)).unwrap()
        };
        let files = ModelFiles::open(&sample.model(&from)).unwrap();
        let target = PackTarget { dir: &to, force: false };
        files.pack(&config, target, &(Box::new(|_, _| {}) as _), &mut |_, _| Ok(())).unwrap();
        dir
    });
    Sample::of(&dir.path().join("packed"))
}

pub(crate) fn cases() -> Vec<Case> {
    [files(), manifests(), beside()].into_iter().flatten().collect()
}

fn case(label: &str, sample: Sample, words: &[&str]) -> Case {
    Case::new(format!("packed: {label}"), Stage::Open, sample, words)
}

fn files() -> Vec<Case> {
    let weights = good().bytes(WEIGHTS).to_vec();
    let cut = |len: usize| {
        let sample = good().text(WEIGHTS, &weights[..len]);
        case(&format!("weights of {len} bytes"), sample, &[WEIGHTS])
    };
    let ends = [0, 7, 8, 9, 63, 64, 200, 1000, weights.len() / 2, weights.len() - 64, weights.len() - 1];
    let mut cases: Vec<Case> = ends.into_iter().map(cut).collect();
    let changed = |at: usize, byte: u8| {
        let mut weights = weights.clone();
        weights[at] = byte;
        good().text(WEIGHTS, weights)
    };
    cases.extend([
        case("no weights", good().without(WEIGHTS), &[WEIGHTS]),
        case("weights are a directory", good().with(WEIGHTS, Entry::Directory), &[WEIGHTS, "directory"]),
        case("weights are a pipe", good().with(WEIGHTS, Entry::Fifo), &[WEIGHTS, "pipe"]),
        case("a byte behind the weights", good().text(WEIGHTS, [&weights[..], b"\0"].concat()), &[WEIGHTS]),
        case("another name in the header", changed(60, b'!'), &["header_sha256", "does not belong to"]),
        case("a header of 2^56 bytes", changed(7, 1), &[WEIGHTS, "header length"]),
        case(
            "a sparse file of a terabyte",
            good().with(WEIGHTS, Entry::Sparse(weights.clone(), 1 << 40)),
            &[WEIGHTS],
        ),
    ]);
    cases
}

/// The good model with the manifest's field at a JSON pointer set to a value.
fn with_field(pointer: &str, value: Value) -> Sample {
    let sample = good();
    let mut manifest: Value = serde_json::from_slice(sample.bytes(MANIFEST)).unwrap();
    *manifest.pointer_mut(pointer).unwrap() = value;
    sample.text(MANIFEST, manifest.to_string())
}

fn manifests() -> Vec<Case> {
    let text = |label: &str, text: &[u8]| case(label, good().text(MANIFEST, text), &[MANIFEST]);
    let mut cases = vec![
        text("an empty manifest", b""),
        text("a manifest of another program", b"{}"),
        text("a manifest that is a list", b"[]"),
        text("a manifest of brackets", "[".repeat(1 << 16).as_bytes()),
        case(
            "a manifest of a terabyte",
            good().with(MANIFEST, Entry::Sparse(Vec::new(), 1 << 40)),
            &[MANIFEST],
        ),
        case("a manifest that is a pipe", good().with(MANIFEST, Entry::Fifo), &[MANIFEST, "pipe"]),
    ];
    let long = "x\n\u{1b}[31m".repeat(100_000);
    for (pointer, value, words) in [
        ("/layout", json!(0), &["layout", "pace-cli pack"][..]),
        ("/layout", json!(u64::MAX), &["manifest"]),
        ("/architecture", json!("bert"), &["architecture", "bert", "llama"]),
        ("/architecture", json!(long), &["architecture"]),
        ("/kind", json!("gguf"), &["metadata.gguf.bin"]),
        ("/kind", json!("random"), &["origin.name", "no random model"]),
        ("/header_sha256", json!(long), &["header_sha256"]),
        ("/matrices", json!([]), &[WEIGHTS, "does not name it"]),
        ("/matrices/0/parts", json!([]), &["its parts do not have them"]),
        ("/matrices/0/parts/0/name", json!(long), &["is not in"]),
        ("/matrices/0/n", json!(0), &["its parts do not have them"]),
        ("/matrices/0/k", json!(0), &["no matrix of a model"]),
        ("/matrices/0/k", json!(usize::MAX), &["no matrix of a model"]),
        ("/matrices/0/k", json!((1u64 << 31) - 1), &["takes"]),
        ("/matrices/0/bytes", json!(u64::MAX), &["takes"]),
        ("/matrices/0/format", json!("bf16"), &["takes"]),
        ("/matrices/0/format", json!(long), &["unknown weight format"]),
        ("/matrices/0/panel", json!(0), &["panels of 0"]),
        ("/matrices/0/paired", json!("yes"), &["boolean"]),
    ] {
        let label = format!("{pointer} is {:.20}", value.to_string());
        cases.push(case(&label, with_field(pointer, value), words));
    }
    cases
}

/// What lies beside the weights contradicts them.
fn beside() -> Vec<Case> {
    vec![
        case("no configuration", good().without(CONFIG), &[CONFIG]),
        case(
            "a configuration of another model",
            good().fields(CONFIG, json!({"intermediate_size": 32})),
            &["mlp.", "shape"],
        ),
        case("one layer more", good().fields(CONFIG, json!({"num_hidden_layers": 2})), &["model.layers.1."]),
    ]
}
