//! Rows to int8 in groups, as plain loops, which the compiler turns into a tier's vectors; a tier with
//! something better overrides [`Lanes::quantize_group`].

use super::lanes::{Lanes, Stored};

/// Where a quantised row goes.
pub(crate) struct Out<'a> {
    /// Elements of a group; the last one may have fewer.
    pub(crate) group: usize,
    /// As long as the row.
    pub(crate) values: &'a mut [i8],
    /// One for each group.
    pub(crate) scales: &'a mut [f32],
    /// One for each group.
    pub(crate) sums: &'a mut [i32],
}

/// Groups whose largest magnitude is below this count as zero: their scale would not be a normal
/// number, and its inverse could be infinite.
const SMALLEST: f32 = 127.0 * f32::MIN_POSITIVE;

/// 1.5 * 2^23: adding it rounds to an integer, ties to even, which then sits in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;

/// The usual size of a group.
pub(crate) const GROUP: usize = 64;

/// Quantises each group of `src`.
#[inline(always)]
pub(crate) fn groups<S: Lanes, X: Stored>(simd: S, src: &[X], out: Out<'_>) {
    let Out { group, mut values, mut scales, mut sums } = out;
    let mut src = src;
    if group == GROUP {
        let (chunks, tail) = src.as_chunks::<GROUP>();
        let (value_chunks, value_tail) = values.as_chunks_mut::<GROUP>();
        let (chunk_scales, tail_scale) = scales.split_at_mut(chunks.len());
        let (chunk_sums, tail_sum) = sums.split_at_mut(chunks.len());
        let results = chunk_scales.iter_mut().zip(chunk_sums);
        for ((chunk, values), (scale, sum)) in chunks.iter().zip(value_chunks).zip(results) {
            (*scale, *sum) = simd.quantize_64(chunk, values);
        }
        (src, values, scales, sums) = (tail, value_tail, tail_scale, tail_sum);
    }
    let groups = src.chunks(group).zip(values.chunks_mut(group));
    for ((src, values), (scale, sum)) in groups.zip(scales.iter_mut().zip(sums)) {
        (*scale, *sum) = simd.quantize_group(src, values);
    }
}

/// Quantises one group; returns its scale and the sum of its values.
#[inline(always)]
pub(crate) fn group<X: Stored>(src: &[X], out: &mut [i8]) -> (f32, i32) {
    match Scale::of(largest_bits(src)) {
        Scale::Factor { scale, inverse } => (scale, values(src, inverse, out)),
        Scale::Degenerate(scale) => {
            out.fill(0);
            (scale, 0)
        }
    }
}

/// What the values of a group are multiplied by.
pub(crate) enum Scale {
    Factor {
        scale: f32,
        /// About 1 / scale.
        inverse: f32,
    },
    /// The group is as good as 0, or not finite: its values are 0.
    Degenerate(f32),
}

impl Scale {
    /// From the bits of the largest magnitude.
    #[inline(always)]
    pub(crate) fn of(largest: u32) -> Self {
        let largest = f32::from_bits(largest);
        if (SMALLEST..=f32::MAX).contains(&largest) {
            Self::Factor { scale: largest / 127.0, inverse: 127.0 / largest }
        } else {
            Self::Degenerate(if largest < SMALLEST { 0.0 } else { largest })
        }
    }
}

/// The bits of the largest magnitude. The order of positive numbers is that of their bits, and NaN is
/// above all of them.
#[inline(always)]
pub(crate) fn largest_bits<X: Stored>(src: &[X]) -> u32 {
    src.iter().fold(0, |largest, x| largest.max(magnitude(x.widen())))
}

/// The bits of |x|.
#[inline(always)]
pub(crate) fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// Quantises an element of at most 127 / inverse.
#[inline(always)]
pub(crate) fn value(x: f32, inverse: f32) -> i8 {
    (x * inverse + ROUND).to_bits() as i8
}

/// Quantises elements of at most 127 / inverse; returns the sum of the values.
#[inline(always)]
pub(crate) fn values<X: Stored>(src: &[X], inverse: f32, out: &mut [i8]) -> i32 {
    let mut sum: i32 = 0;
    for (value, x) in out.iter_mut().zip(src) {
        *value = self::value(x.widen(), inverse);
        sum = sum.wrapping_add(i32::from(*value));
    }
    sum
}
