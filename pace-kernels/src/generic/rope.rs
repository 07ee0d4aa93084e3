//! Rotary position embedding of the heads of one token.

use pulp::Simd;

/// Rotates the pairs (x[i], x[i + h]) of every head, where h = cos.len().
#[inline(always)]
pub(crate) fn rope_half<S: Simd>(simd: S, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let (cos_head, cos_tail) = S::as_simd_f32s(cos);
    let (sin_head, sin_tail) = S::as_simd_f32s(sin);
    for x in x.chunks_exact_mut(head_dim) {
        let (a, b) = x[..2 * cos.len()].split_at_mut(cos.len());
        let (a_head, a_tail) = S::as_mut_simd_f32s(a);
        let (b_head, b_tail) = S::as_mut_simd_f32s(b);
        for (((a, b), &cos), &sin) in a_head.iter_mut().zip(b_head).zip(cos_head).zip(sin_head) {
            (*a, *b) = rotate(simd, *a, *b, cos, sin);
        }
        if !a_tail.is_empty() {
            let (a, b) = rotate(
                simd,
                simd.partial_load_f32s(a_tail),
                simd.partial_load_f32s(b_tail),
                simd.partial_load_f32s(cos_tail),
                simd.partial_load_f32s(sin_tail),
            );
            simd.partial_store_f32s(a_tail, a);
            simd.partial_store_f32s(b_tail, b);
        }
    }
}

/// (a cos - b sin, b cos + a sin).
#[inline(always)]
fn rotate<S: Simd>(simd: S, a: S::f32s, b: S::f32s, cos: S::f32s, sin: S::f32s) -> (S::f32s, S::f32s) {
    let minus_sin = simd.sub_f32s(simd.splat_f32s(0.0), sin);
    (
        simd.mul_add_e_f32s(b, minus_sin, simd.mul_f32s(a, cos)),
        simd.mul_add_e_f32s(a, sin, simd.mul_f32s(b, cos)),
    )
}

/// Rotates the pairs (x[2i], x[2i + 1]) of every head, as a plain loop, which the compiler turns into each
/// tier's vectors and shuffles.
#[inline(always)]
pub(crate) fn rope_interleaved(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    for x in x.chunks_exact_mut(head_dim) {
        for ((pair, &cos), &sin) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
            let [a, b] = *pair;
            *pair = [a * cos - b * sin, b * cos + a * sin];
        }
    }
}
