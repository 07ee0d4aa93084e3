//! Weights to integers, group by group, as plain loops, which the compiler turns into a tier's vectors.
//!
//! A search has a candidate in each of 16 lanes, so that every tier adds a lane's numbers in the order of the inputs and gets
//! the same bits, whatever the length of a group: no sums across lanes. A product and a sum are rounded one by one for the
//! same reason. Reductions are those of integers, which have no order: floats as [`key`]s.

// The loops run over lanes, which indices name.
#![allow(clippy::needless_range_loop)]

use half::f16;

use super::quantize::largest_bits;

/// How the weights of a row become integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// -8 to 7 times an f16 scale.
    Int4,
    /// 0 to `top` times a scale plus a minimum: both f16, or f32.
    WithMin { top: u8, f16: bool },
    /// E2M1 numbers times a power of two.
    Mxfp4,
}

/// A row and where its integers go.
pub(crate) struct Row<'a> {
    pub(crate) scheme: Scheme,
    /// Inputs that share a scale.
    pub(crate) group: usize,
    pub(crate) search: bool,
    pub(crate) x: &'a [f32],
    /// How much an error of each input counts; empty: all the same.
    pub(crate) importance: &'a [f32],
    pub(crate) codes: &'a mut [u8],
    /// One for each group.
    pub(crate) scales: &'a mut [f32],
    /// One for each group in a scheme with a minimum, else empty.
    pub(crate) mins: &'a mut [f32],
}

/// Candidates of a search, one a lane.
const CANDIDATES: usize = 16;

/// How far apart they are in steps of the code range.
const STEP: f32 = 0.12;

/// The same for int4 with importances.
///
/// A smaller scale cuts large weights off to have small ones nearer, which pays where it is known what counts. Mean KL of SmolLM2
/// to bf16 over the text of `tools/quality`, int4:128, by 0.12 and by 0.3: 0.455 and 0.418 with importances (nearest: 0.565), 0.576
/// and 0.631 without; int4m:128 0.220 and 0.222. Lost: also candidates that map the largest magnitude to 7 (0.457 instead of
/// 0.455), and importances times the root of a weight's square and their mean (0.458).
const WIDE_STEP: f32 = 0.3;

/// 1.5 * 2^23: adding it rounds to an integer, ties to even, which then sits in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;

#[inline(always)]
pub(crate) fn quantize(row: Row<'_>) {
    let Row { scheme, group, search, x, importance, codes, scales, mins } = row;
    for (g, (x, codes)) in x.chunks(group).zip(codes.chunks_mut(group)).enumerate() {
        let weights = importance.get(g * group..g * group + x.len()).unwrap_or_default();
        // Where nothing counts, every scale would be as good as another.
        let weights = if weights.iter().all(|&w| w == 0.0) { &[][..] } else { weights };
        match scheme {
            Scheme::Int4 => scales[g] = int4(x, weights, search, codes),
            Scheme::WithMin { top, f16 } => {
                (scales[g], mins[g]) = with_min(x, weights, search, f32::from(top), f16, codes);
            }
            Scheme::Mxfp4 => scales[g] = mxfp4(x, codes),
        }
    }
}

/// Codes 0 to 15 with zero 8; returns the scale. The weight of the largest magnitude becomes -8, so the scale has the other
/// sign.
#[inline(always)]
fn int4(x: &[f32], weights: &[f32], search: bool, codes: &mut [u8]) -> f32 {
    let Some((low, high)) = range(x) else {
        codes.fill(8);
        return f32::NAN;
    };
    let largest = if -low > high { low } else { high };
    let mut scale = half(largest / -8.0);
    if search {
        let better = half(int4_search(x, weights, largest));
        if error(x, weights, int4_line(better)) < error(x, weights, int4_line(scale)) {
            scale = better;
        }
    }
    int4_line(scale).codes(x, codes);
    for code in codes {
        *code ^= 8;
        *code &= 15;
    }
    scale
}

#[inline(always)]
fn int4_line(scale: f32) -> Line {
    Line { scale, min: 0.0, least: -8.0, most: 7.0 }
}

/// The least-squares scale of the candidate's codes that lowers the error most: by (w q x)^2 / (w q q).
#[inline(always)]
fn int4_search(x: &[f32], weights: &[f32], largest: f32) -> f32 {
    let (unit, step) = (inverse(largest), if weights.is_empty() { STEP } else { WIDE_STEP });
    let mut inverses = [0.0; CANDIDATES];
    for c in 0..CANDIDATES {
        inverses[c] = (offset(c, step) - 8.0) * unit;
    }
    let (mut cross, mut square) = ([0.0; CANDIDATES], [0.0; CANDIDATES]);
    for (i, &x) in x.iter().enumerate() {
        let w = if weights.is_empty() { 1.0 } else { weights[i] };
        for c in 0..CANDIDATES {
            let q = rounded(x * inverses[c], -8.0, 7.0);
            let wq = w * q;
            cross[c] += wq * x;
            square[c] += wq * q;
        }
    }
    let (mut scales, mut gains) = ([0.0; CANDIDATES], [0.0; CANDIDATES]);
    for c in 0..CANDIDATES {
        scales[c] = cross[c] / square[c];
        gains[c] = cross[c] * scales[c];
    }
    match best(&gains) {
        Some(c) => scales[c],
        None => 0.0,
    }
}

/// The first candidate with the largest gain, if any gains.
#[inline(always)]
fn best(gains: &[f32; CANDIDATES]) -> Option<usize> {
    let (mut best, mut most) = (None, 0.0);
    for c in 0..CANDIDATES {
        if gains[c] > most {
            (best, most) = (Some(c), gains[c]);
        }
    }
    best
}

/// Codes 0 to `top`; returns the scale and the minimum.
#[inline(always)]
fn with_min(x: &[f32], weights: &[f32], search: bool, top: f32, f16: bool, codes: &mut [u8]) -> (f32, f32) {
    let Some((low, high)) = range(x) else {
        codes.fill(0);
        return (f32::NAN, f32::NAN);
    };
    let mut best = line_from(high / top - low / top, low, top, f16);
    if search && high > low {
        let (scale, min) = min_search(x, weights, low, high, top);
        let better = line_from(scale, min, top, f16);
        if error(x, weights, better) < error(x, weights, best) {
            best = better;
        }
    }
    best.codes(x, codes);
    (best.scale, best.min)
}

#[inline(always)]
fn line_from(scale: f32, min: f32, top: f32, f16: bool) -> Line {
    let (scale, min) = if f16 { (half(scale), half(min)) } else { (scale, min) };
    Line { scale, min, least: 0.0, most: top }
}

/// Scale and minimum of the least-squares line through a candidate's codes that lowers the error most.
#[inline(always)]
fn min_search(x: &[f32], weights: &[f32], low: f32, high: f32, top: f32) -> (f32, f32) {
    let unit = inverse(high - low);
    let mut inverses = [0.0; CANDIDATES];
    for c in 0..CANDIDATES {
        inverses[c] = (offset(c, STEP) * 2.0 + top) * unit;
    }
    let (mut sum_w, mut sum_y) = (0.0, 0.0);
    let (mut sum_q, mut sum_qq, mut sum_qy) = ([0.0; CANDIDATES], [0.0; CANDIDATES], [0.0; CANDIDATES]);
    for (i, &x) in x.iter().enumerate() {
        let (w, y) = (if weights.is_empty() { 1.0 } else { weights[i] }, x - low);
        sum_w += w;
        sum_y += w * y;
        for c in 0..CANDIDATES {
            let q = rounded(y * inverses[c], 0.0, top);
            let wq = w * q;
            sum_q[c] += wq;
            sum_qq[c] += wq * q;
            sum_qy[c] += wq * y;
        }
    }
    let (mut scales, mut above, mut gains) = ([0.0; CANDIDATES], [0.0; CANDIDATES], [0.0; CANDIDATES]);
    for c in 0..CANDIDATES {
        let determinant = sum_w * sum_qq[c] - sum_q[c] * sum_q[c];
        scales[c] = (sum_w * sum_qy[c] - sum_q[c] * sum_y) / determinant;
        above[c] = (sum_y - scales[c] * sum_q[c]) / sum_w;
        let gain = above[c] * sum_y + scales[c] * sum_qy[c];
        gains[c] = if determinant > 0.0 { gain } else { 0.0 };
    }
    match best(&gains) {
        Some(c) => (scales[c], low + above[c]),
        None => (0.0, low),
    }
}

/// E2M1 codes, ties to even ones; returns the power of two, as the MX specification finds it: the largest magnitude's own
/// exponent less that of the largest code.
#[inline(always)]
fn mxfp4(x: &[f32], codes: &mut [u8]) -> f32 {
    let largest = largest_bits(x);
    if largest >= INFINITY {
        codes.fill(0);
        return f32::NAN;
    }
    // 2^e has the bits (e + 127) << 23; for 0 and denormal numbers the least normal one.
    let exponent = (largest >> 23).saturating_sub(2).max(1);
    let scale = if largest == 0 { 1.0 } else { f32::from_bits(exponent << 23) };
    let inverse = 1.0 / scale;
    for (code, x) in codes.iter_mut().zip(x) {
        let y = (x * inverse).abs();
        // Between two codes, the tie goes to the even one.
        let above = u8::from(y > 0.25) + u8::from(y >= 0.75) + u8::from(y > 1.25) + u8::from(y >= 1.75);
        let magnitude = above + u8::from(y > 2.5) + u8::from(y >= 3.5) + u8::from(y > 5.0);
        let sign = if magnitude > 0 { (x.to_bits() >> 28) as u8 & 8 } else { 0 };
        *code = magnitude | sign;
    }
    scale
}

/// Numbers min + scale * q with whole q from `least` to `most`.
#[derive(Clone, Copy)]
struct Line {
    scale: f32,
    min: f32,
    least: f32,
    most: f32,
}

impl Line {
    /// The nearest q, in the low bits of a byte.
    #[inline(always)]
    fn codes(self, x: &[f32], codes: &mut [u8]) {
        let inverse = inverse(self.scale);
        for (code, x) in codes.iter_mut().zip(x) {
            *code = (clamped((x - self.min) * inverse, self.least, self.most) + ROUND).to_bits() as u8;
        }
    }
}

/// The weighted squared error of the nearest numbers on a line, in 16 sums.
#[inline(always)]
fn error(x: &[f32], weights: &[f32], line: Line) -> f32 {
    let inverse = inverse(line.scale);
    let (chunks, tail) = x.as_chunks::<16>();
    let (weight_chunks, weight_tail) = weights.as_chunks::<16>();
    let mut sums = [0.0; 16];
    for (i, x) in chunks.iter().enumerate() {
        let weights = weight_chunks.get(i).unwrap_or(&[1.0; 16]);
        for lane in 0..16 {
            sums[lane] += weights[lane] * square_off(x[lane], inverse, line);
        }
    }
    for (lane, &x) in tail.iter().enumerate() {
        sums[lane] += weight_tail.get(lane).unwrap_or(&1.0) * square_off(x, inverse, line);
    }
    sums.iter().sum()
}

/// The squared distance to the nearest number on a line.
#[inline(always)]
fn square_off(x: f32, inverse: f32, line: Line) -> f32 {
    let off = x - (rounded((x - line.min) * inverse, line.least, line.most) * line.scale + line.min);
    off * off
}

/// How far a candidate is from the nearest scale.
#[inline(always)]
fn offset(candidate: usize, step: f32) -> f32 {
    (candidate as f32 - 7.0) * step
}

#[inline(always)]
fn clamped(x: f32, least: f32, most: f32) -> f32 {
    let x = if x > least { x } else { least };
    if x < most { x } else { most }
}

#[inline(always)]
fn rounded(x: f32, least: f32, most: f32) -> f32 {
    clamped(x, least, most) + ROUND - ROUND
}

/// 1 / x, or 0 for what is as good as 0.
#[inline(always)]
fn inverse(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// x as f16 holds it.
#[inline(always)]
fn half(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// The bits of infinity.
const INFINITY: u32 = 0x7f80_0000;

/// An integer in the order of floats: NaN is beyond the infinities.
#[inline(always)]
fn key(x: f32) -> i32 {
    ordered(x.to_bits() as i32)
}

/// Its own inverse.
#[inline(always)]
fn ordered(bits: i32) -> i32 {
    bits ^ ((bits >> 31) & i32::MAX)
}

/// The least and the largest number; none if one is not finite.
#[inline(always)]
fn range(x: &[f32]) -> Option<(f32, f32)> {
    let (mut low, mut high) = (i32::MAX, i32::MIN);
    for &x in x {
        (low, high) = (low.min(key(x)), high.max(key(x)));
    }
    let finite = low > key(f32::NEG_INFINITY) && high < key(f32::INFINITY);
    finite.then_some((f32::from_bits(ordered(low) as u32), f32::from_bits(ordered(high) as u32)))
}
