//! Llama: pre-norm decoder with RMSNorm, rotary embeddings, grouped-query attention and a gated feed-forward
//! layer. Fields and defaults are those of transformers' `LlamaConfig` and of llama.cpp's `llama.*` keys.

use std::ops::RangeInclusive;

use pace_kernels::Activation;

use crate::config::{HfConfig, Section};
use crate::weights::gguf::Metadata;
use crate::weights::{Naming, WeightSource};
use crate::{DecoderSpec, ModelError};

use super::{Architecture, Role, rope};

/// Longest sequence in tokens that a configuration may ask for.
pub(super) const MAX_POSITIONS: usize = 1 << 31;

// Far above every model there is, and low enough that no product of sizes leaves 64 bits.
const VOCAB: RangeInclusive<usize> = 1..=1 << 24;
const WIDTH: RangeInclusive<usize> = 1..=1 << 20;
const LAYERS: RangeInclusive<usize> = 1..=4096;
const HEADS: RangeInclusive<usize> = 1..=1 << 16;
const HEAD_DIM: RangeInclusive<usize> = 2..=1024;
const POSITIONS: RangeInclusive<usize> = 1..=MAX_POSITIONS;

pub(super) fn spec_from_hf(config: &HfConfig) -> Result<DecoderSpec, ModelError> {
    let root = config.root();
    refuse_unsupported(&root)?;
    let hidden = root.require_usize("hidden_size", WIDTH)?;
    let n_heads = root.require_usize("num_attention_heads", HEADS)?;
    let n_kv_heads = root.usize("num_key_value_heads", HEADS)?.unwrap_or(n_heads);
    check_groups(n_heads, n_kv_heads).map_err(|what| root.error("num_key_value_heads", what))?;
    let head_dim = match root.usize("head_dim", HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None => split_heads(hidden, n_heads).map_err(|what| root.error("hidden_size", what))?,
    };
    check_head_dim(head_dim).map_err(|what| root.error("head_dim", what))?;
    let trained = root.require_usize("max_position_embeddings", POSITIONS)?;
    let (rope, max_positions) = rope::from_hf(&root, head_dim, trained)?;
    let norm_eps = check_eps(root.f64("rms_norm_eps")?.unwrap_or(1e-6));
    let attention_bias = root.bool("attention_bias")?.unwrap_or(false);
    Ok(DecoderSpec {
        vocab_size: root.require_usize("vocab_size", VOCAB)?,
        hidden,
        n_layers: root.require_usize("num_hidden_layers", LAYERS)?,
        n_heads,
        n_kv_heads,
        head_dim,
        ffn: root.require_usize("intermediate_size", WIDTH)?,
        max_positions,
        norm_eps: norm_eps.map_err(|what| root.error("rms_norm_eps", what))?,
        activation: hf_activation(&root)?,
        qkv_bias: attention_bias,
        out_bias: attention_bias,
        mlp_bias: root.bool("mlp_bias")?.unwrap_or(false),
        tied_embeddings: root.bool("tie_word_embeddings")?.unwrap_or(false),
        rope,
    })
}

pub(super) fn spec_from_gguf(
    metadata: &Metadata,
    source: &dyn WeightSource,
) -> Result<DecoderSpec, ModelError> {
    const KV_HEADS: &str = "llama.attention.head_count_kv";
    const EPS: &str = "llama.attention.layer_norm_rms_epsilon";
    let keys = Keys { metadata };
    if keys.optional("llama.expert_count", 0..=usize::MAX)?.is_some_and(|n| n > 0) {
        return Err(keys.error("llama.expert_count", "must be 0: mixtures of experts are not supported yet"));
    }
    let hidden = keys.required("llama.embedding_length", WIDTH)?;
    let n_heads = keys.required("llama.attention.head_count", HEADS)?;
    let n_kv_heads = keys.optional(KV_HEADS, HEADS)?.unwrap_or(n_heads);
    check_groups(n_heads, n_kv_heads).map_err(|what| keys.error(KV_HEADS, what))?;
    let head_dim = gguf_head_dim(&keys, hidden, n_heads)?;
    let context = keys.required("llama.context_length", POSITIONS)?;
    let (rope, max_positions) = rope::from_gguf(metadata, source, head_dim, context)?;
    let has = |ending: &str| source.tensors().iter().any(|info| info.name.ends_with(ending));
    let any_has = |endings: [&str; 3]| endings.into_iter().any(has);
    Ok(DecoderSpec {
        vocab_size: gguf_vocab(&keys, source)?,
        hidden,
        n_layers: keys.required("llama.block_count", LAYERS)?,
        n_heads,
        n_kv_heads,
        head_dim,
        ffn: keys.required("llama.feed_forward_length", WIDTH)?,
        max_positions,
        norm_eps: check_eps(metadata.require_f64(EPS)?).map_err(|what| keys.error(EPS, what))?,
        activation: Activation::Silu,
        qkv_bias: any_has([".attn_q.bias", ".attn_k.bias", ".attn_v.bias"]),
        out_bias: has(".attn_output.bias"),
        mlp_bias: any_has([".ffn_gate.bias", ".ffn_up.bias", ".ffn_down.bias"]),
        tied_embeddings: source.info(&name(Role::LmHead)).is_none(),
        rope,
    })
}

/// The fields that would change what the model computes, and that the decoder does not know.
fn refuse_unsupported(root: &Section<'_>) -> Result<(), ModelError> {
    let used = root.bool("use_sliding_window")?.unwrap_or(true);
    if used && root.get("sliding_window").is_some() {
        return Err(
            root.error("sliding_window", "must be absent or null: sliding windows are not supported yet")
        );
    }
    Ok(())
}

fn hf_activation(root: &Section<'_>) -> Result<Activation, ModelError> {
    let Some(name) = root.str("hidden_act")? else { return Ok(Activation::Silu) };
    name.parse().map_err(|_| {
        let name = crate::file::clip(name);
        root.error(
            "hidden_act",
            format!("`{name}` is not supported; supported: silu, gelu, gelu_new, gelu_pytorch_tanh, relu"),
        )
    })
}

/// Integer keys of GGUF metadata, range-checked.
struct Keys<'a> {
    metadata: &'a Metadata,
}

impl Keys<'_> {
    fn optional(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ModelError> {
        self.metadata.u64(key)?.map(|n| self.within(key, n, &range)).transpose()
    }

    fn required(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, ModelError> {
        self.within(key, self.metadata.require_u64(key)?, &range)
    }

    fn within(&self, key: &str, n: u64, range: &RangeInclusive<usize>) -> Result<usize, ModelError> {
        usize::try_from(n).ok().filter(|n| range.contains(n)).ok_or_else(|| {
            self.error(key, format!("must be from {} to {}, but is {n}", range.start(), range.end()))
        })
    }

    fn error(&self, key: &str, what: impl Into<String>) -> ModelError {
        ModelError::field(self.metadata.path(), key, what)
    }
}

fn gguf_head_dim(keys: &Keys<'_>, hidden: usize, n_heads: usize) -> Result<usize, ModelError> {
    const KEY: &str = "llama.attention.key_length";
    let head_dim = match keys.optional(KEY, HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None => split_heads(hidden, n_heads).map_err(|what| keys.error("llama.embedding_length", what))?,
    };
    check_head_dim(head_dim).map_err(|what| keys.error(KEY, what))?;
    for same in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        let value = keys.optional(same, WIDTH)?.unwrap_or(head_dim);
        if value != head_dim {
            return Err(keys.error(same, format!("must be the head's width, {head_dim}, but is {value}")));
        }
    }
    Ok(head_dim)
}

/// The vocabulary is what the embedding has rows for; `llama.vocab_size`, where given, must agree.
fn gguf_vocab(keys: &Keys<'_>, source: &dyn WeightSource) -> Result<usize, ModelError> {
    const KEY: &str = "llama.vocab_size";
    let embedding = name(Role::Embedding);
    let fail = |what: String| ModelError::tensor(source.path(&embedding), embedding.as_str(), what);
    let info = source.info(&embedding).ok_or_else(|| fail("is missing; every model has it".to_owned()))?;
    let &[vocab, _] = info.shape.as_slice() else {
        return Err(fail(format!("has shape {:?}, but must have two dimensions", info.shape)));
    };
    if !VOCAB.contains(&vocab) {
        return Err(fail(format!("has {vocab} rows; there must be from 1 to {}", VOCAB.end())));
    }
    match keys.optional(KEY, VOCAB)? {
        Some(stated) if stated != vocab => {
            Err(keys.error(KEY, format!("is {stated}, but `{embedding}` has {vocab} rows")))
        }
        _ => Ok(vocab),
    }
}

fn name(role: Role) -> String {
    Architecture::Llama.tensor_name(Naming::Gguf, role)
}

fn check_groups(n_heads: usize, n_kv_heads: usize) -> Result<(), String> {
    if n_heads.is_multiple_of(n_kv_heads) {
        return Ok(());
    }
    Err(format!("must divide the number of attention heads, {n_heads}, but is {n_kv_heads}"))
}

fn split_heads(hidden: usize, n_heads: usize) -> Result<usize, String> {
    if hidden.is_multiple_of(n_heads) {
        return Ok(hidden / n_heads);
    }
    Err(format!(
        "must be a multiple of the {n_heads} attention heads unless the width of a head is given, but is {hidden}"
    ))
}

fn check_head_dim(head_dim: usize) -> Result<(), String> {
    if HEAD_DIM.contains(&head_dim) && head_dim.is_multiple_of(2) {
        return Ok(());
    }
    Err(format!("must be even and from {} to {}, but is {head_dim}", HEAD_DIM.start(), HEAD_DIM.end()))
}

fn check_eps(eps: f64) -> Result<f32, String> {
    let rounded = eps as f32;
    if rounded.is_finite() && rounded > 0.0 {
        return Ok(rounded);
    }
    Err(format!("must be above 0 and finite in f32, but is {eps}"))
}

#[cfg(test)]
mod tests;
