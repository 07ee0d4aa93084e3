//! Products of one row with a matrix, bound by the memory that the matrix comes from.

use half::bf16;
use pulp::Simd;

use super::lanes::Lanes;
use crate::MatRef;

/// c[j] (+)= a . w.row(j): four rows of `w` at a time, two accumulators for each.
#[inline(always)]
pub(crate) fn gemv_nt<S: Simd>(simd: S, a: &[f32], w: MatRef<'_, f32>, c: &mut [f32], accumulate: bool) {
    let (quads, rest) = c.as_chunks_mut::<4>();
    let mut j = 0;
    for quad in quads {
        let sums = dots(simd, a, [w.row(j), w.row(j + 1), w.row(j + 2), w.row(j + 3)]);
        for (c, sum) in quad.iter_mut().zip(sums) {
            *c = if accumulate { *c + sum } else { sum };
        }
        j += 4;
    }
    for c in rest {
        let [sum] = dots(simd, a, [w.row(j)]);
        *c = if accumulate { *c + sum } else { sum };
        j += 1;
    }
}

/// c[j] = a . w.row(j) with bf16 weights, widened in registers.
#[inline(always)]
pub(crate) fn gemv_nt_bf16<S: Lanes>(simd: S, a: &[f32], w: MatRef<'_, bf16>, c: &mut [f32]) {
    let (quads, rest) = c.as_chunks_mut::<4>();
    let mut j = 0;
    for quad in quads {
        *quad = dots_bf16(simd, a, [w.row(j), w.row(j + 1), w.row(j + 2), w.row(j + 3)]);
        j += 4;
    }
    for c in rest {
        [*c] = dots_bf16(simd, a, [w.row(j)]);
        j += 1;
    }
}

/// c (+)= a[0] * b.row(0) + a[1] * b.row(1) + ..., four rows of `b` at a time.
#[inline(always)]
pub(crate) fn gemv_nn<S: Simd>(simd: S, a: &[f32], b: MatRef<'_, f32>, c: &mut [f32], accumulate: bool) {
    if !accumulate {
        c.fill(0.0);
    }
    let (quads, rest) = a.as_chunks::<4>();
    let mut i = 0;
    for quad in quads {
        add_rows(simd, *quad, [b.row(i), b.row(i + 1), b.row(i + 2), b.row(i + 3)], c);
        i += 4;
    }
    for &a in rest {
        add_rows(simd, [a], [b.row(i)], c);
        i += 1;
    }
}

#[inline(always)]
fn dots<S: Simd, const R: usize>(simd: S, a: &[f32], rows: [&[f32]; R]) -> [f32; R] {
    let (a_head, a_tail) = S::as_simd_f32s(a);
    let mut heads: [&[S::f32s]; R] = [&[]; R];
    let mut tails: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        let (head, tail) = S::as_simd_f32s(rows[r]);
        (heads[r], tails[r]) = (&head[..a_head.len()], &tail[..a_tail.len()]);
    }
    let mut even = [simd.splat_f32s(0.0); R];
    let mut odd = even;
    let pairs = a_head.len() / 2;
    for i in 0..pairs {
        let (a0, a1) = (a_head[2 * i], a_head[2 * i + 1]);
        for r in 0..R {
            even[r] = simd.mul_add_e_f32s(a0, heads[r][2 * i], even[r]);
            odd[r] = simd.mul_add_e_f32s(a1, heads[r][2 * i + 1], odd[r]);
        }
    }
    let mut sums = [0.0; R];
    let last_a = simd.partial_load_f32s(a_tail);
    for r in 0..R {
        if a_head.len() % 2 == 1 {
            even[r] = simd.mul_add_e_f32s(a_head[2 * pairs], heads[r][2 * pairs], even[r]);
        }
        odd[r] = simd.mul_add_e_f32s(last_a, simd.partial_load_f32s(tails[r]), odd[r]);
        sums[r] = simd.reduce_sum_f32s(simd.add_f32s(even[r], odd[r]));
    }
    sums
}

#[inline(always)]
fn dots_bf16<S: Lanes, const R: usize>(simd: S, a: &[f32], rows: [&[bf16]; R]) -> [f32; R] {
    let (a_head, a_tail) = S::as_simd_f32s(a);
    let mut acc = [simd.splat_f32s(0.0); R];
    for (i, &a) in a_head.iter().enumerate() {
        for r in 0..R {
            acc[r] = simd.mul_add_e_f32s(simd.load_bf16(&rows[r][i * S::F32_LANES..]), a, acc[r]);
        }
    }
    let mut sums = [0.0; R];
    let start = a_head.len() * S::F32_LANES;
    for r in 0..R {
        sums[r] = simd.reduce_sum_f32s(acc[r]);
        for (w, a) in rows[r][start..].iter().zip(a_tail) {
            sums[r] += w.to_f32() * a;
        }
    }
    sums
}

#[inline(always)]
fn add_rows<S: Simd, const R: usize>(simd: S, a: [f32; R], rows: [&[f32]; R], c: &mut [f32]) {
    let (c_head, c_tail) = S::as_mut_simd_f32s(c);
    let mut heads: [&[S::f32s]; R] = [&[]; R];
    let mut factors = [simd.splat_f32s(0.0); R];
    for r in 0..R {
        heads[r] = &S::as_simd_f32s(rows[r]).0[..c_head.len()];
        factors[r] = simd.splat_f32s(a[r]);
    }
    for i in 0..c_head.len() {
        let mut sum = c_head[i];
        for r in 0..R {
            sum = simd.mul_add_e_f32s(factors[r], heads[r][i], sum);
        }
        c_head[i] = sum;
    }
    let start = c_head.len() * S::F32_LANES;
    for (i, c) in c_tail.iter_mut().enumerate() {
        for r in 0..R {
            *c += a[r] * rows[r][start + i];
        }
    }
}
