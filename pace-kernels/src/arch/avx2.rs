//! AVX2, FMA and F16C: 8 lanes.

use std::arch::x86_64::{
    __m128i, _mm_loadu_si128, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_slli_epi32, _mm256_storeu_ps,
};

use half::{bf16, f16};
use pulp::f32x8;
use pulp::x86::V3;

use crate::attention::{AttentionTiles, Part, State, Step};
use crate::generic::gemv::LoadBf16;
use crate::table::Table;
use crate::{Activation, MatRef, generic};

pub(crate) const TABLE: Table = Table { widen_f16, ..SHIMS };

shims! {
    [#[target_feature(
        enable = "sse3,ssse3,sse4.1,sse4.2,popcnt,fxsr,avx,avx2,bmi1,bmi2,fma,lzcnt,f16c"
    )]]
    // SAFETY: a function with these target features only runs on a CPU that has them all.
    unsafe { V3::new_unchecked() }
}

impl LoadBf16 for V3 {
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> f32x8 {
        let src = &src[..8];
        // SAFETY: the token proves AVX2; 16 bytes are read from 8 bf16.
        pulp::cast(unsafe {
            let bits = _mm_loadu_si128(src.as_ptr().cast::<__m128i>());
            _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))
        })
    }
}

#[target_feature(enable = "avx2,f16c")]
fn widen_f16(src: &[f16], dst: &mut [f32]) {
    let (src, src_tail) = src.as_chunks::<8>();
    let (dst, dst_tail) = dst.as_chunks_mut::<8>();
    for (src, dst) in src.iter().zip(dst) {
        // SAFETY: 16 bytes are read from a chunk of 8 f16 and 32 written to a chunk of 8 f32.
        unsafe {
            let half = _mm_loadu_si128(src.as_ptr().cast::<__m128i>());
            _mm256_storeu_ps(dst.as_mut_ptr(), _mm256_cvtph_ps(half));
        }
    }
    generic::convert::widen_f16(src_tail, dst_tail);
}
