//! What softmax and its relatives are made of, and plain sums and scalings.

use pulp::Simd;

use super::lanes::Lanes;
use super::norm::reduce;

/// The largest element; NaN is passed over. -inf without any.
#[inline(always)]
pub(crate) fn max<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (head, tail) = S::as_simd_f32s(x);
    let (quads, rest) = head.as_chunks::<4>();
    let mut acc = [simd.splat_f32s(f32::NEG_INFINITY); 4];
    for quad in quads {
        for i in 0..4 {
            acc[i] = larger(simd, quad[i], acc[i]);
        }
    }
    for &x in rest {
        acc[0] = larger(simd, x, acc[0]);
    }
    let acc = larger(simd, larger(simd, acc[0], acc[1]), larger(simd, acc[2], acc[3]));
    tail.iter().fold(simd.reduce_max_f32s(acc), |max, &x| if x > max { x } else { max })
}

/// x if it is larger than `max`; NaN is not.
#[inline(always)]
fn larger<S: Simd>(simd: S, x: S::f32s, max: S::f32s) -> S::f32s {
    simd.select_f32s(simd.greater_than_f32s(x, max), x, max)
}

/// x = e^(x - shift); returns the sum.
#[inline(always)]
pub(crate) fn exp_sub<S: Lanes>(simd: S, x: &mut [f32], shift: f32) -> f32 {
    let shifts = simd.splat_f32s(shift);
    let (head, tail) = S::as_mut_simd_f32s(x);
    let (quads, rest) = head.as_chunks_mut::<4>();
    let mut acc = [simd.splat_f32s(0.0); 4];
    for quad in quads {
        for i in 0..4 {
            quad[i] = simd.exp(simd.sub_f32s(quad[i], shifts));
            acc[i] = simd.add_f32s(acc[i], quad[i]);
        }
    }
    for x in rest {
        *x = simd.exp(simd.sub_f32s(*x, shifts));
        acc[0] = simd.add_f32s(acc[0], *x);
    }
    let mut total = reduce(simd, acc);
    if !tail.is_empty() {
        let e = simd.exp(simd.sub_f32s(simd.partial_load_f32s(tail), shifts));
        simd.partial_store_f32s(tail, e);
        total += tail.iter().sum::<f32>();
    }
    total
}

/// x += y.
#[inline(always)]
pub(crate) fn add<S: Simd>(simd: S, x: &mut [f32], y: &[f32]) {
    let (xs, x_tail) = S::as_mut_simd_f32s(x);
    let (ys, y_tail) = S::as_simd_f32s(y);
    for (x, &y) in xs.iter_mut().zip(ys) {
        *x = simd.add_f32s(*x, y);
    }
    for (x, &y) in x_tail.iter_mut().zip(y_tail) {
        *x += y;
    }
}

/// x *= factor.
#[inline(always)]
pub(crate) fn scale<S: Simd>(simd: S, x: &mut [f32], factor: f32) {
    let factors = simd.splat_f32s(factor);
    let (xs, x_tail) = S::as_mut_simd_f32s(x);
    for x in xs {
        *x = simd.mul_f32s(*x, factors);
    }
    for x in x_tail {
        *x *= factor;
    }
}
