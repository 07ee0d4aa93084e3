//! AVX-512 F, BW, CD, DQ and VL: 16 lanes.

use std::arch::x86_64::{
    __m256i, _mm256_loadu_si256, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_slli_epi32, _mm512_storeu_ps,
};

use half::{bf16, f16};
use pulp::f32x16;
use pulp::x86::V4;

use crate::attention::{AttentionTiles, Part, State, Step};
use crate::generic::gemv::LoadBf16;
use crate::table::Table;
use crate::{Activation, MatRef, generic};

pub(crate) const TABLE: Table = Table { widen_f16, ..SHIMS };

shims! {
    [#[target_feature(
        enable = "sse3,ssse3,sse4.1,sse4.2,popcnt,fxsr,avx,avx2,bmi1,bmi2,fma,lzcnt,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"
    )]]
    // SAFETY: a function with these target features only runs on a CPU that has them all.
    unsafe { V4::new_unchecked() }
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
