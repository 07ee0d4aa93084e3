//! AVX-512 F, BW, CD, DQ and VL: 16 lanes.

use std::arch::x86_64::*;

use half::{bf16, f16};
use pulp::f32x16;
use pulp::x86::V4;

use crate::gemm::epilogue::{RowEpilogue, RowMut};
use crate::gemm::tile::{Lanes, TileArgs, TileKind};
use crate::generic::gemv::LoadBf16;
use crate::table::Table;
use crate::{Activation, MatRef, generic};

pub(crate) const TABLE: Table = Table { widen_f16, ..SHIMS };

shims! {
    [#[target_feature(
        enable = "sse3,ssse3,sse4.1,sse4.2,popcnt,fxsr,avx,avx2,bmi1,bmi2,fma,lzcnt,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"
    )]]
    // SAFETY: a function with these target features only runs on a CPU that has them all.
    unsafe { V4::new_unchecked() },
    Lanes512
}

impl LoadBf16 for V4 {
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> f32x16 {
        let src = &src[..16];
        // SAFETY: the token proves AVX-512; 32 bytes are read from 16 bf16.
        pulp::cast(unsafe {
            let bits = _mm256_loadu_si256(src.as_ptr().cast::<__m256i>());
            _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits))
        })
    }
}

#[target_feature(enable = "avx512f")]
fn widen_f16(src: &[f16], dst: &mut [f32]) {
    let (src, src_tail) = src.as_chunks::<16>();
    let (dst, dst_tail) = dst.as_chunks_mut::<16>();
    for (src, dst) in src.iter().zip(dst) {
        // SAFETY: 32 bytes are read from a chunk of 16 f16 and 64 written to a chunk of 16 f32.
        unsafe {
            let half = _mm256_loadu_si256(src.as_ptr().cast::<__m256i>());
            _mm512_storeu_ps(dst.as_mut_ptr(), _mm512_cvtph_ps(half));
        }
    }
    generic::convert::widen_f16(src_tail, dst_tail);
}

/// Lanes of 512 bits, which differ in their dot products of bf16 and int8: functions with the tier's
/// target features.
macro_rules! lanes_512 {
    ($(#[$doc:meta])* $name:ident, $dot_bf16:path, $dot_int8:path) => {
        $(#[$doc])*
        ///
        /// Only made by functions that have this tier's target features.
        #[derive(Clone, Copy)]
        struct $name;

        impl Lanes for $name {
            const LANES: usize = 16;
            const ACROSS: usize = 4;
            const ACROSS_ONE: usize = 4;
            type V = __m512i;

            #[inline(always)]
            fn zero(self) -> __m512i {
                // SAFETY: the value exists, so the CPU has AVX-512.
                unsafe { _mm512_setzero_si512() }
            }

            #[inline(always)]
            fn splat_f32(self, x: f32) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_castps_si512(_mm512_set1_ps(x)) }
            }

            #[inline(always)]
            fn splat_i32(self, x: i32) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_set1_epi32(x) }
            }

            #[inline(always)]
            unsafe fn load(self, p: *const u8) -> __m512i {
                // SAFETY: as above; the bytes are readable.
                unsafe { _mm512_loadu_si512(p.cast()) }
            }

            #[inline(always)]
            unsafe fn store(self, p: *mut u8, x: __m512i) {
                // SAFETY: as above; the bytes are writable.
                unsafe { _mm512_storeu_si512(p.cast(), x) }
            }

            #[inline(always)]
            unsafe fn splat(self, p: *const u8) -> __m512i {
                // SAFETY: as above; the bytes are readable.
                unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
            }

            #[inline(always)]
            fn dot_f32(self, acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
                // SAFETY: the value exists, so the CPU has AVX-512.
                unsafe { $crate::arch::avx512::dot_f32(acc, w, a) }
            }

            #[inline(always)]
            fn dot_bf16(self, acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { $dot_bf16(acc, w, a) }
            }

            #[inline(always)]
            fn dot_int8(self, acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { $dot_int8(acc, w, a) }
            }

            #[inline(always)]
            fn scaled(self, sum: __m512i, acc: __m512i, scale: __m512i) -> __m512i {
                // SAFETY: as above.
                self.dot_f32(sum, unsafe { _mm512_castps_si512(_mm512_cvtepi32_ps(acc)) }, scale)
            }

            #[inline(always)]
            fn mul(self, x: __m512i, y: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe {
                    _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y)))
                }
            }

            #[inline(always)]
            fn prefetch(self, p: *const u8) {
                // SAFETY: a prefetch of any address is harmless.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
            }
        }
    };
}
pub(super) use lanes_512;

lanes_512! {
    /// AVX-512 without dot-product instructions.
    Lanes512, dot_bf16, dot_int8
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn dot_f32(acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
    let (acc, w, a) = (_mm512_castsi512_ps(acc), _mm512_castsi512_ps(w), _mm512_castsi512_ps(a));
    _mm512_castps_si512(_mm512_fmadd_ps(w, a, acc))
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn dot_bf16(acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
    let odd = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let even = dot_f32(acc, _mm512_slli_epi32::<16>(w), _mm512_slli_epi32::<16>(a));
    dot_f32(even, _mm512_and_si512(w, odd), _mm512_and_si512(a, odd))
}

/// In 16 bits: `vpmaddubsw` would saturate.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn dot_int8(acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
    let low = _mm512_set1_epi16(0xff);
    let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(a));
    let even = _mm512_madd_epi16(_mm512_and_si512(w, low), even);
    let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(w), _mm512_srai_epi16::<8>(a));
    _mm512_add_epi32(acc, _mm512_add_epi32(even, odd))
}
