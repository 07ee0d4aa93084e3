//! What a tier implements for attention: one online-softmax step of a few query rows over one KV
//! block, the fold of two states, and the end of a row.
//!
//! Scores are kept in units of ln 2 (`t = q . k * scale * log2(e)`), so that e^x is 2^x.

use std::ops::Range;

use half::bf16;

use super::{KV_BLOCK, KvRef};
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
    pub(crate) visible: Visible,
    /// `[rows][d]`.
    pub(crate) q: &'a [E],
    /// One block as in [`KvLayout`](crate::KvLayout).
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

    /// Checks that every slice has the length that the rows ask for.
    pub(crate) fn check(&self) {
        let (rows, d, w) = (self.rows(), self.head_dim, self.width());
        assert!(
            d.is_multiple_of(2)
                && self.q.len() == rows * d
                && self.block.len() == (d + w) * KV_BLOCK
                && self.p.len() == rows * KV_BLOCK
                && self.shrink.len() == rows
                && self.l.len() == rows * SUM_LANES
                && self.o.len() == rows * w,
            "slices of an attention step"
        );
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

/// Which tokens of a block the rows of a step see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visible {
    /// Query heads of a KV head: consecutive rows that share a token.
    pub(crate) group: usize,
    /// The position of the first row's token, counted from the block's first one.
    pub(crate) position: i64,
    /// How many tokens a row sees up to its own, at most.
    pub(crate) window: i64,
    /// The end of the sequence, counted as `position`, if rows see what follows them.
    pub(crate) end: Option<i64>,
}

impl Visible {
    /// The tokens of the block that `row` sees.
    pub(crate) fn range(&self, row: usize) -> Range<usize> {
        let next = self.position + (row / self.group) as i64 + 1;
        let clamp = |token: i64| token.clamp(0, KV_BLOCK as i64) as usize;
        clamp(next - self.window)..clamp(self.end.unwrap_or(next))
    }

    /// Whether `rows` rows see all of the block.
    pub(crate) fn whole(&self, rows: usize) -> bool {
        self.range(0).end == KV_BLOCK && self.range(rows - 1).start == 0
    }

    /// The tokens that the rows of a range see together.
    pub(crate) fn union(&self, rows: Range<usize>) -> Range<usize> {
        self.range(rows.start).start..self.range(rows.end - 1).end
    }
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

    /// The elements of blocks of this type.
    ///
    /// # Panics
    /// If they are of the other type.
    fn elements(blocks: KvRef<'_>) -> &[Self];

    /// Copies the columns of `range` of a row of queries, converted.
    fn load_queries(kernels: &Kernels, q: ActRef<'_>, row: usize, range: Range<usize>, out: &mut [Self]);
}

impl KvElement for f32 {
    fn step(kernels: Kernels, _: Option<&AttentionStep>, step: Step<'_, Self>) {
        // SAFETY: the CPU has this table's tier.
        unsafe { (kernels.table().attention.step_f32)(step) }
    }

    fn elements(blocks: KvRef<'_>) -> &[Self] {
        match blocks {
            KvRef::F32(blocks) => blocks,
            KvRef::Bf16(_) => panic!("bf16 blocks in a batch of f32 blocks"),
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

    fn elements(blocks: KvRef<'_>) -> &[Self] {
        match blocks {
            KvRef::Bf16(blocks) => blocks,
            KvRef::F32(_) => panic!("f32 blocks in a batch of bf16 blocks"),
        }
    }

    fn load_queries(kernels: &Kernels, q: ActRef<'_>, row: usize, range: Range<usize>, out: &mut [Self]) {
        match q {
            ActRef::F32(q) => kernels.narrow_bf16(&q.row(row)[range], out),
            ActRef::Bf16(q) => out.copy_from_slice(&q.row(row)[range]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_see_what_lengths_and_windows_say() {
        // Two heads a token; the first token sits on slot 62 of the block.
        let causal = Visible { group: 2, position: 62, window: i64::MAX / 2, end: None };
        assert_eq!(
            [causal.range(0), causal.range(1), causal.range(2), causal.range(9)],
            [0..63, 0..63, 0..64, 0..64]
        );
        let window = Visible { window: 4, ..causal };
        assert_eq!([window.range(0), window.range(2), window.range(6)], [59..63, 60..64, 62..64]);
        assert_eq!(window.union(1..7), 59..64);
        let full = Visible { end: Some(10), position: -5, ..causal };
        assert_eq!(full.union(0..4), 0..10);
        assert!(!causal.whole(2) && Visible { position: 63, ..causal }.whole(900));
        assert!(!Visible { position: 63, window: 64, ..causal }.whole(3));
    }
}
