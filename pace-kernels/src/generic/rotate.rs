//! Rows that are rotated in blocks, and such rows as int8.
//!
//! A block is multiplied by the orthogonal Hadamard matrix of its size, which spreads a large element over all of its block:
//! what int8 loses is in proportion to the largest element. Blocks have 64 elements, the last ones 16, 4 and 1, so that the
//! factor 1 / sqrt(size) is a power of two: a rotation is additions and exact multiplications in one order, and gives the same
//! bits on every tier. The matrix is its own inverse.
//!
//! Source: Ashkboos et al., QuaRot (arXiv 2404.00456), which rotates whole rows; blocks need no other layer to change.

use super::lanes::{Lanes, Stored};
use super::quantize::{self, Scale};

/// Elements of a block.
pub(crate) const BLOCK: usize = 64;

/// Where a rotated and quantised row goes.
pub(crate) struct Out<'a> {
    /// Elements that share a scale and a sum: a block, or if all of the row share one scale, a multiple of it for the sums.
    pub(crate) group: usize,
    /// Whether the row has one scale.
    pub(crate) one_scale: bool,
    /// As long as the row.
    pub(crate) values: &'a mut [i8],
    /// One for each group.
    pub(crate) scales: &'a mut [f32],
    /// One for each group: the sum of its values.
    pub(crate) sums: &'a mut [i32],
}

/// Rotates a row in place.
#[inline(always)]
pub(crate) fn rotate<S: Lanes>(simd: S, row: &mut [f32]) {
    let (blocks, tail) = row.as_chunks_mut::<BLOCK>();
    for block in blocks {
        simd.rotate_64(block);
    }
    rotate_tail(tail);
}

/// Rotates `src` and quantises it. The row itself stays as it is.
#[inline(always)]
pub(crate) fn quantize<S: Lanes, X: Stored>(simd: S, src: &[X], out: Out<'_>) {
    let Out { group, one_scale, values, scales, sums } = out;
    if !one_scale {
        let chunks = src.chunks(BLOCK).zip(values.chunks_mut(BLOCK));
        for ((src, values), (scale, sum)) in chunks.zip(scales.iter_mut().zip(sums)) {
            let mut x = [0.0; BLOCK];
            (*scale, *sum) = match (load(simd, src, &mut x), <&mut [i8; BLOCK]>::try_from(&mut *values)) {
                (BLOCK, Ok(values)) => simd.quantize_64(&x, values),
                (len, _) => simd.quantize_group(&x[..len], values),
            };
        }
        return;
    }
    let mut largest = 0;
    for src in src.chunks(BLOCK) {
        let mut x = [0.0; BLOCK];
        let len = load(simd, src, &mut x);
        largest = largest.max(quantize::largest_bits(&x[..len]));
    }
    sums.fill(0);
    match Scale::of(largest) {
        Scale::Degenerate(scale) => {
            scales.fill(scale);
            values.fill(0);
        }
        Scale::Factor { scale, inverse } => {
            scales.fill(scale);
            for (i, (src, values)) in src.chunks(BLOCK).zip(values.chunks_mut(BLOCK)).enumerate() {
                let mut x = [0.0; BLOCK];
                let len = load(simd, src, &mut x);
                sums[i * BLOCK / group] += quantize::values(&x[..len], inverse, values);
            }
        }
    }
}

/// Widens and rotates a block or the tail of a row; returns its length.
#[inline(always)]
fn load<S: Lanes, X: Stored>(simd: S, src: &[X], out: &mut [f32; BLOCK]) -> usize {
    for (out, x) in out.iter_mut().zip(src) {
        *out = x.widen();
    }
    if src.len() == BLOCK {
        simd.rotate_64(out);
    } else {
        rotate_tail(&mut out[..src.len()]);
    }
    src.len()
}

#[inline(always)]
fn rotate_tail(tail: &mut [f32]) {
    let (sixteens, rest) = tail.as_chunks_mut::<16>();
    sixteens.iter_mut().for_each(block);
    let (fours, _) = rest.as_chunks_mut::<4>();
    fours.iter_mut().for_each(block);
}

/// The fast Walsh-Hadamard transform, by 1 / sqrt(N) of its size; N is a power of 4.
#[inline(always)]
pub(super) fn block<const N: usize>(x: &mut [f32; N]) {
    let mut half = 1;
    while half < N {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let factor = match N {
        64 => 0.125,
        16 => 0.25,
        _ => 0.5,
    };
    x.iter_mut().for_each(|x| *x *= factor);
}
