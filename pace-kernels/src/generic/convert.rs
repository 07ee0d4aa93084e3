//! Conversions, as plain loops where the compiler turns them into each tier's vectors.

use half::{bf16, f16};

use super::lanes::{Lanes, Stored};

#[inline(always)]
pub(crate) fn widen_f16(src: &[f16], dst: &mut [f32]) {
    for (dst, src) in dst.iter_mut().zip(src) {
        *dst = src.to_f32();
    }
}

/// The bits of the nearest bf16, ties to even. A NaN keeps its upper bits and becomes quiet: rounding
/// could carry it into infinity.
#[inline(always)]
pub(crate) fn nearest_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
    bf16::from_bits(if is_nan { quiet } else { rounded } as u16)
}

#[inline(always)]
pub(crate) fn widen_bf16(src: &[bf16], dst: &mut [f32]) {
    for (dst, src) in dst.iter_mut().zip(src) {
        *dst = src.widen();
    }
}

#[inline(always)]
pub(crate) fn narrow_bf16<S: Lanes>(simd: S, src: &[f32], dst: &mut [bf16]) {
    let (heads, tail) = S::as_simd_f32s(src);
    let mut dst_heads = dst.chunks_exact_mut(S::F32_LANES);
    for (dst, &src) in dst_heads.by_ref().zip(heads) {
        simd.store_bf16(src, dst);
    }
    for (dst, &src) in dst_heads.into_remainder().iter_mut().zip(tail) {
        *dst = nearest_bf16(src);
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
