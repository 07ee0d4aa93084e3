//! [`StaticKvCache`]: everything up front.

use pace_kernels::{Buffer, DType, KV_BLOCK, KvLayout, KvMut, KvRef, KvRun, Placement, bf16};
use pace_ops::{KvCache, KvError, KvUsage};

use super::{KvCacheKind, KvShape};

/// Room for `max_len` tokens from the start. The blocks of a layer and head follow each other in memory, so a
/// sequence is one run. Memory is zero pages until it is written.
pub struct StaticKvCache {
    shape: KvShape,
    blocks: usize,
    len: usize,
    data: Buffer,
}

impl StaticKvCache {
    /// An empty cache.
    ///
    /// # Errors
    /// There is no memory, or the size overflows.
    pub fn new(shape: KvShape) -> Result<Self, KvError> {
        let blocks = shape.max_len.div_ceil(KV_BLOCK);
        let bytes = [shape.n_layers, shape.n_kv_heads, blocks]
            .into_iter()
            .try_fold(shape.layout.block_bytes(), usize::checked_mul)
            .ok_or(KvError::OutOfMemory { bytes: usize::MAX })?;
        let data = Buffer::zeroed(bytes, Placement::default()).map_err(|_| KvError::OutOfMemory { bytes })?;
        Ok(Self { shape, blocks, len: 0, data })
    }

    /// Elements before the first block of `layer` and `head`.
    fn offset(&self, layer: usize, head: usize) -> usize {
        assert!(layer < self.shape.n_layers && head < self.shape.n_kv_heads, "no such layer or head");
        (layer * self.shape.n_kv_heads + head) * self.blocks * self.shape.layout.block_len()
    }
}

impl KvCache for StaticKvCache {
    fn layout(&self) -> KvLayout {
        self.shape.layout
    }

    fn len(&self) -> usize {
        self.len
    }

    fn reserve(&mut self, len: usize) -> Result<(), KvError> {
        if len > self.shape.max_len {
            return Err(KvError::TooLong { asked: len, max: self.shape.max_len });
        }
        Ok(())
    }

    fn block_mut(&mut self, layer: usize, head: usize, block: usize) -> KvMut<'_> {
        assert!(block < self.blocks, "block was not reserved");
        let len = self.shape.layout.block_len();
        let start = self.offset(layer, head) + block * len;
        match self.shape.layout.dtype() {
            DType::Bf16 => KvMut::Bf16(&mut self.data.as_mut_slice::<bf16>()[start..start + len]),
            _ => KvMut::F32(&mut self.data.as_mut_slice::<f32>()[start..start + len]),
        }
    }

    fn set_len(&mut self, len: usize) {
        assert!(len <= self.shape.max_len, "longer than the cache");
        self.len = len;
    }

    fn for_each_run(&self, layer: usize, head: usize, len: usize, f: &mut dyn FnMut(KvRun<'_>)) {
        let blocks = len.div_ceil(KV_BLOCK);
        assert!(blocks <= self.blocks, "longer than the cache");
        let start = self.offset(layer, head);
        let range = start..start + blocks * self.shape.layout.block_len();
        let blocks = match self.shape.layout.dtype() {
            DType::Bf16 => KvRef::Bf16(&self.data.as_slice::<bf16>()[range]),
            _ => KvRef::F32(&self.data.as_slice::<f32>()[range]),
        };
        f(KvRun { first_token: 0, blocks });
    }

    fn usage(&self) -> KvUsage {
        KvUsage {
            kind: KvCacheKind::Static.name(),
            allocations: 1,
            capacity_rows: self.blocks * KV_BLOCK,
            bytes: self.data.len(),
            bytes_copied: 0,
        }
    }
}
