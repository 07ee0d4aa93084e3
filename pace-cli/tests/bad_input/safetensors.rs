//! Checkpoints with broken headers, tensors or indices.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::common::{Outcome, copy, pace};
use super::generate;

const NORM: &str = "model.layers.1.input_layernorm.weight";
const K_PROJ: &str = "model.layers.0.self_attn.k_proj.weight";

/// A copy of `gqa-tied` whose checkpoint is taken apart.
struct Checkpoint {
    dir: TempDir,
    header: String,
    data: Vec<u8>,
}

impl Checkpoint {
    fn new() -> Self {
        let dir = copy("gqa-tied");
        let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let header = String::from_utf8(header.to_vec()).unwrap();
        Self { dir, header, data: data.to_vec() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("model.safetensors")
    }

    fn entries(&self) -> Value {
        serde_json::from_str(&self.header).unwrap()
    }

    /// Where a tensor's bytes lie in the data.
    fn offsets(&self, tensor: &str) -> [usize; 2] {
        serde_json::from_value(self.entries()[tensor]["data_offsets"].clone()).unwrap()
    }

    /// Puts the parts together again and runs the model.
    fn run(self) -> Outcome {
        let length = self.header.len() as u64;
        self.run_with_length(length)
    }

    fn run_with_length(self, length: u64) -> Outcome {
        let bytes = [&length.to_le_bytes(), self.header.as_bytes(), &self.data].concat();
        fs::write(self.path(), bytes).unwrap();
        generate(self.dir.path())
    }

    /// As [`run`](Self::run), with `edit` applied to the header.
    fn run_edited(mut self, edit: impl FnOnce(&mut Value)) -> Outcome {
        let mut header = self.entries();
        edit(&mut header);
        self.header = header.to_string();
        self.run()
    }
}

#[test]
fn an_untouched_copy_runs() {
    assert!(Checkpoint::new().run().text().contains("\"tokens\""));
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let bytes = fs::read(Checkpoint::new().path()).unwrap();
    for len in [0, 5, 8, 100, 4000, bytes.len() / 2, bytes.len() - 1] {
        let dir = copy("gqa-tied");
        fs::write(dir.path().join("model.safetensors"), &bytes[..len]).unwrap();
        generate(dir.path()).assert_refused(3, &["model.safetensors"]);
    }
}

#[test]
fn a_header_longer_than_the_file_or_the_limit_is_refused() {
    for length in [0, 1, 1 << 20, 1 << 40, u64::MAX] {
        let words = ["model.safetensors", "header length", &length.to_string()];
        Checkpoint::new().run_with_length(length).assert_refused(3, &words);
    }
    let mut big = Checkpoint::new();
    // Sixteen megabytes of header that are really there.
    big.header.push_str(&" ".repeat(16 << 20));
    big.run().assert_refused(3, &["model.safetensors", "header length"]);
}

#[test]
fn a_header_that_is_no_json_is_refused() {
    for header in ["garbage", "[]", "{\"a\": 1}", "{\"a\": {}}"] {
        let mut broken = Checkpoint::new();
        header.clone_into(&mut broken.header);
        broken.run().assert_refused(3, &["model.safetensors"]);
    }
}

#[test]
fn trailing_bytes_are_refused() {
    let mut long = Checkpoint::new();
    long.data.extend([0; 64]);
    long.run().assert_refused(3, &["model.safetensors", "cover"]);
}

#[test]
fn overlapping_and_impossible_offsets_name_the_tensor() {
    let [begin, end] = Checkpoint::new().offsets(NORM);
    for (offsets, word) in [
        ([begin - 2, end - 2], "overlaps"),
        ([end, begin], "in order"),
        ([begin, usize::MAX], "data_offsets"),
        ([begin, end - 2], "needs"),
    ] {
        let out = Checkpoint::new().run_edited(|header| header[NORM]["data_offsets"] = json!(offsets));
        // An overlap may be told of either tensor.
        out.assert_refused(3, &["model.safetensors: tensor `model.layers.", word]);
    }
}

#[test]
fn a_name_that_occurs_twice_is_refused() {
    let mut twice = Checkpoint::new();
    twice.header = twice.header.replace(NORM, "model.layers.0.input_layernorm.weight");
    twice.run().assert_refused(3, &["model.safetensors", "`model.layers.0.input_layernorm.weight`", "twice"]);
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let mut renamed = Checkpoint::new();
    renamed.header = renamed.header.replace(NORM, "model.layers.1.else");
    renamed.run().assert_refused(3, &["model.safetensors", NORM, "missing"]);

    for (tensor, shape) in [
        // As many numbers as before, the other way round.
        (K_PROJ, json!([60, 20])),
        (K_PROJ, json!([1200])),
        (K_PROJ, json!([20, 60, 1])),
        ("model.embed_tokens.weight", json!([60, 293])),
        (NORM, json!([1, 60])),
    ] {
        let out = Checkpoint::new().run_edited(|header| header[tensor]["shape"] = shape);
        out.assert_refused(3, &["model.safetensors", tensor, "shape"]);
    }
}

#[test]
fn absurd_shapes_and_unknown_types_are_named() {
    for (field, value, word) in [
        ("shape", json!([u64::MAX, u64::MAX]), "shape"),
        ("shape", json!([-1]), ""),
        ("dtype", json!("Q9_9"), "Q9_9"),
        ("dtype", json!("I32"), ""),
    ] {
        let out = Checkpoint::new().run_edited(|header| header[NORM][field] = value);
        out.assert_refused(3, &["model.safetensors", NORM, word]);
    }
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    // The upper byte of a bf16 comes last.
    for (bits, word) in [(0x7fc0u16, "NaN"), (0x7f80, "inf"), (0xff80, "-inf")] {
        for tensor in [NORM, K_PROJ, "model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight"] {
            let mut poisoned = Checkpoint::new();
            let [_, end] = poisoned.offsets(tensor);
            poisoned.data[end - 2..end].copy_from_slice(&bits.to_le_bytes());
            poisoned.run().assert_refused(3, &["model.safetensors", tensor, word, "finite"]);
        }
    }
}

#[test]
fn damaged_weights_are_loaded_on_request() {
    let run = |bits: u16, flags: &[&str]| {
        let mut damaged = Checkpoint::new();
        let [from, end] = damaged.offsets(K_PROJ);
        let halves = (end - from) / 2;
        damaged.data[from..end].copy_from_slice(&bits.to_le_bytes().repeat(halves));
        let length = (damaged.header.len() as u64).to_le_bytes();
        fs::write(damaged.path(), [&length, damaged.header.as_bytes(), &damaged.data].concat()).unwrap();
        let model = damaged.dir.path().to_str().unwrap();
        pace(&[&["generate", "-m", model, "--prompt-tokens", "1,2", "-n", "2"], flags].concat())
    };
    for (bits, word) in [(0, "zeros"), (0x7fc0, "NaN"), (0x7f7f, "3.3895314e38")] {
        run(bits, &[]).assert_refused(3, &[K_PROJ, word]);
    }
    // Equal keys: every token sees the mean of all.
    run(0, &["--allow-nonfinite"]).text();
    // It loads; what it then says is no number.
    run(0x7fc0, &["--allow-nonfinite"]).assert_refused(3, &["every logit is NaN"]);
}

#[test]
fn an_index_stays_in_its_directory() {
    let index = |shard: &str| {
        let dir = copy("sharded");
        let path = dir.path().join("model.safetensors.index.json");
        let mut index: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        index["weight_map"]["lm_head.weight"] = json!(shard);
        fs::write(path, index.to_string()).unwrap();
        generate(dir.path())
    };
    for shard in ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", ""] {
        index(shard).assert_refused(3, &["model.safetensors.index.json", "weight_map.lm_head.weight"]);
    }
    index("model-00009-of-00004.safetensors").assert_refused(3, &["model-00009-of-00004.safetensors"]);
    index("model-00001-of-00004.safetensors").assert_refused(3, &["lm_head.weight", "model-00001-of-00004"]);
}

#[test]
fn an_index_that_names_nothing_is_refused() {
    for (text, word) in [("{", ""), ("{}", "weight_map"), ("{\"weight_map\": {}}", "weight_map")] {
        let dir = copy("sharded");
        fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
        generate(dir.path()).assert_refused(3, &["model.safetensors.index.json", word]);
    }
    let dir = copy("sharded");
    fs::remove_file(dir.path().join("model-00002-of-00004.safetensors")).unwrap();
    generate(dir.path()).assert_refused(3, &["model-00002-of-00004.safetensors", "No such file"]);
}
