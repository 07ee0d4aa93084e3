//! [`KvCache`]: what attention needs to know of a key/value cache.

use pace_kernels::{KvLayout, KvMut, KvRun};

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

/// What a sequence's cache costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// There is no memory.
    #[error("no memory for {bytes} bytes of KV cache")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
}
