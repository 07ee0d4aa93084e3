//! A rotation of 64 elements in 4 vectors.
//!
//! Steps between elements that are 16 or 32 apart are between vectors. A step within vectors swaps the elements of each pair and
//! adds, or subtracts in the lanes of the upper ones. Lost: the compiler's version of the generic loop (five times as long,
//! it takes elements one by one).

use std::arch::x86_64::*;

/// As the generic `block`, with the same bits.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
pub(super) unsafe fn rotate_64(x: &mut [f32; 64]) {
    // SAFETY: the caller's promise; vectors of 16 are read from and written to 64 elements.
    unsafe {
        let p = x.as_mut_ptr();
        let mut v = [0, 16, 32, 48].map(|at| _mm512_loadu_ps(p.add(at)));
        for v in &mut v {
            *v = add_or_subtract(0xaaaa, _mm512_permute_ps::<0b10_11_00_01>(*v), *v);
            *v = add_or_subtract(0xcccc, _mm512_permute_ps::<0b01_00_11_10>(*v), *v);
            *v = add_or_subtract(0xf0f0, _mm512_shuffle_f32x4::<0b10_11_00_01>(*v, *v), *v);
            *v = add_or_subtract(0xff00, _mm512_shuffle_f32x4::<0b01_00_11_10>(*v, *v), *v);
        }
        let [a, b, c, d] = v;
        let (a, b) = (_mm512_add_ps(a, b), _mm512_sub_ps(a, b));
        let (c, d) = (_mm512_add_ps(c, d), _mm512_sub_ps(c, d));
        let v = [_mm512_add_ps(a, c), _mm512_add_ps(b, d), _mm512_sub_ps(a, c), _mm512_sub_ps(b, d)];
        for (i, v) in v.into_iter().enumerate() {
            _mm512_storeu_ps(p.add(i * 16), _mm512_mul_ps(v, _mm512_set1_ps(0.125)));
        }
    }
}

/// x + y, or x - y in the lanes of `upper`.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn add_or_subtract(upper: __mmask16, x: __m512, y: __m512) -> __m512 {
    // SAFETY: passed on to the caller.
    unsafe { _mm512_mask_sub_ps(_mm512_add_ps(x, y), upper, x, y) }
}
