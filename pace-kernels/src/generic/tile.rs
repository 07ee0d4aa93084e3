//! Tiles of a blocked matrix product, for any tier's lanes.
//!
//! Loop nest, for a strip of `ACROSS` vectors of the panel: steps { load the weights; rows { splat an
//! activation; ACROSS multiply-adds } }. Registers on AVX-512 at 6 x 64: 24 sums, 4 weights, 1 splat; a step
//! costs 10 loads for 24 multiply-adds, below the one load a cycle that Zen4 does. Every sum is a lane of
//! its own that adds its products front to back, so it does not depend on the rows beside it, and
//! a block of steps goes on exactly where the one before stopped.
//!
//! Source: the register blocking of Goto and van de Geijn, "Anatomy of High-Performance Matrix
//! Multiplication" (2008); batch-reduce over blocks as in Georganas et al., "Tensor Processing
//! Primitives" (2021).

// The loops run over registers, which indices name.
#![allow(clippy::needless_range_loop)]

use crate::gemm::tile::{Dots, PREFETCH_STEPS, TileArgs};

/// What a tile multiplies, see [`TileKind`](crate::gemm::tile::TileKind): a type, so that each kind is an
/// entry of its own, which a tier may inherit.
pub(crate) trait Kind {
    /// Computes the sums of R rows and N vectors from `column` on.
    ///
    /// # Safety
    /// As [`tile`], `t.rows` is R, and the strip lies in the panel.
    unsafe fn strip<L: Dots, const R: usize, const N: usize>(lanes: L, t: &TileArgs, column: usize);
}

/// One f32 by one f32.
pub(crate) struct F32;

/// Two bf16 by two bf16.
pub(crate) struct Bf16;

/// Four i8 by four u8.
pub(crate) struct Int8;

impl Kind for F32 {
    #[inline(always)]
    unsafe fn strip<L: Dots, const R: usize, const N: usize>(lanes: L, t: &TileArgs, column: usize) {
        // SAFETY: passed on to the caller.
        unsafe { float_strip::<L, R, N, false>(lanes, t, column) }
    }
}

impl Kind for Bf16 {
    #[inline(always)]
    unsafe fn strip<L: Dots, const R: usize, const N: usize>(lanes: L, t: &TileArgs, column: usize) {
        // SAFETY: passed on to the caller.
        unsafe { float_strip::<L, R, N, true>(lanes, t, column) }
    }
}

impl Kind for Int8 {
    #[inline(always)]
    unsafe fn strip<L: Dots, const R: usize, const N: usize>(lanes: L, t: &TileArgs, column: usize) {
        // SAFETY: passed on to the caller.
        unsafe {
            match (t.w_scales.is_null(), t.has_min) {
                (true, _) => int8_strip::<L, R, N, false, false>(lanes, t, column),
                (false, false) => int8_strip::<L, R, N, true, false>(lanes, t, column),
                (false, true) => int8_strip::<L, R, N, true, true>(lanes, t, column),
            }
        }
    }
}

/// Computes a tile.
///
/// # Safety
/// The CPU has the tier of `lanes`; what `t` describes is accessible.
#[inline(always)]
pub(crate) unsafe fn tile<K: Kind, L: Dots>(lanes: L, t: &TileArgs) {
    // SAFETY: passed on to the caller.
    unsafe {
        match t.rows {
            1 => rows::<K, L, 1>(lanes, t),
            2 => rows::<K, L, 2>(lanes, t),
            3 => rows::<K, L, 3>(lanes, t),
            4 => rows::<K, L, 4>(lanes, t),
            5 => rows::<K, L, 5>(lanes, t),
            6 => rows::<K, L, 6>(lanes, t),
            rows => unreachable!("a tile has 1 to 6 rows, not {rows}"),
        }
    }
}

/// Picks the number of vectors across: the widest that divides the panel.
///
/// # Safety
/// As [`tile`], and `t.rows` is R.
#[inline(always)]
pub(crate) unsafe fn rows<K: Kind, L: Dots, const R: usize>(lanes: L, t: &TileArgs) {
    let wanted = if R == 1 { L::ACROSS_ONE } else { L::ACROSS };
    // SAFETY: passed on to the caller.
    unsafe {
        match wanted.min(t.width / L::LANES) {
            8 => strips::<K, L, R, 8>(lanes, t),
            4 => strips::<K, L, R, 4>(lanes, t),
            _ => strips::<K, L, R, 2>(lanes, t),
        }
    }
}

/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn strips<K: Kind, L: Dots, const R: usize, const N: usize>(lanes: L, t: &TileArgs) {
    for column in (0..t.width).step_by(N * L::LANES) {
        // SAFETY: the strip lies in the panel, because its width divides the panel's.
        unsafe { K::strip::<L, R, N>(lanes, t, column) }
    }
}

/// # Safety
/// As [`Kind::strip`].
#[inline(always)]
unsafe fn float_strip<L: Dots, const R: usize, const N: usize, const BF16: bool>(
    lanes: L,
    t: &TileArgs,
    column: usize,
) {
    let mut acc = [[lanes.zero(); N]; R];
    // SAFETY: `sums` holds R rows of the panel's width, `a` R rows of the steps, `w` the panel.
    unsafe {
        if t.resume {
            for r in 0..R {
                for v in 0..N {
                    acc[r][v] = lanes.load(sums_at::<L>(t, r, column, v).cast());
                }
            }
        }
        let (mut step, mut prefetch) = (0, t.prefetch);
        while step < t.steps {
            let end = t.steps.min(step + PREFETCH_STEPS);
            for _ in 0..t.prefetch_lines {
                lanes.prefetch(prefetch);
                prefetch = prefetch.wrapping_add(64);
            }
            while step < end {
                let (w, a) = at_step::<L, N>(lanes, t, column, step, 4);
                if R == 1 {
                    read_ahead(lanes, t.w.wrapping_add((step * t.width + column) * 4), N);
                }
                for r in 0..R {
                    let a = lanes.splat(a.add(r * t.a_stride));
                    for v in 0..N {
                        acc[r][v] = if BF16 {
                            lanes.dot_bf16(acc[r][v], w[v], a)
                        } else {
                            lanes.dot_f32(acc[r][v], w[v], a)
                        };
                    }
                }
                step += 1;
            }
        }
        for r in 0..R {
            for v in 0..N {
                lanes.store(sums_at::<L>(t, r, column, v).cast(), acc[r][v]);
            }
        }
    }
}

/// Sums each group in i32, starting at -128 times the sum of its activations because weights are
/// stored 128 too large, then adds it to the f32 sums, which live in memory: in registers they would
/// leave room for 2 rows only. What the weights have besides their steps is a type: with a branch for each vector of sums
/// the compiler stores all of them at every step.
///
/// # Safety
/// As [`Kind::strip`].
#[inline(always)]
unsafe fn int8_strip<L: Dots, const R: usize, const N: usize, const SCALED: bool, const MIN: bool>(
    lanes: L,
    t: &TileArgs,
    column: usize,
) {
    // SAFETY: the caller's promises are those of each call, and the steps of a group lie in the panel.
    unsafe {
        if !t.resume {
            clear::<L, R, N>(lanes, t, column);
        }
        let (mut group, mut step, mut prefetch) = (0, 0, t.prefetch);
        while step < t.steps {
            let end = t.steps.min(step + t.group_steps);
            let mut acc = if MIN { [[lanes.zero(); N]; R] } else { offsets(lanes, t, group, 0) };
            while step < end {
                let round = end.min(step + PREFETCH_STEPS);
                for _ in 0..t.prefetch_lines {
                    lanes.prefetch(prefetch);
                    prefetch = prefetch.wrapping_add(64);
                }
                while step < round {
                    let (w, a) = at_step::<L, N>(lanes, t, column, step, L::QUAD);
                    if R == 1 {
                        read_ahead(lanes, t.w.wrapping_add((step * t.width + column) * 4), N);
                    }
                    for r in 0..R {
                        let a = lanes.quad(a.add(r * t.a_stride));
                        for v in 0..N {
                            acc[r][v] = lanes.dot_quad(acc[r][v], w[v], a);
                        }
                    }
                    step += 1;
                }
            }
            let (scales, mins) = group_scales::<L, N, SCALED, MIN>(lanes, t, group, column);
            add_group::<L, R, N, SCALED, MIN>(lanes, t, group, column, acc, scales, mins);
            group += 1;
        }
    }
}

/// The scales of N vectors in a group, and their minima, as far as there are any.
///
/// # Safety
/// As [`Kind::strip`], and `t` has the group.
#[inline(always)]
pub(crate) unsafe fn group_scales<L: Dots, const N: usize, const SCALED: bool, const MIN: bool>(
    lanes: L,
    t: &TileArgs,
    group: usize,
    column: usize,
) -> ([L::V; N], [L::V; N]) {
    let (mut scales, mut mins) = ([lanes.zero(); N], [lanes.zero(); N]);
    if SCALED {
        for v in 0..N {
            // SAFETY: a group of weights has a scale, and if MIN a minimum, for each column of the panel.
            unsafe {
                let at = t.w_scales.add((group >> t.w_shift) * t.w_stride + column + v * L::LANES);
                scales[v] = lanes.load(at.cast());
                if MIN {
                    mins[v] = lanes.load(at.add(t.width).cast());
                }
            }
        }
    }
    (scales, mins)
}

/// Sets the f32 sums of a strip to 0.
///
/// # Safety
/// As [`Kind::strip`].
#[inline(always)]
pub(super) unsafe fn clear<L: Dots, const R: usize, const N: usize>(lanes: L, t: &TileArgs, column: usize) {
    for r in 0..R {
        for v in 0..N {
            // SAFETY: `sums` holds R rows of the panel's width.
            unsafe { lanes.store(sums_at::<L>(t, r, column, v).cast(), lanes.zero()) }
        }
    }
}

/// Where the integer sums of a group start: at its rows' offsets, divided by 2^shift.
///
/// # Safety
/// As [`Kind::strip`], and `t` has the group.
#[inline(always)]
pub(super) unsafe fn offsets<L: Dots, const R: usize, const N: usize>(
    lanes: L,
    t: &TileArgs,
    group: usize,
    shift: u32,
) -> [[L::V; N]; R] {
    let mut acc = [[lanes.zero(); N]; R];
    for r in 0..R {
        // SAFETY: there is an offset for every row and group.
        acc[r] = [lanes.splat_i32(unsafe { *t.a_offsets.add(r * t.a_groups + group) } >> shift); N];
    }
    acc
}

/// Adds the integer sums of a group, times the scales of activations and weights, to the f32 sums of a strip, and the minima
/// of the weights times the sum of the activations.
///
/// # Safety
/// As [`Kind::strip`], and `t` has the group.
#[inline(always)]
pub(super) unsafe fn add_group<
    L: Dots,
    const R: usize,
    const N: usize,
    const SCALED: bool,
    const MIN: bool,
>(
    lanes: L,
    t: &TileArgs,
    group: usize,
    column: usize,
    acc: [[L::V; N]; R],
    scales: [L::V; N],
    mins: [L::V; N],
) {
    for r in 0..R {
        // SAFETY: passed on to the caller.
        unsafe { add_row::<L, N, SCALED, MIN>(lanes, t, r, group, column, acc[r], scales, mins) }
    }
}

/// [`add_group`] for one row.
///
/// # Safety
/// As [`Kind::strip`], and `t` has the row and the group.
#[inline(always)]
pub(crate) unsafe fn add_row<L: Dots, const N: usize, const SCALED: bool, const MIN: bool>(
    lanes: L,
    t: &TileArgs,
    r: usize,
    group: usize,
    column: usize,
    acc: [L::V; N],
    scales: [L::V; N],
    mins: [L::V; N],
) {
    // SAFETY: scales and offsets are there for every row and group, sums for every row.
    unsafe {
        let a_scale = *t.a_scales.add(r * t.a_groups + group);
        // The offset is -128 times the sum of the activations, which f32 holds.
        let a_sum = *t.a_offsets.add(r * t.a_groups + group) as f32 * (-1.0 / 128.0);
        let (a_scale, a_sum) = (lanes.splat_f32(a_scale), lanes.splat_f32(a_scale * a_sum));
        for v in 0..N {
            let sums = sums_at::<L>(t, r, column, v);
            let scale = if SCALED { lanes.mul(a_scale, scales[v]) } else { a_scale };
            let mut sum = lanes.scaled(lanes.load(sums.cast()), acc[v], scale);
            if MIN {
                sum = lanes.dot_f32(sum, mins[v], a_sum);
            }
            lanes.store(sums.cast(), sum);
        }
    }
}

/// The weights of a step and the activations of the first row, of which a step has so many bytes.
///
/// # Safety
/// As [`float_strip`], and `step < t.steps`.
#[inline(always)]
unsafe fn at_step<L: Dots, const N: usize>(
    lanes: L,
    t: &TileArgs,
    column: usize,
    step: usize,
    step_bytes: usize,
) -> ([L::V; N], *const u8) {
    let mut w = [lanes.zero(); N];
    // SAFETY: the step lies in the panel and in the rows of activations.
    unsafe {
        let at = t.w.add((step * t.width + column) * 4);
        for v in 0..N {
            w[v] = lanes.load(at.add(v * L::LANES * 4));
        }
        (w, t.a.add(step * step_bytes))
    }
}

/// Asks for what comes [`Dots::AHEAD`] bytes behind some vectors.
#[inline(always)]
fn read_ahead<L: Dots>(lanes: L, at: *const u8, vectors: usize) {
    if L::AHEAD > 0 {
        for line in (0..vectors * L::LANES * 4).step_by(64) {
            lanes.prefetch_near(at.wrapping_add(L::AHEAD + line));
        }
    }
}

/// # Safety
/// As [`float_strip`], `r < t.rows`, and the vector lies in the panel.
#[inline(always)]
unsafe fn sums_at<L: Dots>(t: &TileArgs, r: usize, column: usize, v: usize) -> *mut f32 {
    // SAFETY: `sums` has `rows` rows of `width` elements.
    unsafe { t.sums.add(r * t.sums_stride + column + v * L::LANES) }
}
