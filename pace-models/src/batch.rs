//! Ragged batches: [`Sequence`] is what a forward reads and advances, [`Workspace`] the memory it reuses.

use pace_kernels::{ActBuf, ActRef, DType};
use pace_ops::{AttentionPlan, KvCache};

use crate::DecoderSpec;

/// One sequence of a ragged batch: its cache and the tokens that the next forward appends.
pub struct Sequence {
    /// Keys and values of the tokens so far; room for the new ones must have been reserved.
    pub kv: Box<dyn KvCache>,
    /// Tokens that the next forward appends; empty: the sequence sits out.
    pub input: Vec<u32>,
    /// The length, in tokens, that length-dependent RoPE frequencies (`dynamic`) are computed for, if it exceeds
    /// the length after this forward: a prompt fed in chunks is rotated as if fed at once.
    pub rope_len: usize,
    /// How many of the last new tokens need logits.
    pub outputs: usize,
}

impl Sequence {
    /// Rows that the next forward leaves in [`Workspace::outputs`] for this sequence.
    pub fn output_rows(&self) -> usize {
        self.outputs.min(self.input.len())
    }
}

/// Activations of a forward, grown to the largest batch seen and reused. One per engine.
pub struct Workspace {
    /// The residual stream `[rows, hidden]`.
    pub(crate) x: ActBuf,
    /// Normalised rows `[rows, hidden]`.
    pub(crate) normed: ActBuf,
    /// Queries, keys and values `[rows, (n_heads + 2 * n_kv_heads) * head_dim]`.
    pub(crate) qkv: ActBuf,
    /// Attention's result `[rows, n_heads * head_dim]`.
    pub(crate) attn: ActBuf,
    /// Rows kept for the LM head, normalised `[outputs, hidden]`.
    pub(crate) out: ActBuf,
    pub(crate) output_rows: usize,
    pub(crate) plan: AttentionPlan,
    pub(crate) inv_freq: Vec<f64>,
}

impl Workspace {
    /// A workspace for models of this spec with activations in `dtype` (f32 or bf16).
    pub fn new(spec: &DecoderSpec, dtype: DType) -> Self {
        let heads = spec.n_heads * spec.head_dim;
        Self {
            x: ActBuf::new(dtype, spec.hidden),
            normed: ActBuf::new(dtype, spec.hidden),
            qkv: ActBuf::new(dtype, heads + 2 * spec.n_kv_heads * spec.head_dim),
            attn: ActBuf::new(dtype, heads),
            out: ActBuf::new(dtype, spec.hidden),
            output_rows: 0,
            plan: AttentionPlan::default(),
            inv_freq: Vec::new(),
        }
    }

    /// The rows that the last forward kept, in the order of the batch's sequences: `[rows, hidden]`, ready for
    /// [`Model::logits`](crate::Model::logits).
    pub fn outputs(&self) -> ActRef<'_> {
        self.out.rows(self.output_rows)
    }
}
