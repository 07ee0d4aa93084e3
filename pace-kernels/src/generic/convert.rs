//! Conversions as plain loops, which the compiler turns into each tier's vectors.

use half::{bf16, f16};

#[inline(always)]
pub(crate) fn widen_bf16(src: &[bf16], dst: &mut [f32]) {
    for (dst, src) in dst.iter_mut().zip(src) {
        *dst = f32::from_bits(u32::from(src.to_bits()) << 16);
    }
}

#[inline(always)]
pub(crate) fn widen_f16(src: &[f16], dst: &mut [f32]) {
    for (dst, src) in dst.iter_mut().zip(src) {
        *dst = src.to_f32();
    }
}

/// Round to nearest, ties to even. A NaN keeps its upper bits and becomes quiet: rounding could
/// carry it into infinity.
#[inline(always)]
pub(crate) fn narrow_bf16(src: &[f32], dst: &mut [bf16]) {
    for (dst, src) in dst.iter_mut().zip(src) {
        let bits = src.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
        *dst = bf16::from_bits(if is_nan { quiet } else { rounded } as u16);
    }
}

/// even[i] = src[2i], odd[i] = src[2i + 1].
#[inline(always)]
pub(crate) fn deinterleave_bf16(src: &[bf16], even: &mut [f32], odd: &mut [f32]) {
    for ((even, odd), pair) in even.iter_mut().zip(odd).zip(src.as_chunks::<2>().0) {
        *even = f32::from_bits(u32::from(pair[0].to_bits()) << 16);
        *odd = f32::from_bits(u32::from(pair[1].to_bits()) << 16);
    }
}

/// The largest magnitude; NaN if there is one. Magnitudes order as their bits do.
#[inline(always)]
pub(crate) fn abs_max(x: &[f32]) -> f32 {
    let mut max = 0;
    for x in x {
        max = max.max(x.to_bits() & 0x7fff_ffff);
    }
    f32::from_bits(max)
}

/// q = x * inverse, rounded to nearest, ties to even; returns the sum of q. NaN gives 0.
#[inline(always)]
pub(crate) fn quantize(x: &[f32], inverse: f32, q: &mut [i8]) -> i32 {
    let mut sum = 0;
    for (q, x) in q.iter_mut().zip(x) {
        let rounded = (x * inverse).round_ties_even() as i32;
        *q = rounded.clamp(-127, 127) as i8;
        sum += i32::from(*q);
    }
    sum
}
