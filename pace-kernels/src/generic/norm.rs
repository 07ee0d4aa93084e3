//! Norms of one row. Sums run in the tier's lanes with four accumulators.

use pulp::Simd;

#[inline(always)]
pub(crate) fn rms_norm<S: Simd>(simd: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let zero = simd.splat_f32s(0.0);
    let mean_square = sum_of_squares(simd, x, zero) / x.len() as f32;
    let inverse = 1.0 / (mean_square + eps).sqrt();
    scaled(simd, x, zero, simd.splat_f32s(inverse), weight, &[], out);
}

#[inline(always)]
pub(crate) fn layer_norm<S: Simd>(
    simd: S,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let mean = simd.splat_f32s(sum(simd, x) / x.len() as f32);
    let variance = sum_of_squares(simd, x, mean) / x.len() as f32;
    let inverse = 1.0 / (variance + eps).sqrt();
    scaled(simd, x, mean, simd.splat_f32s(inverse), weight, bias, out);
}

/// out = (x - mean) * inverse * weight + bias; an empty bias counts as 0.
#[inline(always)]
fn scaled<S: Simd>(
    simd: S,
    x: &[f32],
    mean: S::f32s,
    inverse: S::f32s,
    weight: &[f32],
    bias: &[f32],
    out: &mut [f32],
) {
    let (xs, x_tail) = S::as_simd_f32s(x);
    let (weights, weight_tail) = S::as_simd_f32s(weight);
    let (outs, out_tail) = S::as_mut_simd_f32s(out);
    for ((out, &x), &weight) in outs.iter_mut().zip(xs).zip(weights) {
        *out = simd.mul_f32s(simd.mul_f32s(simd.sub_f32s(x, mean), inverse), weight);
    }
    if !out_tail.is_empty() {
        let x = simd.mul_f32s(simd.sub_f32s(simd.partial_load_f32s(x_tail), mean), inverse);
        simd.partial_store_f32s(out_tail, simd.mul_f32s(x, simd.partial_load_f32s(weight_tail)));
    }
    if !bias.is_empty() {
        super::softmax::add(simd, out, bias);
    }
}

#[inline(always)]
fn sum<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (head, tail) = S::as_simd_f32s(x);
    let (quads, rest) = head.as_chunks::<4>();
    let mut acc = [simd.splat_f32s(0.0); 4];
    for quad in quads {
        for i in 0..4 {
            acc[i] = simd.add_f32s(acc[i], quad[i]);
        }
    }
    for &x in rest {
        acc[0] = simd.add_f32s(acc[0], x);
    }
    acc[1] = simd.add_f32s(acc[1], simd.partial_load_f32s(tail));
    reduce(simd, acc)
}

/// The sum of (x - mean)^2.
#[inline(always)]
fn sum_of_squares<S: Simd>(simd: S, x: &[f32], mean: S::f32s) -> f32 {
    let (head, tail) = S::as_simd_f32s(x);
    let (quads, rest) = head.as_chunks::<4>();
    let mut acc = [simd.splat_f32s(0.0); 4];
    for quad in quads {
        for i in 0..4 {
            let d = simd.sub_f32s(quad[i], mean);
            acc[i] = simd.mul_add_e_f32s(d, d, acc[i]);
        }
    }
    for &x in rest {
        let d = simd.sub_f32s(x, mean);
        acc[0] = simd.mul_add_e_f32s(d, d, acc[0]);
    }
    let mut total = reduce(simd, acc);
    // The spare lanes of a vector tail would count (0 - mean)^2.
    let mean = simd.reduce_max_f32s(mean);
    for &x in tail {
        total += (x - mean) * (x - mean);
    }
    total
}

#[inline(always)]
pub(super) fn reduce<S: Simd>(simd: S, acc: [S::f32s; 4]) -> f32 {
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(acc[0], acc[1]), simd.add_f32s(acc[2], acc[3])))
}
