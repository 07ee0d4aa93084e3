//! Small good models, made in code, that cases spoil.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use pace_models::arch::{Architecture, Role};
use pace_models::weights::Naming;
use pace_models::{DecoderSpec, RopeScaling, RopeSpec};
use pace_runtime::ModelRef;
use serde_json::{Value, json};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const GENERATION: &str = "generation_config.json";
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const TEMPLATE: &str = "chat_template.jinja";
pub(crate) const GGUF: &str = "model.gguf";

/// The vocabulary, in the order of ids: letters, two merges, the two special tokens, two letters more.
pub(crate) const TOKENS: [&str; 12] = ["a", "b", "c", "d", "e", "ab", "abc", "Ġ", "<s>", "</s>", "x", "y"];
pub(crate) const MERGES: [&str; 2] = ["a b", "ab c"];
const CHAT: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";

/// What a name in a directory is.
pub(crate) enum Entry {
    Bytes(Vec<u8>),
    /// Zeros up to this length, which take no room on the disk.
    Sparse(Vec<u8>, u64),
    Link(PathBuf),
    Fifo,
    Directory,
}

/// The files of one model.
pub(crate) struct Sample {
    entries: BTreeMap<String, Entry>,
}

impl Sample {
    /// A directory in HF's layout.
    pub(crate) fn hf() -> Self {
        Self { entries: BTreeMap::new() }
            .text(CONFIG, config().to_string())
            .text(GENERATION, json!({"eos_token_id": [9]}).to_string())
            .text(WEIGHTS, container(&tensors()))
            .text(TOKENIZER, tokenizer().to_string())
            .text(TOKENIZER_CONFIG, tokenizer_config().to_string())
    }

    /// A directory in HF's layout with these tensors.
    pub(crate) fn with_tensors(change: impl FnOnce(&mut Vec<Tensor>)) -> Self {
        let mut tensors = tensors();
        change(&mut tensors);
        Self::hf().text(WEIGHTS, container(&tensors))
    }

    /// The files of a directory.
    pub(crate) fn of(dir: &Path) -> Self {
        let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let entry = |path: PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, Entry::Bytes(fs::read(&path).unwrap()))
        };
        Self { entries: files.map(entry).collect() }
    }

    /// The bytes of the file `name`.
    pub(crate) fn bytes(&self, name: &str) -> &[u8] {
        match &self.entries[name] {
            Entry::Bytes(bytes) => bytes,
            _ => panic!("{name} is no plain file"),
        }
    }

    /// As it is, but with `entry` called `name`.
    pub(crate) fn with(mut self, name: &str, entry: Entry) -> Self {
        self.entries.insert(name.to_owned(), entry);
        self
    }

    pub(crate) fn text(self, name: &str, text: impl Into<Vec<u8>>) -> Self {
        self.with(name, Entry::Bytes(text.into()))
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.entries.remove(name);
        self
    }

    /// As it is, but with `fields` in the JSON object `name`.
    pub(crate) fn fields(self, name: &str, fields: Value) -> Self {
        let mut object = match self.entries.get(name) {
            Some(Entry::Bytes(bytes)) => serde_json::from_slice(bytes).unwrap(),
            _ => json!({}),
        };
        merge(&mut object, fields);
        self.text(name, object.to_string())
    }

    /// Writes all files into `dir`.
    pub(crate) fn write(&self, dir: &Path) {
        for (name, entry) in &self.entries {
            let path = dir.join(name);
            match entry {
                Entry::Bytes(bytes) => fs::write(&path, bytes).unwrap(),
                Entry::Sparse(bytes, len) => {
                    fs::write(&path, bytes).unwrap();
                    File::options().write(true).open(&path).unwrap().set_len(*len).unwrap();
                }
                Entry::Link(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
                Entry::Fifo => assert!(Command::new("mkfifo").arg(&path).status().unwrap().success()),
                Entry::Directory => fs::create_dir(&path).unwrap(),
            }
        }
    }

    /// The model, once it is written to `dir`.
    pub(crate) fn model(&self, dir: &Path) -> ModelRef {
        if self.entries.contains_key(GGUF) {
            ModelRef::Gguf(dir.join(GGUF))
        } else {
            ModelRef::Directory(dir.to_path_buf())
        }
    }
}

/// Replaces the fields of `object`, objects in it field by field; null is written as it is.
fn merge(object: &mut Value, fields: Value) {
    match (object, fields) {
        (Value::Object(object), Value::Object(fields)) => {
            for (name, value) in fields {
                merge(object.entry(name).or_insert(Value::Null), value);
            }
        }
        (slot, value) => *slot = value,
    }
}

/// A tensor to be written.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

impl Tensor {
    /// Small numbers, none of them 0.
    pub(crate) fn f32(name: &str, shape: &[usize]) -> Self {
        let data = (0..shape.iter().product()).flat_map(|i: usize| ((i % 7 + 1) as f32 * 0.01).to_le_bytes());
        Self { name: name.to_owned(), dtype: "F32".to_owned(), shape: shape.to_vec(), data: data.collect() }
    }
}

fn spec() -> DecoderSpec {
    DecoderSpec {
        vocab_size: TOKENS.len(),
        hidden: 8,
        n_layers: 1,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 4,
        ffn: 16,
        max_positions: 64,
        norm_eps: 1e-5,
        activation: pace_kernels::Activation::Silu,
        qkv_bias: false,
        out_bias: false,
        mlp_bias: false,
        tied_embeddings: false,
        rope: RopeSpec { theta: 1e4, scaling: RopeScaling::Default },
    }
}

pub(crate) fn config() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 4, "num_hidden_layers": 1, "intermediate_size": 16, "vocab_size": TOKENS.len(),
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
        "rope_theta": 1e4, "eos_token_id": 9,
    })
}

pub(crate) fn tensors() -> Vec<Tensor> {
    let spec = spec();
    let expected = Architecture::Llama.expected_tensors(Naming::Hf, &spec);
    expected.map(|(name, shape)| Tensor::f32(&name, &shape)).collect()
}

pub(crate) fn tokenizer() -> Value {
    let vocab: serde_json::Map<_, _> =
        TOKENS.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let added = |id: usize| {
        json!({"id": id, "content": TOKENS[id], "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    };
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(8), added(9)],
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "vocab": vocab, "merges": MERGES},
    })
}

pub(crate) fn tokenizer_config() -> Value {
    json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT})
}

/// A safetensors file with the tensors behind each other.
pub(crate) fn container(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for Tensor { name, dtype, shape, data: bytes } in tensors {
        let begin = data.len();
        data.extend(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name.clone(), entry);
    }
    raw_container(&Value::Object(header).to_string(), &data)
}

/// A safetensors file with this text as its header.
pub(crate) fn raw_container(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A GGUF file, in parts that are bytes already.
pub(crate) struct GgufContents {
    pub(crate) version: u32,
    /// Keys with type and value.
    pub(crate) pairs: Vec<(String, Vec<u8>)>,
    /// Names with what follows them.
    pub(crate) tensors: Vec<(String, Vec<u8>)>,
    pub(crate) data: Vec<u8>,
}

impl GgufContents {
    /// The good model.
    pub(crate) fn good() -> Self {
        let mut file = Self { version: 3, pairs: Vec::new(), tensors: Vec::new(), data: Vec::new() };
        file.set("general.architecture", text("llama"));
        for (key, n) in [
            ("embedding_length", 8),
            ("block_count", 1),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("context_length", 64),
            ("feed_forward_length", 16),
        ] {
            file.set(&format!("llama.{key}"), u32_value(n));
        }
        file.set("llama.attention.layer_norm_rms_epsilon", f32_value(1e-5));
        file.set("tokenizer.ggml.model", text("gpt2"));
        file.set("tokenizer.ggml.pre", text("gpt-2"));
        file.set("tokenizer.ggml.tokens", texts(&TOKENS));
        file.set("tokenizer.ggml.merges", texts(&MERGES));
        file.set("tokenizer.ggml.token_type", i32s(&[1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 1, 1]));
        file.set("tokenizer.ggml.bos_token_id", u32_value(8));
        file.set("tokenizer.ggml.eos_token_id", u32_value(9));
        file.set("tokenizer.chat_template", text(CHAT));
        for (name, shape) in Architecture::Llama.expected_tensors(Naming::Gguf, &spec()) {
            file.push(Tensor::f32(&name, &shape), 0);
        }
        file
    }

    /// Sets a key, or puts another value in its place.
    pub(crate) fn set(&mut self, key: &str, value: Vec<u8>) {
        match self.pairs.iter_mut().find(|pair| pair.0 == key) {
            Some(pair) => pair.1 = value,
            None => self.pairs.push((key.to_owned(), value)),
        }
    }

    /// Adds a tensor of the type with number `kind` behind the others.
    pub(crate) fn push(&mut self, tensor: Tensor, kind: u32) {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        let dims: Vec<u64> = tensor.shape.iter().rev().map(|&n| n as u64).collect();
        self.tensors.push((tensor.name, entry(&dims, kind, self.data.len() as u64)));
        self.data.extend(tensor.data);
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = preamble(self.version, self.tensors.len() as u64, self.pairs.len() as u64);
        for (name, rest) in self.pairs.iter().chain(&self.tensors) {
            bytes.extend(string(name));
            bytes.extend(rest);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }

    pub(crate) fn sample(&self) -> Sample {
        gguf_sample(self.bytes())
    }
}

/// A model that is one GGUF file of these bytes.
pub(crate) fn gguf_sample(bytes: Vec<u8>) -> Sample {
    Sample { entries: BTreeMap::new() }.text(GGUF, bytes)
}

/// The name of the embedding in a GGUF file.
pub(crate) fn gguf_embedding() -> String {
    Architecture::Llama.tensor_name(Naming::Gguf, Role::Embedding)
}

pub(crate) fn preamble(version: u32, tensors: u64, pairs: u64) -> Vec<u8> {
    [&b"GGUF"[..], &version.to_le_bytes(), &tensors.to_le_bytes(), &pairs.to_le_bytes()].concat()
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    raw_string(text.len() as u64, text.as_bytes())
}

/// A string that claims to have `len` bytes.
pub(crate) fn raw_string(len: u64, bytes: &[u8]) -> Vec<u8> {
    [&len.to_le_bytes(), bytes].concat()
}

/// A type's number and a value.
pub(crate) fn value(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), bytes].concat()
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    value(8, &string(text))
}

pub(crate) fn u32_value(n: u32) -> Vec<u8> {
    value(4, &n.to_le_bytes())
}

pub(crate) fn f32_value(x: f32) -> Vec<u8> {
    value(6, &x.to_le_bytes())
}

/// An array that claims to have `count` elements of type `kind`.
pub(crate) fn raw_array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    value(9, &[&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat())
}

pub(crate) fn texts(texts: &[&str]) -> Vec<u8> {
    raw_array(8, texts.len() as u64, &texts.iter().flat_map(|text| string(text)).collect::<Vec<_>>())
}

pub(crate) fn i32s(numbers: &[i32]) -> Vec<u8> {
    raw_array(5, numbers.len() as u64, &numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>())
}

/// What follows a tensor's name.
pub(crate) fn entry(dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = (dims.len() as u32).to_le_bytes().to_vec();
    dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}
