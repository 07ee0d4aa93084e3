//! A group of activations to int8.
//!
//! The usual group of 64 is read once into 4 vectors; the largest magnitude, the values (packed into one
//! vector) and their sum (one `vpsadbw` over the bytes plus 128) come from registers. Other groups take two
//! passes, 64 elements at a time. Lost: the compiler's version of the generic loop (53 cycles for a group
//! of 64: it narrows step by step and sums in 32-bit lanes), and the two passes for all groups (43).

use std::arch::x86_64::*;

use pulp::f32x16;
use pulp::x86::V4;

use crate::generic::lanes::Stored;
use crate::generic::quantize::{self, Scale};

/// As [`quantize::group`], with the same bits.
#[inline(always)]
pub(super) fn group<X: Stored>(simd: V4, src: &[X], values: &mut [i8]) -> (f32, i32) {
    let (chunks, tail) = src.as_chunks::<64>();
    let (value_chunks, value_tail) = values.as_chunks_mut::<64>();
    let mut largest = quantize::largest_bits(tail);
    // A closure would not have the tier's features.
    for chunk in chunks {
        largest = largest.max(largest_of_64(load(simd, chunk)));
    }
    match Scale::of(largest) {
        Scale::Factor { scale, inverse } => {
            let mut sum: i32 = quantize::values(tail, inverse, value_tail);
            for (chunk, values) in chunks.iter().zip(value_chunks) {
                sum = sum.wrapping_add(values_of_64(load(simd, chunk), inverse, values));
            }
            (scale, sum)
        }
        Scale::Degenerate(scale) => {
            values.fill(0);
            (scale, 0)
        }
    }
}

/// The same for the usual group.
#[inline(always)]
pub(super) fn group_of_64<X: Stored>(simd: V4, src: &[X; 64], values: &mut [i8; 64]) -> (f32, i32) {
    let x = load(simd, src);
    match Scale::of(largest_of_64(x)) {
        Scale::Factor { scale, inverse } => (scale, values_of_64(x, inverse, values)),
        Scale::Degenerate(scale) => {
            values.fill(0);
            (scale, 0)
        }
    }
}

#[inline(always)]
fn load<X: Stored>(simd: V4, src: &[X; 64]) -> [f32x16; 4] {
    [X::load(simd, src), X::load(simd, &src[16..]), X::load(simd, &src[32..]), X::load(simd, &src[48..])]
}

/// As [`quantize::largest_bits`].
#[inline(always)]
fn largest_of_64(x: [f32x16; 4]) -> u32 {
    // SAFETY: whoever has vectors of 16 lanes has AVX-512.
    unsafe {
        let mask = _mm512_set1_epi32(0x7fff_ffff);
        let low = _mm512_max_epu32(
            _mm512_and_si512(pulp::cast(x[0]), mask),
            _mm512_and_si512(pulp::cast(x[1]), mask),
        );
        let high = _mm512_max_epu32(
            _mm512_and_si512(pulp::cast(x[2]), mask),
            _mm512_and_si512(pulp::cast(x[3]), mask),
        );
        _mm512_reduce_max_epu32(_mm512_max_epu32(low, high))
    }
}

/// As [`quantize::values`].
#[inline(always)]
fn values_of_64(x: [f32x16; 4], inverse: f32, values: &mut [i8; 64]) -> i32 {
    // SAFETY: whoever has vectors of 16 lanes has AVX-512; 64 bytes are written to 64 values.
    unsafe {
        let inverse = _mm512_set1_ps(inverse);
        let mut q = [_mm512_setzero_si512(); 4];
        for (q, x) in q.iter_mut().zip(x) {
            *q = _mm512_cvtps_epi32(_mm512_mul_ps(pulp::cast(x), inverse));
        }
        let bytes = pack(q);
        _mm512_storeu_si512(values.as_mut_ptr().cast::<__m512i>(), bytes);
        let unsigned = _mm512_xor_si512(bytes, _mm512_set1_epi8(i8::MIN));
        let sums = _mm512_sad_epu8(unsigned, _mm512_setzero_si512());
        _mm512_reduce_add_epi64(sums) as i32 - 128 * 64
    }
}

/// The low bytes of 64 small integers, in order.
///
/// # Safety
/// The CPU has AVX-512 F and BW.
#[inline(always)]
unsafe fn pack(q: [__m512i; 4]) -> __m512i {
    // SAFETY: passed on to the caller.
    unsafe {
        let low = _mm512_packs_epi32(q[0], q[1]);
        let high = _mm512_packs_epi32(q[2], q[3]);
        // Packing interleaves the 128-bit quarters of its operands; put the 16 quadruples back in order.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high))
    }
}
