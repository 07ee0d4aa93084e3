use super::super::*;
use crate::weights::gguf::GgufFile;
use crate::{RopeScaling, RopeSpec};

/// A value of GGUF metadata.
#[derive(Clone)]
enum Item {
    U32(u32),
    F32(f32),
    Text(&'static str),
}

use Item::{F32, Text, U32};

/// Name, row-major shape, f32 data.
type Tensor = (String, Vec<usize>, Vec<f32>);

/// The bytes of a GGUF v3 file with f32 tensors.
fn container(items: &[(&str, Item)], tensors: &[Tensor]) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    let string = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((items.len() as u64).to_le_bytes());
    for (key, item) in items {
        string(&mut out, key);
        match item {
            U32(n) => out.extend([4u32.to_le_bytes(), n.to_le_bytes()].concat()),
            F32(x) => out.extend([6u32.to_le_bytes(), x.to_le_bytes()].concat()),
            Text(text) => {
                out.extend(8u32.to_le_bytes());
                string(&mut out, text);
            }
        }
    }
    let mut data = Vec::new();
    for (name, shape, numbers) in tensors {
        string(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        out.extend(shape.iter().rev().flat_map(|n| (*n as u64).to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        data.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

/// A model of 3 layers with 4 heads of 6, 2 KV heads and 11 tokens, with `changes` over it (`None` removes a key)
/// and more tensors, all filled with 1.
fn spec(
    changes: &[(&'static str, Option<Item>)],
    more: &[(&str, &[usize])],
) -> Result<DecoderSpec, ModelError> {
    let more: Vec<_> = more.iter().map(|(name, shape)| tensor(name, shape, 1.0)).collect();
    let mut tensors = vec![tensor("token_embd.weight", &[11, 24], 1.0)];
    tensors.extend(more);
    spec_with(changes, &tensors)
}

fn tensor(name: &str, shape: &[usize], fill: f32) -> Tensor {
    (name.to_owned(), shape.to_vec(), vec![fill; shape.iter().product()])
}

fn spec_with(
    changes: &[(&'static str, Option<Item>)],
    tensors: &[Tensor],
) -> Result<DecoderSpec, ModelError> {
    let mut items = vec![
        ("general.architecture", Text("llama")),
        ("llama.embedding_length", U32(24)),
        ("llama.block_count", U32(3)),
        ("llama.attention.head_count", U32(4)),
        ("llama.attention.head_count_kv", U32(2)),
        ("llama.feed_forward_length", U32(20)),
        ("llama.context_length", U32(512)),
        ("llama.attention.layer_norm_rms_epsilon", F32(1e-5)),
    ];
    for (key, change) in changes {
        items.retain(|(name, _)| name != key);
        items.extend(change.clone().map(|item| (*key, item)));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, container(&items, tensors)).unwrap();
    let file = GgufFile::open(&path)?;
    Architecture::from_gguf(file.metadata())?.spec_from_gguf(file.metadata(), &file)
}

#[test]
fn a_plain_file_gives_its_shape() {
    let expected = DecoderSpec {
        vocab_size: 11,
        hidden: 24,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 6,
        ffn: 20,
        max_positions: 512,
        norm_eps: 1e-5,
        activation: Activation::Silu,
        qkv_bias: false,
        out_bias: false,
        mlp_bias: false,
        tied_embeddings: true,
        rope: RopeSpec { theta: 10_000.0, scaling: RopeScaling::Default },
    };
    assert_eq!(spec(&[], &[]).unwrap(), expected);
    let agreeing = [
        ("llama.vocab_size", Some(U32(11))),
        ("llama.rope.dimension_count", Some(U32(6))),
        ("llama.expert_count", Some(U32(0))),
        ("llama.rope.scaling.type", Some(Text("none"))),
    ];
    assert_eq!(spec(&agreeing, &[]).unwrap(), expected);
    let all_heads = spec(&[("llama.attention.head_count_kv", None)], &[]).unwrap();
    assert_eq!(all_heads.n_kv_heads, 4);
    let wide = [
        ("llama.attention.key_length", Some(U32(16))),
        ("llama.attention.value_length", Some(U32(16))),
        ("llama.rope.freq_base", Some(F32(500_000.0))),
    ];
    let wide = spec(&wide, &[]).unwrap();
    assert_eq!((wide.head_dim, wide.rope.theta), (16, 500_000.0));
}

#[test]
fn tensors_say_which_biases_there_are_and_whether_the_head_is_tied() {
    let switches = |name: &str, shape: &[usize]| {
        let spec = spec(&[], &[(name, shape)]).unwrap();
        [spec.qkv_bias, spec.out_bias, spec.mlp_bias, spec.tied_embeddings]
    };
    assert_eq!(switches("output.weight", &[11, 24]), [false, false, false, false]);
    // In any layer: a bias that some layers lack is then missed when shapes are checked, not dropped.
    assert_eq!(switches("blk.2.attn_k.bias", &[12]), [true, false, false, true]);
    assert_eq!(switches("blk.0.attn_output.bias", &[24]), [false, true, false, true]);
    assert_eq!(switches("blk.1.ffn_down.bias", &[24]), [false, false, true, true]);
}

#[test]
fn rope_scaling_is_read_as_llama_cpp_reads_it() {
    const TYPE: &str = "llama.rope.scaling.type";
    const FACTOR: &str = "llama.rope.scaling.factor";
    let linear = |factor| RopeScaling::Linear { factor };
    let original = ("llama.rope.scaling.original_context_length", Some(U32(256)));
    let cases = [
        (vec![(TYPE, Some(Text("linear"))), (FACTOR, Some(F32(2.0)))], linear(2.0), 1024),
        (vec![(FACTOR, Some(F32(2.5)))], linear(2.5), 1280),
        (vec![(FACTOR, Some(F32(2.0))), original.clone()], linear(2.0), 512),
        (vec![(TYPE, Some(Text("none"))), (FACTOR, Some(F32(2.0)))], RopeScaling::Default, 512),
    ];
    for (changes, scaling, max_positions) in cases {
        let got = spec(&changes, &[]).unwrap();
        assert_eq!((got.rope.scaling, got.max_positions), (scaling, max_positions));
    }
    let tensors = [
        tensor("token_embd.weight", &[11, 24], 1.0),
        ("rope_freqs.weight".to_owned(), vec![3], vec![1.0, 2.0, 8.0]),
    ];
    let factors = |changes: &[_]| spec_with(changes, &tensors).unwrap().rope.scaling;
    assert_eq!(factors(&[]), RopeScaling::Factors { factors: vec![1.0, 2.0, 8.0] });
    assert_eq!(factors(&[(FACTOR, Some(F32(2.0)))]), RopeScaling::Factors { factors: vec![2.0, 4.0, 16.0] });
}

#[test]
fn metadata_that_is_wrong_or_contradicts_itself() {
    let required = [
        "llama.embedding_length",
        "llama.block_count",
        "llama.attention.head_count",
        "llama.feed_forward_length",
        "llama.context_length",
        "llama.attention.layer_norm_rms_epsilon",
    ];
    let mut cases: Vec<(&'static str, Option<Item>, &str)> = Vec::new();
    for key in required {
        cases.extend([(key, None, key), (key, Some(U32(0)), key), (key, Some(Text("x")), key)]);
    }
    cases.extend([
        ("general.architecture", None, "general.architecture"),
        ("general.architecture", Some(U32(1)), "general.architecture"),
        ("general.architecture", Some(Text("mamba")), "unknown architecture `mamba`; known: llama"),
        (
            "llama.embedding_length",
            Some(U32(25)),
            "`llama.embedding_length`: must be a multiple of the 4 attention",
        ),
        ("llama.embedding_length", Some(U32(28)), "`llama.attention.key_length`: must be even"),
        ("llama.embedding_length", Some(U32(u32::MAX)), "must be from 1 to 1048576, but is 4294967295"),
        ("llama.block_count", Some(U32(4097)), "`llama.block_count`: must be from 1 to 4096"),
        ("llama.attention.head_count_kv", Some(U32(0)), "`llama.attention.head_count_kv`: must be from 1"),
        ("llama.attention.head_count_kv", Some(U32(3)), "`llama.attention.head_count_kv`: must divide"),
        ("llama.attention.key_length", Some(U32(7)), "`llama.attention.key_length`: must be even"),
        (
            "llama.attention.key_length",
            Some(U32(2048)),
            "`llama.attention.key_length`: must be from 2 to 1024",
        ),
        (
            "llama.attention.value_length",
            Some(U32(8)),
            "`llama.attention.value_length`: must be the head's width, 6",
        ),
        (
            "llama.rope.dimension_count",
            Some(U32(4)),
            "`llama.rope.dimension_count`: must be the head's width, 6",
        ),
        ("llama.attention.layer_norm_rms_epsilon", Some(F32(f32::NAN)), "layer_norm_rms_epsilon`: "),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Some(F32(-1.0)),
            "layer_norm_rms_epsilon`: must be above 0",
        ),
        (
            "llama.rope.freq_base",
            Some(F32(0.0)),
            "`llama.rope.freq_base`: must be a finite number of at least 1",
        ),
        ("llama.rope.freq_base", Some(F32(f32::INFINITY)), "`llama.rope.freq_base`: "),
        ("llama.rope.scaling.type", Some(Text("yarn")), "`yarn` is not supported; supported: none, linear"),
        ("llama.rope.scaling.type", Some(Text("linear")), "`llama.rope.scaling.factor`: "),
        (
            "llama.rope.scaling.factor",
            Some(F32(0.0)),
            "`llama.rope.scaling.factor`: must be a finite number of",
        ),
        ("llama.rope.scaling.factor", Some(F32(1e9)), "`llama.rope.scaling.factor`: 1000000000 makes 512"),
        ("llama.vocab_size", Some(U32(12)), "`llama.vocab_size`: is 12, but `token_embd.weight` has 11 rows"),
        ("llama.expert_count", Some(U32(8)), "`llama.expert_count`: must be 0: mixtures of experts"),
    ]);
    for (key, change, expected) in cases {
        let message = spec(&[(key, change)], &[]).expect_err(expected).to_string();
        assert!(message.contains("m.gguf: ") && message.contains(expected), "{key}: {message}");
    }
}

#[test]
fn tensors_that_contradict_the_metadata() {
    let refused = |tensors: &[Tensor], expected: &str| {
        let message = spec_with(&[], tensors).expect_err(expected).to_string();
        assert!(message.contains("m.gguf: tensor `") && message.contains(expected), "{message}");
    };
    let embedding = || tensor("token_embd.weight", &[11, 24], 1.0);
    refused(&[tensor("other", &[1], 1.0)], "`token_embd.weight`: is missing");
    refused(
        &[tensor("token_embd.weight", &[11], 1.0)],
        "`token_embd.weight`: has shape [11], but must have two",
    );
    refused(
        &[embedding(), tensor("rope_freqs.weight", &[4], 1.0)],
        "`rope_freqs.weight`: has shape [4], but half",
    );
    refused(
        &[embedding(), tensor("rope_freqs.weight", &[3], 0.0)],
        "`rope_freqs.weight`: element 0 must be above 0",
    );
    refused(&[embedding(), tensor("rope_freqs.weight", &[3], f32::NAN)], "`rope_freqs.weight`: ");
}
