//! [`DecoderSpec`]: an architecture as data. One [`Decoder`](crate::Decoder) reads it; a family of models is
//! a function from its configuration to this struct.

use pace_kernels::{Activation, KV_BLOCK, KvDType, KvLayout, WeightFormat};

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

impl DecoderSpec {
    /// Weights of the model, tied ones counted once.
    pub fn parameters(&self) -> usize {
        self.matrix_parameters() + self.vector_parameters()
    }

    /// Bytes of packed weights: matrices in `format`, norms and biases in f32.
    pub fn weight_bytes(&self, format: WeightFormat) -> usize {
        format.bytes(self.matrix_parameters()) + self.vector_parameters() * size_of::<f32>()
    }

    /// Bytes of keys and values per token, all layers, the scales of int8 included.
    pub fn kv_bytes_per_token(&self, dtype: impl Into<KvDType>) -> usize {
        let block = KvLayout::new(dtype, self.head_dim).block_bytes();
        self.n_layers * self.n_kv_heads * block / KV_BLOCK
    }

    fn matrix_parameters(&self) -> usize {
        let embeddings = if self.tied_embeddings { 1 } else { 2 } * self.vocab_size * self.hidden;
        let attention = (2 * self.n_heads + 2 * self.n_kv_heads) * self.head_dim * self.hidden;
        embeddings + self.n_layers * (attention + 3 * self.ffn * self.hidden)
    }

    pub(crate) fn vector_parameters(&self) -> usize {
        let qkv = usize::from(self.qkv_bias) * (self.n_heads + 2 * self.n_kv_heads) * self.head_dim;
        let out = usize::from(self.out_bias) * self.hidden;
        let mlp = usize::from(self.mlp_bias) * (2 * self.ffn + self.hidden);
        self.hidden + self.n_layers * (2 * self.hidden + qkv + out + mlp)
    }
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
    /// Every frequency divided by a factor of its own, as GGUF files store `llama3` (`rope_freqs.weight`).
    Factors {
        /// The divisor of each frequency, from the highest frequency down: `head_dim / 2` positive numbers.
        factors: Vec<f32>,
    },
}
