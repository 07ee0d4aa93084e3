//! AVX-512 F, BW, CD, DQ and VL: 16 lanes.

mod quantize;

use std::arch::x86_64::*;

use half::{bf16, f16};
use pulp::f32x16;
use pulp::x86::V4;

use crate::generic::lanes::{Lanes, Stored};
use crate::table::Table;
use crate::{ActMut, ActRef, Activation, MatRef, RowNorm, generic};

pub(crate) const TABLE: Table = Table { widen_f16, ..SHIMS };

shims! {
    [#[target_feature(
        enable = "sse3,ssse3,sse4.1,sse4.2,popcnt,fxsr,avx,avx2,bmi1,bmi2,fma,lzcnt,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"
    )]]
    // SAFETY: a function with these target features only runs on a CPU that has them all.
    unsafe { V4::new_unchecked() }
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
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
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
