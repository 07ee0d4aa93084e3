//! [`Attention`]: causal softmax attention of a ragged batch over KV runs.

mod flash;
mod native;
mod sample;

use pace_kernels::{ActMut, ActRef, AttentionParams, AttentionSegment, DType, KvDType};

use self::flash::FlashAttention;
use self::native::NativeAttention;
pub(crate) use self::sample::SampleKv;
use crate::choice::ByClass;
use crate::profile::act_bytes;
use crate::self_test::{Mismatch, Sample, SelfTest};
use crate::{Backend, BuildCx, Choice, KvBatch, OpCx, OpDType, OpError, OpShape, OpSize, Operator, Work};

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

    /// What tells this attention's measurements and tests from those of others.
    pub fn op_shape(&self, kv_dtype: impl Into<KvDType>) -> OpShape {
        let &Self { n_heads, n_kv_heads, head_dim, .. } = self;
        let size = OpSize::Heads { n_heads, n_kv_heads, head_dim };
        let kv_dtype: KvDType = kv_dtype.into();
        OpShape { op: Operator::Attention, dtype: kv_dtype.into(), size }
    }

    fn params(&self) -> AttentionParams<'static> {
        let &Self { n_heads, n_kv_heads, head_dim, scale } = self;
        AttentionParams { scale, ..AttentionParams::causal(n_heads, n_kv_heads, head_dim) }
    }
}

/// Causal attention.
pub struct Attention {
    shape: AttentionShape,
    kv_dtype: KvDType,
    backends: ByClass<dyn AttentionBackend>,
}

impl Attention {
    /// Attention over keys and values that are cached as `kv_dtype`.
    ///
    /// # Errors
    /// The operator has no such backend, not for this type, not for this head dimension, or not here.
    pub fn new(
        build: &BuildCx,
        shape: AttentionShape,
        kv_dtype: impl Into<KvDType>,
        choice: impl Into<Choice>,
    ) -> Result<Self, OpError> {
        let kv_dtype = kv_dtype.into();
        let choice = build.resolve(shape.op_shape(kv_dtype), choice.into())?;
        let backends = ByClass::build(choice, |backend| -> Box<dyn AttentionBackend> {
            match backend {
                Backend::Flash => Box::new(FlashAttention::table(shape)),
                Backend::Jit => Box::new(FlashAttention::generated(build, shape)),
                Backend::Native => Box::new(NativeAttention::new(shape)),
                Backend::Auto | Backend::Tpp | Backend::Imbps => {
                    unreachable!("`resolve` leaves what there is")
                }
            }
        });
        Ok(Self { shape, kv_dtype, backends })
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
        if plan.rows() > 0 {
            let (backend, built) = self.backends.of(plan.rows());
            let _span = cx.span(Operator::Attention.name(), backend, || self.work(plan, q, out.as_ref()));
            built.forward(cx, layer, plan, kv, q, out);
        }
    }
}

impl Attention {
    /// Every cached key and value is read once; a query row meets the tokens up to its own, by two products each.
    fn work(&self, plan: &AttentionPlan, q: ActRef<'_>, out: ActRef<'_>) -> Work {
        let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = self.shape;
        let kv_bytes = 2 * plan.cached * n_kv_heads * self.kv_dtype.row_bytes(head_dim);
        Work {
            rows: plan.rows(),
            bytes: kv_bytes + act_bytes(q) + act_bytes(out),
            flops: 2 * 2 * plan.visible * n_heads * head_dim,
            unit: SelfTest::shape(self).unit(),
        }
    }
}

/// How the rows of a ragged batch are cut into query tiles. Built once per forward, its memory is reused.
#[derive(Debug)]
pub struct AttentionPlan {
    /// For the tiled kernels.
    tiled: pace_kernels::AttentionPlan,
    /// For the reference.
    cuts: Vec<usize>,
    tiles: Vec<QueryTile>,
    longest: usize,
    /// Tokens of all sequences, the new ones included.
    cached: usize,
    /// Tokens that each new token sees, itself included, summed over the new tokens.
    visible: usize,
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
        Self {
            tiled: pace_kernels::AttentionPlan::new(),
            cuts: vec![0],
            tiles: Vec::new(),
            longest: 0,
            cached: 0,
            visible: 0,
        }
    }
}

impl AttentionPlan {
    /// Plans a batch for layers of `shape` on `threads` threads: for each sequence how many tokens its cache held
    /// before and how many are new.
    ///
    /// # Panics
    /// `threads` is 0.
    pub fn rebuild(
        &mut self,
        shape: &AttentionShape,
        threads: usize,
        seqs: impl Iterator<Item = (usize, usize)> + Clone,
    ) {
        if shape.op_shape(DType::F32).is_tiled() {
            let segment = |(position, tokens)| AttentionSegment { position, tokens };
            self.tiled.rebuild(&shape.params(), threads, seqs.clone().map(segment));
        }
        self.cuts.truncate(1);
        self.tiles.clear();
        (self.longest, self.cached, self.visible) = (0, 0, 0);
        let tile_tokens = native::tile_tokens(shape);
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
                self.cached += past + new;
                self.visible += new * past + new * (new + 1) / 2;
            }
        }
    }

    /// The plan of the tiled kernels.
    fn tiled(&self) -> &pace_kernels::AttentionPlan {
        &self.tiled
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

impl SelfTest for Attention {
    fn shape(&self) -> OpShape {
        self.shape.op_shape(self.kv_dtype)
    }

    fn self_test(&self, cx: &OpCx<'_>) -> Result<(), Mismatch> {
        let native = NativeAttention::new(self.shape);
        // Both read the same int8 blocks: what differs is the rounding to bf16.
        let sample = Sample::new(match self.kv_dtype {
            KvDType::F32 => OpDType::F32,
            KvDType::Bf16 | KvDType::Int8 => OpDType::Bf16,
        });
        let cols = self.shape.n_heads * self.shape.head_dim;
        // A few tokens more than a block, so that it and the last, partial one are seen.
        const TOKENS: usize = 80;
        let kv = match SampleKv::new(&self.shape, self.kv_dtype, TOKENS) {
            Ok(kv) => kv,
            Err(error) => {
                tracing::warn!("{}: {error}; its backends are not tested", self.shape());
                return Ok(());
            }
        };
        for (backend, rows, built) in self.backends.each().filter(|(b, ..)| *b != Backend::Native) {
            let mut plan = AttentionPlan::default();
            plan.rebuild(&self.shape, cx.par.threads(), std::iter::once((TOKENS - rows, rows)));
            let q = sample.rows(rows, cols);
            let run = |by: &dyn AttentionBackend| {
                let mut out = sample.rows(rows, cols);
                by.forward(cx, 0, &plan, &kv, q.rows(rows), out.rows_mut(rows));
                out
            };
            sample.compare(backend, &run(built), &run(&native), rows)?;
        }
        Ok(())
    }

    fn set_native(&mut self) {
        self.backends = ByClass::native(Box::new(NativeAttention::new(self.shape)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_cuts_every_sequence_by_itself() {
        // 32 heads for each KV head: two tokens fill a tile of 64 rows.
        let shape = AttentionShape { n_heads: 32, n_kv_heads: 1, head_dim: 8, scale: 1.0 };
        let mut plan = AttentionPlan::default();
        plan.rebuild(&shape, 1, [(5, 3), (0, 0), (0, 5)].into_iter());
        assert_eq!(plan.rows(), 8);
        assert_eq!(plan.tiled().rows(), 8);
        assert_eq!(plan.longest(), 8);
        assert_eq!(plan.cuts, [0, 2, 3, 5, 7, 8]);
        assert_eq!(plan.tile(1), QueryTile { seq: 0, position: 7, first_row: 2, tokens: 1 });
        assert_eq!(plan.tile(4), QueryTile { seq: 2, position: 4, first_row: 7, tokens: 1 });
        plan.rebuild(&shape, 1, std::iter::empty());
        assert_eq!((plan.rows(), plan.longest()), (0, 0));
    }

    #[test]
    fn a_plan_counts_what_is_read_and_what_is_seen() {
        let shape = AttentionShape { n_heads: 4, n_kv_heads: 2, head_dim: 8, scale: 1.0 };
        let mut plan = AttentionPlan::default();
        // One new token after 5, and 3 new ones after 2; the sequence without new tokens is not read.
        plan.rebuild(&shape, 1, [(5, 1), (7, 0), (2, 3)].into_iter());
        assert_eq!((plan.rows(), plan.longest(), plan.cached), (4, 6, 6 + 5));
        assert_eq!(plan.visible, 6 + (3 + 4 + 5));
        plan.rebuild(&shape, 1, std::iter::once((0, 1)));
        assert_eq!((plan.cached, plan.visible), (1, 1));
    }
}
