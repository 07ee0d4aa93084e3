//! [`KvCache`]: what attention needs to know of a key/value cache.

use std::ops::Range;

use pace_kernels::{ActRef, KV_BLOCK, KvLayout, KvMut, KvRun, Par};

/// The keys and values of one sequence, in 64-token blocks per layer and KV head.
///
/// Positions are absolute: block `b` holds the tokens `64 * b ..`. Attention takes lengths, never masks, so rows
/// beyond a sequence's length may hold anything. Implementations live above this crate.
pub trait KvCache: Send + Sync {
    /// How one block is laid out.
    fn layout(&self) -> KvLayout;

    /// Tokens whose keys and values every layer holds.
    fn len(&self) -> usize;

    /// Whether no token is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes room for `len` tokens in all.
    ///
    /// # Errors
    /// The sequence's maximum length is exceeded, or there is no memory.
    fn reserve(&mut self, len: usize) -> Result<(), KvError>;

    /// The block of `layer` and KV head `head` that holds position `64 * block`, to append to. It must have been
    /// reserved.
    fn block_mut(&mut self, layer: usize, head: usize, block: usize) -> KvMut<'_>;

    /// Stores new keys and values of every KV head of `layer`. Their positions must have been reserved.
    ///
    /// Caches whose blocks can be written side by side do it on the threads of `par`.
    ///
    /// # Panics
    /// Keys and values are not of one type and shape, or not of this cache's heads.
    fn append(&mut self, _par: Par<'_>, layer: usize, rows: KvRows<'_>) {
        let layout = self.layout();
        for block in rows.blocks() {
            for head in 0..rows.k.cols() / layout.head_dim() {
                rows.store(&layout, head, block, self.block_mut(layer, head, block));
            }
        }
    }

    /// Declares that every layer holds `len` tokens: more after an append, fewer to drop the newest. O(1).
    fn set_len(&mut self, len: usize);

    /// Calls `f` with the runs that cover the positions `0..len` of `layer` and KV head `head`, in order.
    /// `len` may exceed [`len`](Self::len) by what was appended to this layer in the current forward.
    fn for_each_run(&self, layer: usize, head: usize, len: usize, f: &mut dyn FnMut(KvRun<'_>));

    /// What the cache has used so far.
    fn usage(&self) -> KvUsage;
}

/// The caches of a ragged batch.
pub trait KvBatch: Sync {
    /// The cache of the batch's sequence `seq`.
    fn cache(&self, seq: usize) -> &dyn KvCache;
}

/// Keys and values of tokens that follow each other, `[tokens, n_kv_heads * head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub struct KvRows<'a> {
    /// The first token's position.
    pub first: usize,
    /// The keys.
    pub k: ActRef<'a>,
    /// The values.
    pub v: ActRef<'a>,
}

impl KvRows<'_> {
    /// The blocks that the tokens lie in.
    pub fn blocks(&self) -> Range<usize> {
        self.first / KV_BLOCK..(self.first + self.k.rows()).div_ceil(KV_BLOCK)
    }

    /// Stores what belongs into block `index` of KV head `head`.
    ///
    /// # Panics
    /// `block` is not of this layout, or keys and values are not of one type and shape, or lack the head.
    pub fn store(&self, layout: &KvLayout, head: usize, index: usize, block: KvMut<'_>) {
        let end = self.first + self.k.rows();
        let tokens = self.first.max(index * KV_BLOCK)..end.min((index + 1) * KV_BLOCK);
        if tokens.is_empty() {
            return;
        }
        let (slot, d) = (tokens.start % KV_BLOCK, layout.head_dim());
        let rows = tokens.start - self.first..tokens.end - self.first;
        let own =
            [self.k, self.v].map(|all| all.rows_range(rows.clone()).cols_range(head * d..(head + 1) * d));
        match own.into() {
            (ActRef::F32(k), ActRef::F32(v)) => layout.append_rows(block, slot, k, v),
            (ActRef::Bf16(k), ActRef::Bf16(v)) => layout.append_rows(block, slot, k, v),
            (k, v) => panic!("keys are {}, values {}", k.dtype(), v.dtype()),
        }
    }
}

/// What a sequence's cache costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvUsage {
    /// The cache's name.
    pub kind: &'static str,
    /// Growth events so far; all layers of one event count once.
    pub allocations: usize,
    /// Tokens that fit without growing.
    pub capacity_rows: usize,
    /// Bytes held, all layers.
    pub bytes: usize,
    /// Bytes moved by growing, all layers.
    pub bytes_copied: usize,
}

/// A cache that cannot grow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// The sequence would exceed the length that it was admitted with.
    #[error("the KV cache holds {max} tokens at most, {asked} were asked for")]
    TooLong {
        /// Tokens asked for.
        asked: usize,
        /// The sequence's maximum.
        max: usize,
    },
    /// More allocations than tokens, or none.
    #[error(
        "the KV cache is to grow in {asked} splits (--bmc-splits or PACE_BMC_NUM_SPLITS): right is a number from 1 to \
         {max}, the longest length of the sequence"
    )]
    Splits {
        /// Splits asked for.
        asked: usize,
        /// The sequence's maximum length.
        max: usize,
    },
    /// There is no memory.
    #[error("no memory for {bytes} bytes of KV cache")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
}
