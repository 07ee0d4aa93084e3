//! What a tier implements for attention: one online-softmax step of a few query rows over one KV
//! block, the fold of two states, and the end of a row.
//!
//! Scores are kept in units of ln 2 (`t = q . k * scale * log2(e)`), so that e^x is 2^x.

use std::ops::Range;

use half::bf16;

use super::{KV_BLOCK, KvLayout, KvRef, MAX_HEAD_DIM};
use crate::jit::AttentionStep;
use crate::{ActRef, Element, Kernels};

/// Lanes that a row's sum is kept in during a unit.
pub(crate) const SUM_LANES: usize = 16;

/// The running maximum of a row that has seen nothing. Finite, so that differences are not NaN.
pub(crate) const NOTHING: f32 = -1e30;

/// The attention kernels of a tier.
///
/// # Safety
/// As for [`Table`](crate::table::Table).
pub(crate) struct AttentionTiles {
    pub(crate) step_bf16: unsafe fn(Step<'_, bf16>),
    pub(crate) step_f32: unsafe fn(Step<'_, f32>),
    pub(crate) unpack: unsafe fn(Unpack<'_>),
    /// total = total and then part.
    pub(crate) fold: unsafe fn(&mut State<'_>, Part<'_>),
    /// Divides a row by its sum after a sink (in units of ln 2, or -inf) has joined.
    pub(crate) finish: unsafe fn(f32, f32, f32, &mut [f32]),
}

/// One online-softmax step: every row takes in the tokens of one block that it sees, at least one.
///
/// `d` is the head dimension, `w` the values' width in the block.
pub(crate) struct Step<'a, E> {
    pub(crate) head_dim: usize,
    pub(crate) logits: Logits,
    /// For each row a bit for each token that it sees, consecutive ones; `None` if the rows see all.
    pub(crate) seen: Option<&'a [u64]>,
    /// `[rows][d]`.
    pub(crate) q: &'a [E],
    /// One block as in [`KvLayout`].
    pub(crate) block: &'a [E],
    /// Temporary: scores and probabilities, `[rows][64]`.
    pub(crate) p: &'a mut [f32],
    /// Temporary: the factor that each row's old state shrinks by.
    pub(crate) shrink: &'a mut [f32],
    /// The running maximum of each row.
    pub(crate) m: &'a mut [f32],
    /// The running sum of each row, in lanes: `[rows][16]`.
    pub(crate) l: &'a mut [f32],
    /// The running weighted values: `[rows][w]`.
    pub(crate) o: &'a mut [f32],
}

impl<E: KvElement> Step<'_, E> {
    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.m.len()
    }

    /// The width of a row of values, the padding of the last group included.
    pub(crate) fn width(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    /// The tokens that a row sees.
    pub(crate) fn seen(&self, row: usize) -> Range<usize> {
        self.seen_together(row..row + 1)
    }

    /// The tokens between the first and the last one that some row of a range sees.
    pub(crate) fn seen_together(&self, rows: Range<usize>) -> Range<usize> {
        seen_together(self.seen.map(|seen| &seen[rows]))
    }

    /// Checks that every slice has the length that the rows ask for.
    pub(crate) fn check(&self) {
        let (rows, d, w) = (self.rows(), self.head_dim, self.width());
        assert!(
            d.is_multiple_of(2)
                && self.q.len() == rows * d
                && self.block.len() == (d + w) * KV_BLOCK
                && self.seen.is_none_or(|seen| seen.len() == rows)
                && self.p.len() == rows * KV_BLOCK
                && self.shrink.len() == rows
                && self.l.len() == rows * SUM_LANES
                && self.o.len() == rows * w,
            "slices of an attention step"
        );
    }
}

/// The tokens between the first and the last one that some row sees, as in [`Step`].
pub(super) fn seen_together(seen: Option<&[u64]>) -> Range<usize> {
    let Some(seen) = seen else { return 0..KV_BLOCK };
    let seen = seen.iter().fold(0, |all, seen| all | seen);
    seen.trailing_zeros() as usize..KV_BLOCK - seen.leading_zeros() as usize
}

/// What a step needs of an int8 block, as a bf16 block: each element times the scale of its row, to the nearest bf16,
/// ties to even. The same bits on every tier if the scales are those of quantised rows.
pub(crate) struct Unpack<'a> {
    /// A multiple of 2.
    pub(crate) head_dim: usize,
    /// The tokens that are seen. Values of others may be left as they are.
    pub(crate) tokens: Range<usize>,
    /// One block as in [`KvLayout`].
    pub(crate) block: &'a [i8],
    /// One block as in [`KvLayout`].
    pub(crate) out: &'a mut [bf16],
}

impl Unpack<'_> {
    /// Elements of the block in bf16.
    pub(crate) const fn len(layout: &KvLayout) -> usize {
        layout.block_len() - layout.k_start()
    }
}

/// From a product of query and key to a score in units of ln 2.
#[derive(Clone, Copy)]
pub(crate) enum Logits {
    /// `x * factor`.
    Scaled {
        /// scale * log2(e).
        factor: f32,
    },
    /// `cap * tanh(x * inner)`.
    Capped {
        /// scale / cap.
        inner: f32,
        /// cap * log2(e).
        cap: f32,
    },
}

/// What rows have taken in.
pub(crate) struct State<'a> {
    pub(crate) m: &'a mut [f32],
    pub(crate) l: &'a mut [f32],
    /// `[rows][w]`.
    pub(crate) o: &'a mut [f32],
}

impl State<'_> {
    /// Nothing taken in yet.
    pub(crate) fn clear(&mut self) {
        self.m.fill(NOTHING);
        self.l.fill(0.0);
        self.o.fill(0.0);
    }

    /// The same, to read.
    pub(crate) fn as_part(&self) -> Part<'_> {
        Part { m: self.m, l: self.l, o: self.o }
    }
}

/// A state to read, of the same rows as the one that it is folded into.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) m: &'a [f32],
    pub(crate) l: &'a [f32],
    pub(crate) o: &'a [f32],
}

/// A type that keys and values are stored as.
pub(crate) trait KvElement: Element {
    /// One step by the table's kernel, or by a generated one if there is one for this type.
    fn step(kernels: Kernels, generated: Option<&AttentionStep>, step: Step<'_, Self>);

    /// The elements of a block of `layout`: as they are, or unpacked to `out`.
    fn block<'b>(
        kernels: Kernels,
        layout: &KvLayout,
        tokens: Range<usize>,
        block: KvRef<'b>,
        out: &'b mut [Self],
    ) -> &'b [Self];

    /// Copies the columns of `range` of a row of queries, converted.
    fn load_queries(kernels: &Kernels, q: ActRef<'_>, row: usize, range: Range<usize>, out: &mut [Self]);

    /// The same of one head, rotated as keys of int8 are.
    fn load_rotated(kernels: &Kernels, q: ActRef<'_>, row: usize, head: Range<usize>, out: &mut [Self]) {
        let mut rotated = [0.0; MAX_HEAD_DIM];
        let rotated = &mut rotated[..head.len()];
        <f32 as KvElement>::load_queries(kernels, q, row, head, rotated);
        kernels.rotate(rotated);
        out.iter_mut().zip(&*rotated).for_each(|(out, &x)| *out = Self::from_f32(x));
    }
}

impl KvElement for f32 {
    fn step(kernels: Kernels, _: Option<&AttentionStep>, step: Step<'_, Self>) {
        // SAFETY: the CPU has this table's tier.
        unsafe { (kernels.table().attention.step_f32)(step) }
    }

    fn block<'b>(
        _: Kernels,
        layout: &KvLayout,
        _: Range<usize>,
        block: KvRef<'b>,
        _: &'b mut [Self],
    ) -> &'b [Self] {
        match block {
            KvRef::F32(block) => block,
            KvRef::Bf16(_) | KvRef::Int8(_) => unreachable!("the layout is {layout:?}"),
        }
    }

    fn load_queries(kernels: &Kernels, q: ActRef<'_>, row: usize, range: Range<usize>, out: &mut [Self]) {
        match q {
            ActRef::F32(q) => out.copy_from_slice(&q.row(row)[range]),
            ActRef::Bf16(q) => kernels.widen_bf16(&q.row(row)[range], out),
        }
    }
}

impl KvElement for bf16 {
    fn step(kernels: Kernels, generated: Option<&AttentionStep>, step: Step<'_, Self>) {
        match generated {
            Some(generated) => generated.run(step),
            // SAFETY: the CPU has this table's tier.
            None => unsafe { (kernels.table().attention.step_bf16)(step) },
        }
    }

    fn block<'b>(
        kernels: Kernels,
        layout: &KvLayout,
        tokens: Range<usize>,
        block: KvRef<'b>,
        out: &'b mut [Self],
    ) -> &'b [Self] {
        match block {
            KvRef::Bf16(block) => block,
            KvRef::Int8(block) => {
                let len = Unpack::len(layout);
                assert!(block.len() == layout.block_len() && out.len() == len, "slices of an int8 block");
                let unpack = Unpack { head_dim: layout.head_dim(), tokens, block, out: &mut *out };
                // SAFETY: the CPU has this table's tier.
                unsafe { (kernels.table().attention.unpack)(unpack) };
                out
            }
            KvRef::F32(_) => unreachable!("the layout is {layout:?}"),
        }
    }

    fn load_queries(kernels: &Kernels, q: ActRef<'_>, row: usize, range: Range<usize>, out: &mut [Self]) {
        match q {
            ActRef::F32(q) => kernels.narrow_bf16(&q.row(row)[range], out),
            ActRef::Bf16(q) => out.copy_from_slice(&q.row(row)[range]),
        }
    }
}
