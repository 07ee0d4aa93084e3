//! The tiles of the driver by AMX.
//!
//! Loop nest: strips of 32 columns, or of 64 for up to 16 rows { steps, 16 at a time { 1 or 2 loads of activations, 2 or 4 of
//! weights, 4 products of 16 x 16 sums } }. The panel of the other tiers is what the instructions read: 16 steps of 16
//! columns are a tile. Steps that do not fill one are copied to a buffer with zeros behind them. Up to 16 rows prefetch the panel
//! two products ahead: without it, decode has 0.7 of that speed.
//!
//! int8: a group of activations is summed by products of its own, whose sums go through memory to the vector registers that scale
//! them, while the next group is multiplied. Groups below 64 inputs leave so little to multiply between that the tiles of
//! VNNI are as fast, or a little faster. Lost: two buffers in turns, whose addresses are equal but for a multiple of 4 KiB, so that
//! loads from one wait for stores to the other.

use std::arch::x86_64::_mm512_add_epi32;

use super::super::avx512_vnni;
use super::super::avx512_vnni::LanesVnni;
use super::dots::{
    Layout, Operands, PREFETCH_BYTES, SIDE, Shapes, add_bf16, add_int8, clear, configure, load, release,
    store,
};
use crate::gemm::tile::{Dots, MAX_ROWS, PREFETCH_STEPS, TileArgs};
use crate::generic::tile::{add_row, group_scales};

/// Rows of the largest tile.
pub(super) const ROWS: usize = 2 * SIDE;

/// Columns of the widest panel.
const WIDTH: usize = 64;

/// Bytes of a row of activations that a product takes.
const ROW_BYTES: usize = 4 * SIDE;

/// Steps that do not fill a product, with zeros behind them.
#[repr(align(64))]
struct Tail {
    a: [[u8; ROW_BYTES]; ROWS],
    w: [u8; SIDE * WIDTH * 4],
}

impl Tail {
    /// `steps` steps from the step `first` of a tile on.
    ///
    /// # Safety
    /// What `t` describes can be read; the steps are among its own, below [`SIDE`].
    unsafe fn new(t: &TileArgs, first: usize, steps: usize) -> Self {
        let mut this = Self { a: [[0; ROW_BYTES]; ROWS], w: [0; SIDE * WIDTH * 4] };
        for (r, row) in this.a[..t.rows].iter_mut().enumerate() {
            // SAFETY: each row has 4 bytes a step.
            unsafe {
                t.a.add(r * t.a_stride + first * 4).copy_to_nonoverlapping(row.as_mut_ptr(), steps * 4);
            }
        }
        // SAFETY: the steps of a panel lie one after the other.
        unsafe {
            let w = t.w.add(first * t.width * 4);
            w.copy_to_nonoverlapping(this.w.as_mut_ptr(), steps * t.width * 4);
        }
        this
    }

    /// These steps as one product, for the strip from `column` on.
    fn operands(&self, t: &TileArgs, column: usize, quads: usize) -> Operands {
        let (a, w) = (self.a.as_ptr().cast::<u8>(), self.w.as_ptr().wrapping_add(column * 4));
        let below = a.wrapping_add(SIDE * ROW_BYTES);
        let prefetch = self.a.as_ptr().cast();
        Operands {
            a,
            below,
            a_stride: ROW_BYTES,
            w,
            w_stride: t.width * 4,
            quads,
            count: 1,
            prefetch,
            prefetch_step: 0,
        }
    }
}

/// Products of `quads` steps each from the step `first` on.
fn operands(t: &TileArgs, column: usize, first: usize, quads: usize, count: usize) -> Operands {
    let a = t.a.wrapping_add(first * 4);
    Operands {
        a,
        below: a.wrapping_add(SIDE * t.a_stride),
        a_stride: t.a_stride,
        w: t.w.wrapping_add((first * t.width + column) * 4),
        w_stride: t.width * 4,
        quads,
        count,
        prefetch: t.a,
        prefetch_step: 0,
    }
}

fn layout(t: &TileArgs) -> Layout {
    match (t.rows > SIDE, t.width >= WIDTH) {
        (true, _) => Layout::TwoByTwo,
        (false, true) => Layout::Four,
        (false, false) => Layout::Two,
    }
}

fn shapes(t: &TileArgs, quads: usize) -> Shapes {
    Shapes::new(t.rows.min(SIDE), t.rows.saturating_sub(SIDE), quads)
}

/// See [`Table::tile_bf16`](crate::table::Table). A sum adds, 16 steps at a time, the sum of their products of first elements
/// and that of second ones.
///
/// # Safety
/// The CPU has this tier; what `t` describes is accessible. There may be up to [`ROWS`] rows.
pub(super) unsafe fn bf16(t: &TileArgs) {
    let (count, rest) = (t.steps / SIDE, t.steps % SIDE);
    let (layout, stride) = (layout(t), t.sums_stride * size_of::<f32>());
    // SAFETY: the caller's promises are those of each call: strips lie in the panel and the sums.
    unsafe {
        let tail = (rest > 0).then(|| Tail::new(t, count * SIDE, rest));
        configure(&shapes(t, SIDE));
        for column in (0..t.width).step_by(layout.width()) {
            let sums = t.sums.add(column).cast::<u8>();
            if t.resume {
                load(layout, sums, stride);
            } else {
                clear();
            }
            if count > 0 {
                let mut o = operands(t, column, 0, SIDE, count);
                let at = column / layout.width() * count * PREFETCH_BYTES;
                if at < t.prefetch_lines * t.steps / PREFETCH_STEPS * 64 {
                    (o.prefetch, o.prefetch_step) = (t.prefetch.wrapping_add(at), PREFETCH_BYTES);
                }
                add_bf16(layout, o);
            }
            if let Some(tail) = &tail {
                add_bf16(layout, tail.operands(t, column, SIDE));
            }
            store(layout, sums, stride);
        }
        release();
    }
}

/// See [`Table::tile_int8`](crate::table::Table).
///
/// # Safety
/// As [`bf16`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn int8(t: &TileArgs) {
    // SAFETY: passed on to the caller.
    unsafe {
        if t.rows <= MAX_ROWS || t.group_steps < SIDE {
            return by_vnni(t);
        }
        match (layout(t), t.w_scales.is_null(), t.has_min) {
            (Layout::Four, true, _) => strips::<4, false, false>(t),
            (Layout::Four, false, false) => strips::<4, true, false>(t),
            (Layout::Four, false, true) => strips::<4, true, true>(t),
            (_, true, _) => strips::<2, false, false>(t),
            (_, false, false) => strips::<2, true, false>(t),
            (_, false, true) => strips::<2, true, true>(t),
        }
    }
}

/// By the tier below, whose tiles have fewer rows.
///
/// # Safety
/// As [`int8`].
unsafe fn by_vnni(t: &TileArgs) {
    for first in (0..t.rows).step_by(MAX_ROWS) {
        let rows = TileArgs {
            a: t.a.wrapping_add(first * t.a_stride),
            sums: t.sums.wrapping_add(first * t.sums_stride),
            rows: MAX_ROWS.min(t.rows - first),
            a_scales: t.a_scales.wrapping_add(first * t.a_groups),
            a_offsets: t.a_offsets.wrapping_add(first * t.a_groups),
            prefetch_lines: if first == 0 { t.prefetch_lines } else { 0 },
            ..*t
        };
        // SAFETY: the caller's promises; these are rows of the tile.
        unsafe { (avx512_vnni::TABLE.tile_int8)(&rows) }
    }
}

/// The integer sums of a group: rows of N vectors.
#[repr(align(64))]
struct Sums([u8; ROWS * 2 * SIDE * 4]);

/// # Safety
/// As [`int8`], and N vectors are a strip.
#[inline(always)]
unsafe fn strips<const N: usize, const SCALED: bool, const MIN: bool>(t: &TileArgs) {
    let (layout, quads) = (layout(t), SIDE);
    let mut sums = Sums([0; ROWS * 2 * SIDE * 4]);
    // SAFETY: the caller's promises are those of each call: groups and strips lie in the panel.
    unsafe {
        let rest = t.steps % quads;
        let tail = (rest > 0).then(|| Tail::new(t, t.steps - rest, rest));
        configure(&shapes(t, quads));
        for column in (0..t.width).step_by(layout.width()) {
            let mut before = None;
            for (group, first) in (0..t.steps).step_by(t.group_steps).enumerate() {
                let steps = t.group_steps.min(t.steps - first);
                clear();
                if steps >= quads {
                    add_int8(layout, operands(t, column, first, quads, steps / quads));
                }
                if let (Some(tail), true) = (&tail, !steps.is_multiple_of(quads)) {
                    add_int8(layout, tail.operands(t, column, quads));
                }
                if let Some(before) = before.replace(group) {
                    add_sums::<N, SCALED, MIN>(t, before, column, &sums);
                }
                store(layout, sums.0.as_mut_ptr(), N * ROW_BYTES);
            }
            if let Some(last) = before {
                add_sums::<N, SCALED, MIN>(t, last, column, &sums);
            }
        }
        release();
    }
}

/// Adds the integer sums of a group to the sums of a strip, as the other tiers do.
///
/// # Safety
/// As [`strips`].
#[inline(always)]
unsafe fn add_sums<const N: usize, const SCALED: bool, const MIN: bool>(
    t: &TileArgs,
    group: usize,
    column: usize,
    sums: &Sums,
) {
    let lanes = LanesVnni;
    // SAFETY: the caller's promises are those of each call; the buffer has rows of N vectors.
    unsafe {
        let (scales, mins) = group_scales::<_, N, SCALED, MIN>(lanes, t, group, column);
        for r in 0..t.rows {
            let offset = lanes.splat_i32(*t.a_offsets.add(r * t.a_groups + group));
            let mut acc = [lanes.zero(); N];
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = lanes.load(sums.0.as_ptr().add((r * N + v) * ROW_BYTES));
                if !MIN {
                    *acc = _mm512_add_epi32(*acc, offset);
                }
                if group == 0 && !t.resume {
                    let at = t.sums.add(r * t.sums_stride + column + v * SIDE);
                    lanes.store(at.cast(), lanes.zero());
                }
            }
            add_row::<_, N, SCALED, MIN>(lanes, t, r, group, column, acc, scales, mins);
        }
    }
}
