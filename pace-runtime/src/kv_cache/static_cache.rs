//! [`StaticKvCache`]: everything up front.

use pace_kernels::{
    Buffer, DType, Element, KV_BLOCK, KvLayout, KvMut, KvRef, KvRun, MatMut, Par, Placement, bf16,
};
use pace_ops::{KvCache, KvError, KvRows, KvUsage};

use super::{KvCacheKind, KvShape};

/// Room for `max_len` tokens from the start. The blocks of a layer and head follow each other in memory, so a
/// sequence is one run. Memory is zero pages until it is written.
pub struct StaticKvCache {
    shape: KvShape,
    blocks: usize,
    len: usize,
    data: Buffer,
    /// 0, 1 and so on to the number of KV heads: where the heads of a layer begin.
    heads: Vec<usize>,
}

/// From so many tokens on a second thread saves more time than it takes to wake.
const PARALLEL_TOKENS: usize = 16;

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
        Ok(Self { shape, blocks, len: 0, data, heads: (0..=shape.n_kv_heads).collect() })
    }

    /// Elements before the first block of `layer` and `head`.
    fn offset(&self, layer: usize, head: usize) -> usize {
        assert!(layer < self.shape.n_layers && head < self.shape.n_kv_heads, "no such layer or head");
        (layer * self.shape.n_kv_heads + head) * self.blocks * self.shape.layout.block_len()
    }

    /// Stores `rows` in `layer`, whose elements start at `start`: a matrix of a row for each head, cut into blocks.
    fn append_parallel<E: Element>(
        &mut self,
        par: Par<'_>,
        start: usize,
        rows: KvRows<'_>,
        as_block: fn(&mut [E]) -> KvMut<'_>,
    ) {
        let (layout, heads, blocks) = (self.shape.layout, self.shape.n_kv_heads, rows.blocks());
        let (cols, block_len) = (self.blocks * layout.block_len(), layout.block_len());
        let data = &mut self.data.as_mut_slice::<E>()[start..start + heads * cols];
        let out = MatMut::new(data, heads, cols).into_cols(blocks.start * block_len..blocks.end * block_len);
        par.grid(out, &self.heads, block_len, &mut [], |_, head, block, mut tile| {
            rows.store(&layout, head, blocks.start + block, as_block(tile.row_mut(0)));
        });
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

    fn append(&mut self, par: Par<'_>, layer: usize, rows: KvRows<'_>) {
        assert_eq!(rows.k.cols(), self.shape.n_kv_heads * self.shape.layout.head_dim(), "keys of every head");
        let par = if rows.k.rows() < PARALLEL_TOKENS { Par::seq() } else { par };
        let start = self.offset(layer, 0);
        match self.shape.layout.dtype() {
            DType::Bf16 => self.append_parallel(par, start, rows, |block| KvMut::Bf16(block)),
            _ => self.append_parallel(par, start, rows, |block| KvMut::F32(block)),
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
