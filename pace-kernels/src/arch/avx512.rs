//! AVX-512 F, BW, CD, DQ and VL: 16 lanes.

mod quantize;
mod rotate;

use std::arch::x86_64::*;

use half::{bf16, f16};
use pulp::f32x16;
use pulp::x86::V4;

use crate::attention::{AttentionTiles, Part, State, Step};
use crate::gemm::SKINNY_ROWS;
use crate::gemm::epilogue::{RowEpilogue, RowMut};
use crate::gemm::tile::{Dots, TileArgs, TileKind};
use crate::generic::lanes::{Lanes, Stored};
use crate::table::Table;
use crate::{ActMut, ActRef, Activation, DType, MatRef, RowNorm, generic};

pub(crate) const TABLE: Table = Table { widen_f16, tile_4_bit_products: SKINNY_ROWS, ..SHIMS };

shims! {
    [#[target_feature(
        enable = "sse3,ssse3,sse4.1,sse4.2,popcnt,fxsr,avx,avx2,bmi1,bmi2,fma,lzcnt,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"
    )]]
    // SAFETY: a function with these target features only runs on a CPU that has them all.
    unsafe { V4::new_unchecked() },
    Lanes512
}

impl Lanes for V4 {
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> f32x16 {
        let src = &src[..16];
        // SAFETY: the token proves AVX-512; 32 bytes are read from 16 bf16.
        pulp::cast(unsafe {
            let bits = _mm256_loadu_si256(src.as_ptr().cast::<__m256i>());
            _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits))
        })
    }

    #[inline(always)]
    fn store_bf16(self, x: f32x16, dst: &mut [bf16]) {
        let dst = &mut dst[..16];
        // SAFETY: the token proves AVX-512; 32 bytes are written to 16 bf16.
        unsafe {
            let x: __m512 = pulp::cast(x);
            let bits = _mm512_castps_si512(x);
            // Half a unit of the last place, and one more where the upper half is odd.
            let odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x1_0000));
            let below = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_mask_add_epi32(below, odd, below, _mm512_set1_epi32(1));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let bits = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
            let upper = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits));
            _mm256_storeu_si256(dst.as_mut_ptr().cast::<__m256i>(), upper);
        }
    }

    /// The scheme of [`generic::exp::exp`], with rounding and scaling by instructions made for them.
    #[inline(always)]
    fn exp(self, x: f32x16) -> f32x16 {
        use generic::exp::{C, EXP_HIGH, EXP_LOW, LN_2_HI, LN_2_LO};
        // SAFETY: the token proves AVX-512.
        unsafe {
            let x: __m512 = pulp::cast(x);
            // The second operand wins if either is NaN.
            let capped = _mm512_min_ps(_mm512_set1_ps(EXP_HIGH), x);
            let exponent = _mm512_mul_ps(capped, _mm512_set1_ps(std::f32::consts::LOG2_E));
            let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(exponent);
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN_2_HI), capped);
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN_2_LO), r);
            let p = _mm512_fmadd_ps(_mm512_set1_ps(C[3]), r, _mm512_set1_ps(C[2]));
            let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(C[1]));
            let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(C[0]));
            let p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
            let p = _mm512_add_ps(p, _mm512_set1_ps(1.0));
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(EXP_LOW));
            pulp::cast(_mm512_maskz_scalef_ps(keep, p, n))
        }
    }

    #[inline(always)]
    fn quantize_group<X: Stored>(self, src: &[X], values: &mut [i8]) -> (f32, i32) {
        quantize::group(self, src, values)
    }

    #[inline(always)]
    fn quantize_64<X: Stored>(self, src: &[X; 64], values: &mut [i8; 64]) -> (f32, i32) {
        quantize::group_of_64(self, src, values)
    }

    #[inline(always)]
    fn rotate_64(self, x: &mut [f32; 64]) {
        // SAFETY: the token proves AVX-512.
        unsafe { rotate::rotate_64(x) }
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
        pub(super) struct $name;

        impl Dots for $name {
            const LANES: usize = 16;
            const ACROSS: usize = 4;
            const ACROSS_ONE: usize = 4;
            type V = __m512i;
            type Quad = __m512i;
            type Table = __m512i;

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
            unsafe fn quad(self, p: *const u8) -> __m512i {
                // SAFETY: passed on to the caller.
                unsafe { self.splat(p) }
            }

            #[inline(always)]
            fn dot_quad(self, acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
                self.dot_int8(acc, w, a)
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
            fn low_nibbles(self, x: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_and_si512(x, _mm512_set1_epi8(15)) }
            }

            #[inline(always)]
            fn high_nibbles(self, x: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(x), _mm512_set1_epi8(15)) }
            }

            #[inline(always)]
            fn table(self, bytes: &[u8; 16]) -> __m512i {
                // SAFETY: as above; 16 bytes are read from 16.
                unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.as_ptr().cast())) }
            }

            #[inline(always)]
            fn look_up(self, table: __m512i, x: __m512i) -> __m512i {
                // SAFETY: as above.
                unsafe { _mm512_shuffle_epi8(table, x) }
            }

            #[inline(always)]
            unsafe fn load_f16(self, p: *const u16) -> __m512i {
                // SAFETY: as above; the bytes are readable.
                unsafe { _mm512_castps_si512(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
            }

            #[inline(always)]
            unsafe fn load_bf16(self, p: *const u16) -> __m512i {
                // SAFETY: as above; the bytes are readable.
                unsafe { _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))) }
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
