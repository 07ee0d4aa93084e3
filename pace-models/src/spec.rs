//! [`DecoderSpec`]: an architecture as data. One [`Decoder`](crate::Decoder) reads it; a family of models is
//! a function from its configuration to this struct.

use pace_kernels::Activation;

/// The shape and the switches of a decoder-only transformer. All counts are per model unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// Rows of the embedding, and logits per token.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads` (equal: MHA, 1: MQA, else GQA).
    pub n_kv_heads: usize,
    /// Dimensions of one head; need not be `hidden / n_heads`.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Longest sequence that the model was made for, in tokens, RoPE scaling included.
    pub max_positions: usize,
    /// Added to the mean square in every RMSNorm.
    pub norm_eps: f32,
    /// Between gate and up projection.
    pub activation: Activation,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub out_bias: bool,
    /// Whether gate, up and down projection have a bias.
    pub mlp_bias: bool,
    /// Whether the LM head is the embedding (stored once).
    pub tied_embeddings: bool,
    /// Rotary position embedding.
    pub rope: RopeSpec,
}

/// Rotary position embedding: base frequency and how it is stretched.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How frequencies are changed for long contexts.
    pub scaling: RopeScaling,
}

/// How RoPE frequencies are stretched beyond the length that the model was trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    Default,
    /// All frequencies divided by `factor` (position interpolation).
    Linear {
        /// How many times longer the context becomes.
        factor: f64,
    },
    /// The base grows once a sequence is longer than `original_max` (NTK-aware, HF's `dynamic`).
    Dynamic {
        /// How many times longer the context becomes.
        factor: f64,
        /// The length up to which nothing changes, in tokens.
        original_max: usize,
    },
    /// Llama 3.1's blend: long wavelengths divided by `factor`, short ones kept.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The length that the model was trained on, in tokens.
        original_max: usize,
    },
}
