//! A cache with random keys and values for self-tests and measurements.

use pace_kernels::{Buffer, KV_BLOCK, KvDType, KvLayout, KvMut, KvRun, OutOfMemory, Placement};

use super::AttentionShape;
use crate::self_test::Random;
use crate::{KvBatch, KvCache, KvError, KvUsage};

/// One layer of a sequence, or the same one for every sequence of a batch.
pub(crate) struct SampleKv {
    layout: KvLayout,
    len: usize,
    data: Buffer,
}

impl SampleKv {
    /// `len` tokens of `shape`, stored as `dtype`.
    ///
    /// # Errors
    /// There is no memory.
    pub(crate) fn new(shape: &AttentionShape, dtype: KvDType, len: usize) -> Result<Self, OutOfMemory> {
        let layout = KvLayout::new(dtype, shape.head_dim);
        let bytes = shape.n_kv_heads * len.div_ceil(KV_BLOCK) * layout.block_bytes();
        let mut this = Self { layout, len, data: Buffer::zeroed(bytes, Placement::default())? };
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        let (mut k, mut v) = (vec![0.0; shape.head_dim], vec![0.0; shape.head_dim]);
        for head in 0..shape.n_kv_heads {
            for token in 0..len {
                k.iter_mut().chain(&mut v).for_each(|x| *x = random.next());
                let block = this.block_mut(0, head, token / KV_BLOCK);
                layout.append(block, token % KV_BLOCK, &k, &v);
            }
        }
        Ok(this)
    }

    /// f32 words before a block.
    fn start(&self, head: usize, block: usize) -> usize {
        (head * self.len.div_ceil(KV_BLOCK) + block) * self.layout.block_words()
    }
}

impl KvBatch for SampleKv {
    fn cache(&self, _: usize) -> &dyn KvCache {
        self
    }
}

impl KvCache for SampleKv {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn len(&self) -> usize {
        self.len
    }

    fn reserve(&mut self, len: usize) -> Result<(), KvError> {
        if len > self.len { Err(KvError::TooLong { asked: len, max: self.len }) } else { Ok(()) }
    }

    fn block_mut(&mut self, _: usize, head: usize, block: usize) -> KvMut<'_> {
        let range = self.start(head, block)..self.start(head, block + 1);
        self.layout.view_mut(&mut self.data.as_mut_slice()[range])
    }

    fn set_len(&mut self, len: usize) {
        assert!(len <= self.len, "longer than the sample");
    }

    fn for_each_run(&self, _: usize, head: usize, len: usize, f: &mut dyn FnMut(KvRun<'_>)) {
        let range = self.start(head, 0)..self.start(head, len.div_ceil(KV_BLOCK));
        let blocks = self.layout.view(&self.data.as_slice()[range]);
        f(KvRun { first_token: 0, blocks });
    }

    fn usage(&self) -> KvUsage {
        let (capacity_rows, bytes) = (self.len, self.data.len());
        KvUsage { kind: "sample", allocations: 1, capacity_rows, bytes, bytes_copied: 0 }
    }
}
