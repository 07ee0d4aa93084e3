//! Flash attention: softmax(q K^T) V block by block, never a matrix of scores.
//!
//! Loop nest, for every work item (a tile of query rows, a KV head):
//!
//! ```text
//! for each unit of 512 positions that the tile sees, front to back
//!     for each block of 64 tokens in it
//!         step: scores of all rows, their softmax against the running maximum, then P V
//!     fold the unit's state (m, l, O) into the rows' state
//! sinks join, O / l, store
//! ```
//!
//! A tile is up to 32 rows: all heads of a KV head's group for some tokens, so that K and V are read
//! once for all of them. Prefill and decode are the same code; a decode step is a tile of one token.
//! The tier's kernel is the step. An int8 block is unpacked to bf16 first, once for each tile that reads it, into memory of
//! the thread that stays in its first caches (16 KiB at head dimension 64); there is no other path for int8. See `generic/attention.rs` and `arch/avx512_bf16/attention.rs`. If one
//! tile would keep a thread busy while others idle, its units are spread over threads and folded afterwards.
//!
//! **The same bits** for a row, whatever the batch, the chunks, the threads and the tile-mates:
//! blocks and units lie on absolute positions; a unit starts from nothing and units are folded left
//! to right, so splitting them over threads changes no operation; a row that sees nothing of a block
//! is left out of the step, and a state that has seen nothing is neutral in a fold; what a row does
//! not see of a block gets P = 0, and adding 0 x V changes a sum by no more than the sign of a zero,
//! which `finish` makes positive.
//!
//! **Placement of blocks**, measured as a fraction of a sequential read of the same bytes (one Zen 4 core, 4096
//! tokens, 32 query and 8 KV heads, bf16, head dimension 64 / 128): blocks of a head one after the other 0.90 / 0.85;
//! blocks of all heads for 64 tokens one after the other 0.52 / 0.69; scattered 0.42 / 0.55, where reading
//! scattered blocks and nothing else reaches 0.55 / 0.69. So a cache should keep the blocks of a head together.
//!
//! **Tried and lost**: prefetching the next scattered block, whole or a few lines of each of its pages (0 to
//! -10 %); tiles of 64 rows (0 to -3 %); longest item first throughout, which alternates heads and takes keys and
//! values from farther away (-8 % at head dimension 128 and 2048 tokens).

mod generated;
mod item;
mod kv;
mod plan;
mod tile;

use std::ops::Range;

use half::bf16;

use self::item::Call;
pub(crate) use self::kv::split_scales;
pub use self::kv::{KV_BLOCK, KvLayout, KvMut, KvRef, KvRun};
pub use self::plan::{AttentionPlan, AttentionSegment};
pub(crate) use self::tile::{AttentionTiles, KvElement, Logits, Part, SUM_LANES, State, Step, Unpack};
use crate::jit::AttentionStep;
use crate::{ActMut, ActRef, Kernels, KvDType, MatMut, Par, Scratch};

/// The largest head dimension.
pub(crate) const MAX_HEAD_DIM: usize = 256;

/// What an attention computes.
///
/// Row i of the batch is a token at some position p of its sequence; its query head h attends to the
/// KV head `h / (n_heads / n_kv_heads)` with
/// `out = sum_t softmax_t(cap(scale * q . k_t)) v_t` over the positions t that it sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionParams<'a> {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Dimensions of a head: a multiple of 8, 8 to 256.
    pub head_dim: usize,
    /// Multiplies every product of a query and a key, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Whether a token sees the positions up to its own only, or all of its sequence.
    pub causal: bool,
    /// A causal token sees this many positions, its own included, at most. Above 0.
    pub window: Option<usize>,
    /// A cap c above 0 turns a score s into `c * tanh(s / c)`.
    pub softcap: Option<f32>,
    /// For each query head the score of a sink: it takes part in the softmax, but has no value.
    pub sinks: Option<&'a [f32]>,
}

impl AttentionParams<'_> {
    /// Causal attention with the usual scale and nothing else.
    pub fn causal(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self { n_heads, n_kv_heads, head_dim, scale, causal: true, window: None, softcap: None, sinks: None }
    }

    /// Query heads of a KV head.
    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    fn check(&self) {
        let &Self { n_heads, n_kv_heads, head_dim, .. } = self;
        assert!(
            n_kv_heads > 0 && n_heads > 0 && n_heads.is_multiple_of(n_kv_heads),
            "{n_heads} query heads for {n_kv_heads} KV heads"
        );
        assert!(
            head_dim.is_multiple_of(8) && (8..=MAX_HEAD_DIM).contains(&head_dim),
            "a head dimension of {head_dim}: multiples of 8 up to {MAX_HEAD_DIM} are supported"
        );
        assert!(
            self.window.is_none_or(|window| window > 0 && self.causal),
            "a window that sees nothing, or both ways"
        );
        assert!(self.softcap.is_none_or(|cap| cap > 0.0), "a softcap of {:?}", self.softcap);
        assert!(
            self.sinks.is_none_or(|sinks| sinks.len() == n_heads),
            "one sink for each of {n_heads} heads"
        );
    }
}

/// Where the keys and values of a batch lie: usually one layer of the sequences' KV caches.
pub trait KvSource: Sync {
    /// How a block is laid out. One for the batch.
    fn layout(&self) -> KvLayout;

    /// Calls `f` with the runs of the batch's sequence `seq` and KV head `head` that cover `positions`,
    /// in ascending order and without a gap. `positions` starts at a block's first token; blocks outside
    /// of it may be passed too, and are not read.
    fn for_each_run(&self, seq: usize, head: usize, positions: Range<usize>, f: &mut dyn FnMut(KvRun<'_>));
}

impl Kernels {
    /// Attention of a ragged batch.
    ///
    /// `q` and `out` are `[plan.rows(), n_heads * head_dim]`, f32 or bf16 each; `kv` holds the batch's own
    /// keys and values already. With bf16 KV, queries and probabilities are rounded to
    /// bf16 and everything else is f32: the error of `out` is at most `0.004 * sum p |v|`. With f32 KV it is
    /// at most `1e-5 * sum p |v|` (scores of up to 30). Int8 KV is read as the bf16 numbers nearest to integer times
    /// scale, and then as bf16 KV is, all of it rotated: the error is that of bf16 against these numbers, each of which lies
    /// within half a scale and 2^-9 of itself of what was appended and rotated.
    ///
    /// A row's result has the same bits whatever the rest of the batch, the chunks that its sequence
    /// came in, the plan and the number of threads. Memory outside of `out` is not written; positions that
    /// a row does not see may hold anything in rows that no token was appended to. A NaN in what a row does
    /// see makes NaN of that row.
    ///
    /// Source: Dao, FlashAttention-2 (arXiv 2307.08691); split-KV as in flash-decoding.
    ///
    /// # Panics
    /// If the plan was made for other parameters or another number of rows, shapes differ from the
    /// parameters, or `kv` has blocks of another layout or leaves some out; and as [`Par::run`].
    pub fn attention(
        &self,
        params: &AttentionParams<'_>,
        plan: &AttentionPlan,
        kv: &dyn KvSource,
        q: ActRef<'_>,
        out: ActMut<'_>,
        scratch: &Scratch,
        par: &Par<'_>,
    ) {
        run(*self, None, params, plan, kv, q, out, scratch, par);
    }
}

/// [`Kernels::attention`], by the table's steps or a generated one.
fn run(
    kernels: Kernels,
    generated: Option<&AttentionStep>,
    params: &AttentionParams<'_>,
    plan: &AttentionPlan,
    kv: &dyn KvSource,
    q: ActRef<'_>,
    out: ActMut<'_>,
    scratch: &Scratch,
    par: &Par<'_>,
) {
    params.check();
    assert!(plan.fits(params), "a plan for other attention parameters");
    let cols = params.n_heads.checked_mul(params.head_dim).expect("the width of a batch fits");
    assert!(q.cols() == cols && out.cols() == cols, "attention: widths differ from the heads");
    assert!(q.rows() == plan.rows() && out.rows() == plan.rows(), "attention: rows differ from the plan");
    let layout = kv.layout();
    assert_eq!(layout.head_dim(), params.head_dim, "the head dimension of the KV blocks");

    let call_states = plan.states().checked_mul(item::state_len(plan.tile_rows(), params.head_dim));
    let mut states = scratch.take(call_states.expect("the size of the split states fits"));
    let states = MatMut::new(&mut states, plan.states(), item::state_len(plan.tile_rows(), params.head_dim));
    let call = Call { kernels, generated, params, plan, kv, layout, q, out, states };
    match layout.dtype() {
        KvDType::Bf16 | KvDType::Int8 => call.run::<bf16>(scratch, par),
        KvDType::F32 => call.run::<f32>(scratch, par),
    }
}
