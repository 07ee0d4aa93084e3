//! The attention step of the tiers without bf16 products, and the fold and the end for all.
//!
//! Loop nest of a step: for four rows, for as many tokens as fill the registers, for each dimension:
//! scores; then row by row the softmax, in the memory of the scores; then for four rows, for 4 vectors
//! of dimensions, for each token: values. With 16 lanes 4 x 4 accumulators, with 8 lanes 4 x 2 of
//! 16 registers. bf16 keys and values come in pairs of one 32-bit lane, so that a shift and a mask
//! widen both, and no shuffle is needed.

// A tile's loops index all of its arrays by row and vector.
#![allow(clippy::needless_range_loop)]

use std::f32::consts::LOG2_E;
use std::ops::Range;

use half::bf16;
use pulp::Simd;

use super::convert::widen_bf16;
use super::exp2::exp2;
use crate::KV_BLOCK;
use crate::attention::{KvElement, Logits, MAX_HEAD_DIM, Part, SUM_LANES, State, Step};

/// Dimensions in a group of values.
const V_GROUP: usize = 64;

/// An element type as the vectors of a tier read it.
pub(crate) trait KvLanes: KvElement {
    /// Elements of one lane: consecutive dimensions of keys, consecutive tokens of values.
    const PAIR: usize;

    /// A vector of lanes from `data[at..]`, widened: the first elements of the lanes, then the second ones.
    fn lanes<S: Simd>(simd: S, data: &[Self], at: usize) -> [S::f32s; 2];

    /// `dst` = `src`.
    fn widen(src: &[Self], dst: &mut [f32]);

    /// Rounds probabilities to this type.
    fn round<S: Simd>(simd: S, p: S::f32s) -> S::f32s;
}

impl KvLanes for f32 {
    const PAIR: usize = 1;

    #[inline(always)]
    fn lanes<S: Simd>(simd: S, data: &[Self], at: usize) -> [S::f32s; 2] {
        let lanes = bytemuck::pod_read_unaligned(bytemuck::cast_slice(&data[at..at + S::F32_LANES]));
        [lanes, simd.splat_f32s(0.0)]
    }

    #[inline(always)]
    fn widen(src: &[Self], dst: &mut [f32]) {
        dst.copy_from_slice(src);
    }

    #[inline(always)]
    fn round<S: Simd>(_: S, p: S::f32s) -> S::f32s {
        p
    }
}

impl KvLanes for bf16 {
    const PAIR: usize = 2;

    #[inline(always)]
    fn lanes<S: Simd>(simd: S, data: &[Self], at: usize) -> [S::f32s; 2] {
        let bytes: &[u8] = bytemuck::cast_slice(&data[at..at + 2 * S::F32_LANES]);
        let lanes: S::u32s = bytemuck::pod_read_unaligned(bytes);
        let first = simd.wrapping_dyn_shl_u32s(lanes, simd.splat_u32s(16));
        let second = simd.and_u32s(lanes, simd.splat_u32s(0xffff_0000));
        [simd.transmute_f32s_u32s(first), simd.transmute_f32s_u32s(second)]
    }

    #[inline(always)]
    fn widen(src: &[Self], dst: &mut [f32]) {
        widen_bf16(src, dst);
    }

    /// To the nearest, ties to even.
    #[inline(always)]
    fn round<S: Simd>(simd: S, p: S::f32s) -> S::f32s {
        let bits = simd.transmute_u32s_f32s(p);
        let rounded = simd.add_u32s(bits, simd.splat_u32s(0x7fff));
        // The lowest bit that stays, moved to the end: adding it makes ties even.
        let odd = simd.and_u32s(bits, simd.splat_u32s(0x1_0000));
        let odd = simd.less_than_u32s(simd.splat_u32s(0), odd);
        let one = simd.select_u32s(odd, simd.splat_u32s(1), simd.splat_u32s(0));
        simd.transmute_f32s_u32s(simd.and_u32s(simd.add_u32s(rounded, one), simd.splat_u32s(0xffff_0000)))
    }
}

/// See [`Step`].
#[inline(always)]
pub(crate) fn step<S: Simd, E: KvLanes>(simd: S, mut step: Step<'_, E>) {
    if S::F32_LANES == 8 {
        scores::<S, E, 2>(simd, &mut step);
    } else {
        scores::<S, E, 4>(simd, &mut step);
    }
    for row in 0..step.rows() {
        softmax(simd, &mut step, row);
    }
    if S::F32_LANES == 8 {
        values::<S, E, 2>(simd, &mut step);
    } else {
        values::<S, E, 4>(simd, &mut step);
    }
}

/// p = q K^T, NV vectors of tokens at a time.
#[inline(always)]
fn scores<S: Simd, E: KvLanes, const NV: usize>(simd: S, step: &mut Step<'_, E>) {
    let quads = step.rows() / 4 * 4;
    for row in (0..quads).step_by(4) {
        score_rows::<S, E, 4, NV>(simd, step, row);
    }
    for row in quads..step.rows() {
        score_rows::<S, E, 1, NV>(simd, step, row);
    }
}

/// MR rows of that, with queries that are widened once.
#[inline(always)]
fn score_rows<S: Simd, E: KvLanes, const MR: usize, const NV: usize>(
    simd: S,
    step: &mut Step<'_, E>,
    row: usize,
) {
    let d = step.head_dim;
    let mut q = [[0.0; MAX_HEAD_DIM]; MR];
    for r in 0..MR {
        E::widen(&step.q[(row + r) * d..][..d], &mut q[r][..d]);
    }
    for first in (0..KV_BLOCK).step_by(NV * S::F32_LANES) {
        dots::<S, E, MR, NV>(simd, step, &q, row, first);
    }
}

/// The scores of MR rows with the tokens from `first` on.
#[inline(always)]
fn dots<S: Simd, E: KvLanes, const MR: usize, const NV: usize>(
    simd: S,
    step: &mut Step<'_, E>,
    q: &[[f32; MAX_HEAD_DIM]; MR],
    row: usize,
    first: usize,
) {
    let d = step.head_dim;
    let keys = &step.block[..d * KV_BLOCK];
    let mut acc = [[simd.splat_f32s(0.0); NV]; MR];
    for (i, keys) in keys.chunks_exact(KV_BLOCK * E::PAIR).enumerate() {
        for v in 0..NV {
            let k = E::lanes(simd, keys, (first + v * S::F32_LANES) * E::PAIR);
            for n in 0..E::PAIR {
                for r in 0..MR {
                    let q = simd.splat_f32s(q[r][i * E::PAIR + n]);
                    acc[r][v] = simd.mul_add_e_f32s(q, k[n], acc[r][v]);
                }
            }
        }
    }
    for r in 0..MR {
        let p = &mut step.p[(row + r) * KV_BLOCK + first..][..NV * S::F32_LANES];
        S::as_mut_simd_f32s(p).0.copy_from_slice(&acc[r]);
    }
}

/// Turns a row of scores into probabilities against the running maximum, and adds them up.
#[inline(always)]
fn softmax<S: Simd, E: KvLanes>(simd: S, step: &mut Step<'_, E>, row: usize) {
    let seen = step.seen(row);
    let p = &mut step.p[row * KV_BLOCK..][..KV_BLOCK];
    let (head, _) = S::as_mut_simd_f32s(p);
    for x in head.iter_mut() {
        *x = logit(simd, *x, step.logits);
    }
    p[..seen.start].fill(f32::NEG_INFINITY);
    p[seen.end..].fill(f32::NEG_INFINITY);
    let (head, _) = S::as_mut_simd_f32s(p);

    let old = step.m[row];
    let mut max = simd.splat_f32s(old);
    for &x in head.iter() {
        max = simd.select_f32s(simd.greater_than_f32s(x, max), x, max);
    }
    let new = simd.splat_f32s(simd.reduce_max_f32s(max));
    let shrink = exp2(simd, simd.sub_f32s(simd.splat_f32s(old), new));

    let (sums, _) = S::as_mut_simd_f32s(&mut step.l[row * SUM_LANES..][..SUM_LANES]);
    let quarter = sums.len();
    for x in head.iter_mut() {
        *x = exp2(simd, simd.sub_f32s(*x, new));
    }
    for (i, sum) in sums.iter_mut().enumerate() {
        let low = simd.add_f32s(head[i], head[i + quarter]);
        let high = simd.add_f32s(head[i + 2 * quarter], head[i + 3 * quarter]);
        *sum = simd.mul_add_e_f32s(*sum, shrink, simd.add_f32s(low, high));
    }
    for x in head.iter_mut() {
        *x = E::round(simd, *x);
    }
    step.m[row] = simd.reduce_max_f32s(new);
    step.shrink[row] = simd.reduce_max_f32s(shrink);
}

/// The score of a product of query and key, in units of ln 2.
#[inline(always)]
fn logit<S: Simd>(simd: S, x: S::f32s, logits: Logits) -> S::f32s {
    match logits {
        Logits::Scaled { factor } => simd.mul_f32s(x, simd.splat_f32s(factor)),
        Logits::Capped { inner, cap } => {
            let x = simd.mul_f32s(x, simd.splat_f32s(inner));
            // tanh |x| = (1 - e) / (1 + e) with e = e^(-2 |x|).
            let e = exp2(simd, simd.mul_f32s(simd.abs_f32s(x), simd.splat_f32s(-2.0 * LOG2_E)));
            let one = simd.splat_f32s(1.0);
            let tanh = simd.div_f32s(simd.sub_f32s(one, e), simd.add_f32s(one, e));
            let capped = simd.mul_f32s(tanh, simd.splat_f32s(cap));
            let negative = simd.less_than_f32s(x, simd.splat_f32s(0.0));
            simd.select_f32s(negative, simd.neg_f32s(capped), capped)
        }
    }
}

/// o = o * shrink + p V.
#[inline(always)]
fn values<S: Simd, E: KvLanes, const NV: usize>(simd: S, step: &mut Step<'_, E>) {
    let (rows, width) = (step.rows(), step.width());
    let quads = rows / 4 * 4;
    for group in (0..width).step_by(V_GROUP) {
        let group = group..width.min(group + V_GROUP);
        for row in (0..quads).step_by(4) {
            weigh_group::<S, E, 4, NV>(simd, step, row, group.clone());
        }
        for row in quads..rows {
            weigh_group::<S, E, 1, NV>(simd, step, row, group.clone());
        }
    }
}

/// MR rows of one group of dimensions.
#[inline(always)]
fn weigh_group<S: Simd, E: KvLanes, const MR: usize, const NV: usize>(
    simd: S,
    step: &mut Step<'_, E>,
    row: usize,
    group: Range<usize>,
) {
    let mut first = 0;
    while first + NV * S::F32_LANES <= group.len() {
        weigh::<S, E, MR, NV>(simd, step, row, group.clone(), first);
        first += NV * S::F32_LANES;
    }
    while first < group.len() {
        weigh::<S, E, MR, 1>(simd, step, row, group.clone(), first);
        first += S::F32_LANES;
    }
}

/// MR rows of the NV vectors from `first` on in a group of dimensions.
#[inline(always)]
fn weigh<S: Simd, E: KvLanes, const MR: usize, const NV: usize>(
    simd: S,
    step: &mut Step<'_, E>,
    row: usize,
    group: Range<usize>,
    first: usize,
) {
    let (d, w) = (step.head_dim, step.width());
    let mut p: [&[f32]; MR] = [&[]; MR];
    let mut acc = [[simd.splat_f32s(0.0); NV]; MR];
    for r in 0..MR {
        p[r] = &step.p[(row + r) * KV_BLOCK..][..KV_BLOCK];
        let shrink = simd.splat_f32s(step.shrink[row + r]);
        let (o, _) = S::as_simd_f32s(&step.o[(row + r) * w + group.start + first..][..NV * S::F32_LANES]);
        for v in 0..NV {
            acc[r][v] = simd.mul_f32s(o[v], shrink);
        }
    }
    let values = &step.block[(d + group.start) * KV_BLOCK..][..group.len() * KV_BLOCK];
    let tokens = step.seen_together(row..row + MR);
    let lines = tokens.start / E::PAIR..tokens.end.div_ceil(E::PAIR);
    let values = values[lines.start * group.len() * E::PAIR..].chunks_exact(group.len() * E::PAIR);
    for (i, values) in lines.zip(values) {
        for v in 0..NV {
            let x = E::lanes(simd, values, (first + v * S::F32_LANES) * E::PAIR);
            for n in 0..E::PAIR {
                for r in 0..MR {
                    acc[r][v] = simd.mul_add_e_f32s(simd.splat_f32s(p[r][i * E::PAIR + n]), x[n], acc[r][v]);
                }
            }
        }
    }
    for r in 0..MR {
        let o = &mut step.o[(row + r) * w + group.start + first..][..NV * S::F32_LANES];
        S::as_mut_simd_f32s(o).0.copy_from_slice(&acc[r]);
    }
}

/// total = total, then part. Whatever has taken in nothing is neutral.
#[inline(always)]
pub(crate) fn fold<S: Simd>(simd: S, total: &mut State<'_>, part: Part<'_>) {
    let rows = total.m.len();
    let width = total.o.len() / rows.max(1);
    for row in 0..rows {
        let (old, other) = (total.m[row], part.m[row]);
        let new = if other > old { other } else { old };
        let old = exp2(simd, simd.splat_f32s(old - new));
        let other = exp2(simd, simd.splat_f32s(other - new));
        let sum = simd.mul_f32s(other, simd.splat_f32s(part.l[row]));
        let sum = simd.mul_add_e_f32s(old, simd.splat_f32s(total.l[row]), sum);
        total.m[row] = new;
        total.l[row] = simd.reduce_max_f32s(sum);
        let (o, _) = S::as_mut_simd_f32s(&mut total.o[row * width..(row + 1) * width]);
        let (part, _) = S::as_simd_f32s(&part.o[row * width..(row + 1) * width]);
        for (o, &part) in o.iter_mut().zip(part) {
            *o = simd.mul_add_e_f32s(old, *o, simd.mul_f32s(other, part));
        }
    }
}

/// o / l after the sink has joined; zeros for a row that has seen nothing. A zero becomes positive.
#[inline(always)]
pub(crate) fn finish<S: Simd>(simd: S, m: f32, l: f32, sink: f32, o: &mut [f32]) {
    let new = if sink > m { sink } else { m };
    let shrink = simd.reduce_max_f32s(exp2(simd, simd.splat_f32s(m - new)));
    let sum = l * shrink + simd.reduce_max_f32s(exp2(simd, simd.splat_f32s(sink - new)));
    let factor = if sum == 0.0 { 0.0 } else { shrink / sum };
    let (head, tail) = S::as_mut_simd_f32s(o);
    let factors = simd.splat_f32s(factor);
    for x in head {
        *x = simd.add_f32s(simd.mul_f32s(*x, factors), simd.splat_f32s(0.0));
    }
    // The arithmetic of a lane, so that a tail has the bits of a vector.
    for x in tail {
        *x = *x * factor + 0.0;
    }
}
