//! Int8 KV blocks to bf16 blocks: 32 elements in two vectors of f32, rounded and joined by one `vcvtne2ps2bf16`.
//!
//! That instruction flushes denormals. There are none: a scale is 0, or a normal number or above, and an element is 0
//! or at least one scale.

use std::arch::x86_64::*;

use half::bf16;

use super::attention::bits;
use crate::attention::Unpack;
use crate::generic::unpack::{self, Scaling};

/// See [`Unpack`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn unpack(args: Unpack<'_>) {
    unpack::unpack(Vectors, args);
}

/// Only made by functions that have this tier's target features.
#[derive(Clone, Copy)]
struct Vectors;

impl Scaling for Vectors {
    type Scales = [__m512; 2];

    #[inline(always)]
    fn each_twice(self, scales: &[f32; 16]) -> [__m512; 2] {
        // SAFETY: the value exists, so the CPU has AVX-512; 64 bytes are read from 16 scales.
        unsafe {
            let scales = _mm512_loadu_ps(scales.as_ptr());
            let low = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            [_mm512_permutexvar_ps(low, scales), _mm512_permutexvar_ps(high, scales)]
        }
    }

    #[inline(always)]
    fn in_turns(self, scales: [f32; 2]) -> [__m512; 2] {
        // SAFETY: as above.
        let scales = unsafe { _mm512_castsi512_ps(_mm512_set1_epi64(bytemuck::cast(scales))) };
        [scales; 2]
    }

    #[inline(always)]
    fn scale(self, src: &[i8; 32], scales: [__m512; 2], out: &mut [bf16; 32]) {
        // SAFETY: the value exists, so the CPU has AVX-512 and BF16; 16 bytes are read from each half of the 32
        // integers, and 64 bytes written to 32 bf16.
        unsafe {
            let low = _mm512_cvtepi8_epi32(_mm_loadu_si128(src.as_ptr().cast()));
            let high = _mm512_cvtepi8_epi32(_mm_loadu_si128(src.as_ptr().add(16).cast()));
            let low = _mm512_mul_ps(_mm512_cvtepi32_ps(low), scales[0]);
            let high = _mm512_mul_ps(_mm512_cvtepi32_ps(high), scales[1]);
            _mm512_storeu_si512(out.as_mut_ptr().cast(), bits(_mm512_cvtne2ps_pbh(high, low)));
        }
    }
}
