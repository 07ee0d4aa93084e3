//! Tiles over weights of 4 bits, unpacked in registers, and the same weights unpacked to int8 for many rows.
//!
//! Loop nest: groups of 32 or 16 activations { strips of N vectors { 4 or 2 lines { N loads, each as two nibbles a byte; rows { 2
//! splats; 2 N multiply-adds } }; N conversions and multiply-adds a row } }. Groups come outside of strips, so that
//! records are read once, front to back. Registers on AVX-512: at 8 rows by 2 vectors 16 sums, 4 weights, a mask and a splat;
//! one or two rows take 4 vectors, because two sums would wait for each other. f32 sums live in memory: a group adds to each
//! once, after 8 multiply-adds of its own.
//!
//! An integer sum is exact, and the f32 operations are those of the int8 tile in its order, so both ways have the same
//! bits.

// The loops run over registers, which indices name.
#![allow(clippy::needless_range_loop)]

use super::tile::{add_group, clear, offsets};
use crate::gemm::tile::{Dots, MAX_4_BIT_ROWS, PREFETCH_STEPS, TileArgs};

/// Inputs of a line of a panel.
const LINE_INPUTS: usize = 8;

/// Computes `t.rows` rows, 1 to [`MAX_4_BIT_ROWS`].
///
/// # Safety
/// The CPU has the tier of `lanes`; what `t` describes is accessible, its weights being records of 4 bits.
#[inline(always)]
pub(crate) unsafe fn tile<L: Dots>(lanes: L, t: &TileArgs) {
    // SAFETY: passed on to the caller.
    unsafe {
        match t.rows {
            1 => rows::<L, 1>(lanes, t),
            2 => rows::<L, 2>(lanes, t),
            3 => rows::<L, 3>(lanes, t),
            4 => rows::<L, 4>(lanes, t),
            5 => rows::<L, 5>(lanes, t),
            6 => rows::<L, 6>(lanes, t),
            7 => rows::<L, 7>(lanes, t),
            MAX_4_BIT_ROWS => rows::<L, MAX_4_BIT_ROWS>(lanes, t),
            rows => unreachable!("a tile has 1 to {MAX_4_BIT_ROWS} rows, not {rows}"),
        }
    }
}

/// # Safety
/// As [`tile`], and `t.rows` is R.
#[inline(always)]
unsafe fn rows<L: Dots, const R: usize>(lanes: L, t: &TileArgs) {
    let wide = R <= 2 && t.width >= 4 * L::LANES;
    // SAFETY: passed on to the caller; 4 vectors divide a panel that has as many, 2 any.
    unsafe {
        if !t.resume {
            for column in (0..t.width).step_by(2 * L::LANES) {
                clear::<L, R, 2>(lanes, t, column);
            }
        }
        match (t.four_bits.is_e2m1, t.has_min, wide) {
            (true, _, true) => of_group::<L, R, 4, true, false>(lanes, t),
            (true, _, false) => of_group::<L, R, 2, true, false>(lanes, t),
            (false, true, true) => of_group::<L, R, 4, false, true>(lanes, t),
            (false, true, false) => of_group::<L, R, 2, false, true>(lanes, t),
            (false, false, true) => of_group::<L, R, 4, false, false>(lanes, t),
            (false, false, false) => of_group::<L, R, 2, false, false>(lanes, t),
        }
    }
}

/// Picks the lines that a group of activations multiplies.
///
/// # Safety
/// As [`rows`], and N vectors divide the panel. The sums are there to be added to.
#[inline(always)]
unsafe fn of_group<L: Dots, const R: usize, const N: usize, const E2M1: bool, const MIN: bool>(
    lanes: L,
    t: &TileArgs,
) {
    // SAFETY: passed on to the caller.
    unsafe {
        match t.group_steps * 4 / LINE_INPUTS {
            4 => groups::<L, R, N, E2M1, MIN, 4>(lanes, t),
            2 => groups::<L, R, N, E2M1, MIN, 2>(lanes, t),
            lines => unreachable!("a group of {lines} lines"),
        }
    }
}

/// # Safety
/// As [`of_group`], and a group of activations multiplies LINES lines.
#[inline(always)]
unsafe fn groups<
    L: Dots,
    const R: usize,
    const N: usize,
    const E2M1: bool,
    const MIN: bool,
    const LINES: usize,
>(
    lanes: L,
    t: &TileArgs,
) {
    let (line, head) = (t.width * 4, t.w_stride * size_of::<u16>());
    let record_bytes = head + ((LINES * line) << t.w_shift);
    let table = lanes.table(&t.four_bits.int8);
    let mut prefetch = t.prefetch;
    for group in 0..t.steps / (2 * LINES) {
        let part = group & ((1 << t.w_shift) - 1);
        for _ in 0..2 * LINES / PREFETCH_STEPS * t.prefetch_lines {
            lanes.prefetch(prefetch);
            prefetch = prefetch.wrapping_add(64);
        }
        // SAFETY: the group's lines lie in its record, and the strips in the panel.
        unsafe {
            let record = t.w.add((group >> t.w_shift) * record_bytes);
            let lines = record.add(head + part * LINES * line);
            for column in (0..t.width).step_by(N * L::LANES) {
                strip::<L, R, N, E2M1, MIN, LINES>(lanes, t, table, record, lines, group, column);
            }
        }
    }
}

/// Adds a group to the sums of N vectors from `column` on. The integer sums start where weights without their zero would: at
/// -8 or -128 times the sum of the activations.
///
/// # Safety
/// As [`groups`]; `record` is the group's, `lines` are its own, and the strip lies in the panel.
#[inline(always)]
unsafe fn strip<
    L: Dots,
    const R: usize,
    const N: usize,
    const E2M1: bool,
    const MIN: bool,
    const LINES: usize,
>(
    lanes: L,
    t: &TileArgs,
    table: L::Table,
    record: *const u8,
    lines: *const u8,
    group: usize,
    column: usize,
) {
    let shift = if E2M1 { 0 } else { 4 };
    // SAFETY: the caller's promises are those of each call; `a` has R rows of the steps.
    unsafe {
        let start = || if MIN { [[lanes.zero(); N]; R] } else { offsets(lanes, t, group, shift) };
        let mut acc = start();
        if !E2M1 {
            for r in 0..R {
                for v in 0..N {
                    acc[r][v] = lanes.start_nibbles(acc[r][v]);
                }
            }
        }
        // Several rows, unrolled over all lines, are spilled.
        let count = if R == 1 { LINES } else { t.group_steps / 2 };
        for i in 0..count {
            let line = lines.add((i * t.width + column) * 4);
            let (low, high) = nibbles::<L, N, E2M1>(lanes, table, line);
            let a = t.a.add((group * LINES + i) * LINE_INPUTS);
            for r in 0..R {
                let a = a.add(r * t.a_stride);
                let (first, second) = (lanes.splat(a), lanes.splat(a.add(4)));
                for v in 0..N {
                    if E2M1 {
                        acc[r][v] = lanes.dot_int8(acc[r][v], low[v], first);
                        acc[r][v] = lanes.dot_int8(acc[r][v], high[v], second);
                    } else {
                        acc[r][v] = lanes.dot_nibbles(acc[r][v], low[v], first);
                        acc[r][v] = lanes.dot_nibbles(acc[r][v], high[v], second);
                    }
                }
            }
        }
        if !E2M1 {
            let start = start();
            for r in 0..R {
                for v in 0..N {
                    acc[r][v] = lanes.end_nibbles(acc[r][v], start[r][v]);
                }
            }
        }
        let (mut scales, mut mins) = ([lanes.zero(); N], [lanes.zero(); N]);
        for v in 0..N {
            let stored = record.cast::<u16>().add(column + v * L::LANES);
            scales[v] = if E2M1 { lanes.load_bf16(stored) } else { lanes.load_f16(stored) };
            if MIN {
                mins[v] = lanes.load_f16(stored.add(t.width));
            }
        }
        add_group::<L, R, N, true, MIN>(lanes, t, group, column, acc, scales, mins);
    }
}

/// The low and the high nibbles of N vectors, as integers or looked up.
///
/// # Safety
/// N vectors can be read.
#[inline(always)]
unsafe fn nibbles<L: Dots, const N: usize, const E2M1: bool>(
    lanes: L,
    table: L::Table,
    line: *const u8,
) -> ([L::V; N], [L::V; N]) {
    let (mut low, mut high) = ([lanes.zero(); N], [lanes.zero(); N]);
    for v in 0..N {
        // SAFETY: passed on to the caller.
        let packed = unsafe { lanes.load(line.add(v * L::LANES * 4)) };
        (low[v], high[v]) = (lanes.low_nibbles(packed), lanes.high_nibbles(packed));
        if E2M1 {
            (low[v], high[v]) = (lanes.look_up(table, low[v]), lanes.look_up(table, high[v]));
        }
    }
    (low, high)
}

/// Unpacks lines of nibbles, each of `line` bytes: to the line of the low ones, looked up in `table`, then that of the
/// high ones. `line` is a multiple of any vector's bytes.
#[inline(always)]
pub(crate) fn unpack<L: Dots>(lanes: L, packed: &[u8], line: usize, table: &[u8; 16], out: &mut [u8]) {
    let (table, bytes) = (lanes.table(table), L::LANES * 4);
    for (packed, out) in packed.chunks_exact(line).zip(out.chunks_exact_mut(2 * line)) {
        let (low, high) = out.split_at_mut(line);
        let vectors = low.chunks_exact_mut(bytes).zip(high.chunks_exact_mut(bytes));
        for (packed, (low, high)) in packed.chunks_exact(bytes).zip(vectors) {
            // SAFETY: each slice is as long as a vector.
            unsafe {
                let packed = lanes.load(packed.as_ptr());
                lanes.store(low.as_mut_ptr(), lanes.look_up(table, lanes.low_nibbles(packed)));
                lanes.store(high.as_mut_ptr(), lanes.look_up(table, lanes.high_nibbles(packed)));
            }
        }
    }
}
