//! A rotation of 64 elements in 8 vectors: see the one of AVX-512.

use std::arch::x86_64::*;

/// As the generic `block`, with the same bits.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
pub(super) unsafe fn rotate_64(x: &mut [f32; 64]) {
    // SAFETY: the caller's promise; vectors of 8 are read from and written to 64 elements.
    unsafe {
        let p = x.as_mut_ptr();
        let mut v = [0, 8, 16, 24, 32, 40, 48, 56].map(|at| _mm256_loadu_ps(p.add(at)));
        for v in &mut v {
            *v = add_or_subtract::<0b1010_1010>(_mm256_permute_ps::<0b10_11_00_01>(*v), *v);
            *v = add_or_subtract::<0b1100_1100>(_mm256_permute_ps::<0b01_00_11_10>(*v), *v);
            *v = add_or_subtract::<0b1111_0000>(_mm256_permute2f128_ps::<1>(*v, *v), *v);
        }
        for half in [1, 2, 4] {
            for low in (0..8).filter(|low| low & half == 0) {
                let (a, b) = (v[low], v[low + half]);
                (v[low], v[low + half]) = (_mm256_add_ps(a, b), _mm256_sub_ps(a, b));
            }
        }
        for (i, v) in v.into_iter().enumerate() {
            _mm256_storeu_ps(p.add(i * 8), _mm256_mul_ps(v, _mm256_set1_ps(0.125)));
        }
    }
}

/// x + y, or x - y in the lanes of UPPER.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
unsafe fn add_or_subtract<const UPPER: i32>(x: __m256, y: __m256) -> __m256 {
    // SAFETY: passed on to the caller.
    unsafe { _mm256_blend_ps::<UPPER>(_mm256_add_ps(x, y), _mm256_sub_ps(x, y)) }
}
