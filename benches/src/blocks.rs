//! Keys and values for attention benches: whole layers of a batch, head after head.

use std::ops::Range;

use pace_kernels::{Buffer, DType, KV_BLOCK, KvLayout, KvRef, KvRun, KvSource, Placement, bf16};

use crate::numbers;

/// The bf16 blocks of some layers; one of them is what attention sees.
pub struct Layers {
    layout: KvLayout,
    memory: Buffer,
    n_kv_heads: usize,
    /// Blocks of a sequence and head.
    blocks: usize,
    layers: usize,
    layer: usize,
}

impl Layers {
    /// At least `bytes` of layers for `sequences` of `tokens`, filled with numbers below 1.
    ///
    /// # Panics
    /// There is too little memory.
    pub fn new(head_dim: usize, n_kv_heads: usize, sequences: usize, tokens: usize, bytes: usize) -> Self {
        let layout = KvLayout::new(DType::Bf16, head_dim);
        let blocks = tokens.div_ceil(KV_BLOCK);
        let layer = sequences * n_kv_heads * blocks * layout.block_bytes();
        let layers = bytes.div_ceil(layer).max(1);
        let memory = Buffer::zeroed(layers * layer, Placement::default());
        let mut memory = memory.unwrap_or_else(|e| panic!("{e}"));
        let period: Vec<bf16> = numbers(3, layout.block_len() + 97).into_iter().map(bf16::from_f32).collect();
        for (i, block) in memory.as_mut_slice::<bf16>().chunks_exact_mut(layout.block_len()).enumerate() {
            block.copy_from_slice(&period[i % 97..][..layout.block_len()]);
        }
        Self { layout, memory, n_kv_heads, blocks, layers, layer: 0 }
    }

    /// How many layers there are.
    pub fn count(&self) -> usize {
        self.layers
    }

    /// Bytes of a layer.
    pub fn layer_bytes(&self) -> usize {
        self.memory.len() / self.layers
    }

    /// Makes `layer` the one that is seen.
    ///
    /// # Panics
    /// There is no such layer.
    pub fn select(&mut self, layer: usize) {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        self.layer = layer;
    }

    /// All of the memory, to measure how fast it can be read.
    pub fn memory(&self) -> &[f32] {
        self.memory.as_slice()
    }
}

impl KvSource for Layers {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn for_each_run(&self, seq: usize, head: usize, positions: Range<usize>, f: &mut dyn FnMut(KvRun<'_>)) {
        let len = self.layout.block_len();
        let layer = self.layer * self.layer_bytes() / size_of::<bf16>();
        let first = layer + (seq * self.n_kv_heads + head) * self.blocks * len;
        let blocks = positions.start / KV_BLOCK..positions.end.div_ceil(KV_BLOCK);
        let run = &self.memory.as_slice::<bf16>()[first + blocks.start * len..first + blocks.end * len];
        f(KvRun { first_token: blocks.start * KV_BLOCK, blocks: KvRef::Bf16(run) });
    }
}
