//! [`Attention`]: causal softmax attention of a ragged batch over KV runs.

mod native;

use pace_kernels::{ActMut, ActRef};

use self::native::NativeAttention;
use crate::{Backend, KvBatch, OpCx, OpError, Operator};

/// The shape of one layer's attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Dimensions of one head.
    pub head_dim: usize,
    /// Multiplies every score; usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}

impl AttentionShape {
    /// Query heads per KV head.
    pub const fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }
}

/// Causal attention.
pub struct Attention {
    backend: Box<dyn AttentionBackend>,
    shape: AttentionShape,
}

impl Attention {
    /// Builds the operator.
    ///
    /// # Errors
    /// The operator has no such backend.
    pub fn new(shape: AttentionShape, backend: Backend) -> Result<Self, OpError> {
        match Operator::Attention.resolve(backend)? {
            Backend::Native => Ok(Self { backend: Box::new(NativeAttention::new(shape)), shape }),
            other => Err(OpError::Unsupported {
                op: Operator::Attention,
                backend: other,
                available: Operator::Attention.backends(),
            }),
        }
    }

    /// Tokens per query tile: a tile of one KV head has at most 64 rows once the heads of its group are folded in.
    pub fn tile_tokens(shape: &AttentionShape) -> usize {
        (64 / shape.group()).max(1)
    }

    /// Attends the rows of `q` `[rows, n_heads * head_dim]` to `layer` of their sequences' caches, which hold the
    /// batch's own keys and values already, into `out` of the same shape. `kv` has the caches of the plan's
    /// sequences.
    ///
    /// # Panics
    /// Shapes differ from each other or from the plan.
    pub fn forward(
        &self,
        cx: &OpCx<'_>,
        layer: usize,
        plan: &AttentionPlan,
        kv: &dyn KvBatch,
        q: ActRef<'_>,
        out: ActMut<'_>,
    ) {
        let cols = self.shape.n_heads * self.shape.head_dim;
        assert!(q.cols() == cols && out.cols() == cols, "attention: width differs from the heads");
        assert!(q.rows() == plan.rows() && out.rows() == plan.rows(), "attention: rows differ from the plan");
        self.backend.forward(cx, layer, plan, kv, q, out);
    }
}

/// How the rows of a ragged batch are cut into query tiles. Built once per forward, its memory is reused.
#[derive(Debug)]
pub struct AttentionPlan {
    cuts: Vec<usize>,
    tiles: Vec<QueryTile>,
    longest: usize,
}

/// Consecutive new tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueryTile {
    /// Index of the sequence in the batch.
    pub(crate) seq: usize,
    /// Absolute position of the tile's first token.
    pub(crate) position: usize,
    /// Row of the tile's first token in the batch.
    pub(crate) first_row: usize,
    /// Tokens.
    pub(crate) tokens: usize,
}

impl Default for AttentionPlan {
    fn default() -> Self {
        Self { cuts: vec![0], tiles: Vec::new(), longest: 0 }
    }
}

impl AttentionPlan {
    /// Plans a batch: for each sequence how many tokens its cache held before and how many are new, cut into
    /// tiles of at most `tile_tokens`.
    pub fn rebuild(&mut self, seqs: impl Iterator<Item = (usize, usize)>, tile_tokens: usize) {
        self.cuts.truncate(1);
        self.tiles.clear();
        self.longest = 0;
        let mut first_row = 0;
        for (seq, (past, new)) in seqs.enumerate() {
            for start in (0..new).step_by(tile_tokens) {
                let tokens = tile_tokens.min(new - start);
                self.tiles.push(QueryTile { seq, position: past + start, first_row, tokens });
                first_row += tokens;
                self.cuts.push(first_row);
            }
            if new > 0 {
                self.longest = self.longest.max(past + new);
            }
        }
    }

    /// Rows of the batch.
    pub fn rows(&self) -> usize {
        self.cuts.last().copied().unwrap_or(0)
    }

    /// Rows at which tiles begin, and the number of rows.
    pub(crate) fn cuts(&self) -> &[usize] {
        &self.cuts
    }

    pub(crate) fn tile(&self, index: usize) -> QueryTile {
        self.tiles[index]
    }

    /// Tokens of the longest sequence, the new ones included.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }
}

/// One way to compute attention.
trait AttentionBackend: Send + Sync {
    fn forward(
        &self,
        cx: &OpCx<'_>,
        layer: usize,
        plan: &AttentionPlan,
        kv: &dyn KvBatch,
        q: ActRef<'_>,
        out: ActMut<'_>,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_cuts_every_sequence_by_itself() {
        let mut plan = AttentionPlan::default();
        plan.rebuild([(5, 3), (0, 0), (0, 5)].into_iter(), 2);
        assert_eq!(plan.rows(), 8);
        assert_eq!(plan.longest(), 8);
        assert_eq!(plan.cuts, [0, 2, 3, 5, 7, 8]);
        assert_eq!(plan.tile(1), QueryTile { seq: 0, position: 7, first_row: 2, tokens: 1 });
        assert_eq!(plan.tile(4), QueryTile { seq: 2, position: 4, first_row: 7, tokens: 1 });
        plan.rebuild(std::iter::empty(), 2);
        assert_eq!((plan.rows(), plan.longest()), (0, 0));
    }
}
