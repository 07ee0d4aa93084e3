//! Norms of rows: one pass for the sum of squares (two for LayerNorm, whose mean comes first), one to
//! scale. A row is at most a few times 16 KiB, so that every pass but the first reads it from L1 or L2.
//!
//! Sums run in the tier's lanes with four accumulators, always in the same order, so that a row has the
//! same result in any batch and on any thread, and whatever it is stored as.

use half::bf16;

use super::lanes::{Lanes, Stored};
use super::quantize;
use crate::norm::{NormKind, RowNorm};
use crate::{ActMut, ActRef, DType, Element, MatMut, MatRef};

/// out = norm(x), row by row.
#[inline(always)]
pub(crate) fn norm<S: Lanes>(simd: S, norm: &RowNorm<'_>, x: ActRef<'_>, out: ActMut<'_>) {
    match (x, out) {
        (ActRef::F32(x), ActMut::F32(out)) => norm_rows(simd, norm, x, out),
        (ActRef::F32(x), ActMut::Bf16(out)) => norm_rows(simd, norm, x, out),
        (ActRef::Bf16(x), ActMut::F32(out)) => norm_rows(simd, norm, x, out),
        (ActRef::Bf16(x), ActMut::Bf16(out)) => norm_rows(simd, norm, x, out),
    }
}

/// x += r, out = norm(x), row by row. `x` and `r` have the same type.
#[inline(always)]
pub(crate) fn add_norm<S: Lanes>(simd: S, norm: &RowNorm<'_>, x: ActMut<'_>, r: ActRef<'_>, out: ActMut<'_>) {
    match (x, r, out) {
        (ActMut::F32(x), ActRef::F32(r), ActMut::F32(out)) => add_norm_rows(simd, norm, x, r, out),
        (ActMut::F32(x), ActRef::F32(r), ActMut::Bf16(out)) => add_norm_rows(simd, norm, x, r, out),
        (ActMut::Bf16(x), ActRef::Bf16(r), ActMut::F32(out)) => add_norm_rows(simd, norm, x, r, out),
        (ActMut::Bf16(x), ActRef::Bf16(r), ActMut::Bf16(out)) => add_norm_rows(simd, norm, x, r, out),
        (x, r, _) => unreachable!("the caller has checked that {} is {}", x.dtype(), r.dtype()),
    }
}

/// The row norm(x), rounded to `dtype`, and quantised. `scratch` holds the row.
#[inline(always)]
pub(crate) fn norm_quantize<S: Lanes>(
    simd: S,
    norm: &RowNorm<'_>,
    x: ActRef<'_>,
    dtype: DType,
    scratch: &mut [f32],
    out: quantize::Out<'_>,
) {
    let cols = x.cols();
    if dtype == DType::Bf16 {
        let row = &mut bytemuck::cast_slice_mut::<f32, bf16>(scratch)[..cols];
        norm_row(simd, norm, x, row);
        quantize::groups(simd, row, out);
    } else {
        norm_row(simd, norm, x, scratch);
        quantize::groups(simd, scratch, out);
    }
}

#[inline(always)]
fn norm_row<S: Lanes, Y: Stored + Element>(simd: S, norm: &RowNorm<'_>, x: ActRef<'_>, out: &mut [Y]) {
    let out = MatMut::new(out, 1, x.cols());
    match x {
        ActRef::F32(x) => norm_rows(simd, norm, x, out),
        ActRef::Bf16(x) => norm_rows(simd, norm, x, out),
    }
}

#[inline(always)]
fn norm_rows<S: Lanes, X: Stored + Element, Y: Stored + Element>(
    simd: S,
    norm: &RowNorm<'_>,
    x: MatRef<'_, X>,
    mut out: MatMut<'_, Y>,
) {
    for i in 0..out.rows() {
        let row = x.row(i);
        let moments = Moments::of(simd, norm, row);
        scaled(simd, norm, moments, row, out.row_mut(i));
    }
}

#[inline(always)]
fn add_norm_rows<S: Lanes, X: Stored + Element, Y: Stored + Element>(
    simd: S,
    norm: &RowNorm<'_>,
    mut x: MatMut<'_, X>,
    r: MatRef<'_, X>,
    mut out: MatMut<'_, Y>,
) {
    for i in 0..out.rows() {
        let row = x.row_mut(i);
        add(simd, row, r.row(i));
        let moments = Moments::of(simd, norm, row);
        scaled(simd, norm, moments, row, out.row_mut(i));
    }
}

/// What a row is shifted and scaled by.
#[derive(Clone, Copy)]
struct Moments {
    mean: f32,
    inverse: f32,
}

impl Moments {
    #[inline(always)]
    fn of<S: Lanes, X: Stored>(simd: S, norm: &RowNorm<'_>, x: &[X]) -> Self {
        let mean = match norm.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => sum(simd, x) / x.len() as f32,
        };
        let variance = sum_of_squares(simd, x, mean) / x.len() as f32;
        Self { mean, inverse: 1.0 / (variance + norm.eps).sqrt() }
    }
}

/// out = (x - mean) * inverse * (weight + offset) + bias.
#[inline(always)]
fn scaled<S: Lanes, X: Stored, Y: Stored>(
    simd: S,
    norm: &RowNorm<'_>,
    moments: Moments,
    x: &[X],
    out: &mut [Y],
) {
    let lanes = S::F32_LANES;
    let factors = Factors {
        mean: simd.splat_f32s(moments.mean),
        inverse: simd.splat_f32s(moments.inverse),
        offset: simd.splat_f32s(norm.weight_offset),
    };
    let (weights, out) = (&norm.weight[..x.len()], &mut out[..x.len()]);
    let (xs, ws, outs) = (x.chunks_exact(lanes), weights.chunks_exact(lanes), out.chunks_exact_mut(lanes));
    let (x_tail, w_tail) = (xs.remainder(), ws.remainder());
    let at = x.len() - x_tail.len();
    match norm.bias {
        None => {
            for ((x, w), out) in xs.zip(ws).zip(outs) {
                Y::store(simd, factors.apply(simd, X::load(simd, x), f32::load(simd, w)), out);
            }
        }
        Some(bias) => {
            let bs = bias[..x.len()].chunks_exact(lanes);
            for (((x, w), b), out) in xs.zip(ws).zip(bs).zip(outs) {
                let y = factors.apply(simd, X::load(simd, x), f32::load(simd, w));
                Y::store(simd, simd.add_f32s(y, f32::load(simd, b)), out);
            }
        }
    }
    if !x_tail.is_empty() {
        let mut y = factors.apply(simd, X::load_tail(simd, x_tail), f32::load_tail(simd, w_tail));
        if let Some(bias) = norm.bias {
            y = simd.add_f32s(y, f32::load_tail(simd, &bias[at..]));
        }
        Y::store_tail(simd, y, &mut out[at..]);
    }
}

#[derive(Clone, Copy)]
struct Factors<V> {
    mean: V,
    inverse: V,
    offset: V,
}

impl<V: Copy> Factors<V> {
    #[inline(always)]
    fn apply<S: Lanes<f32s = V>>(self, simd: S, x: V, weight: V) -> V {
        let x = simd.mul_f32s(simd.sub_f32s(x, self.mean), self.inverse);
        simd.mul_f32s(x, simd.add_f32s(weight, self.offset))
    }
}

/// x += r, rounded to the type of x.
#[inline(always)]
fn add<S: Lanes, X: Stored>(simd: S, x: &mut [X], r: &[X]) {
    let mut xs = x.chunks_exact_mut(S::F32_LANES);
    let rs = r.chunks_exact(S::F32_LANES);
    let r_tail = rs.remainder();
    for (x, r) in xs.by_ref().zip(rs) {
        let sum = simd.add_f32s(X::load(simd, x), X::load(simd, r));
        X::store(simd, sum, x);
    }
    let x_tail = xs.into_remainder();
    if !x_tail.is_empty() {
        let sum = simd.add_f32s(X::load_tail(simd, x_tail), X::load_tail(simd, r_tail));
        X::store_tail(simd, sum, x_tail);
    }
}

#[inline(always)]
fn sum<S: Lanes, X: Stored>(simd: S, x: &[X]) -> f32 {
    let lanes = S::F32_LANES;
    let quads = x.chunks_exact(4 * lanes);
    let rest = quads.remainder().chunks_exact(lanes);
    let tail = rest.remainder();
    let mut acc = [simd.splat_f32s(0.0); 4];
    for quad in quads {
        for (i, acc) in acc.iter_mut().enumerate() {
            *acc = simd.add_f32s(*acc, X::load(simd, &quad[i * lanes..]));
        }
    }
    for x in rest {
        acc[0] = simd.add_f32s(acc[0], X::load(simd, x));
    }
    if !tail.is_empty() {
        acc[1] = simd.add_f32s(acc[1], X::load_tail(simd, tail));
    }
    reduce(simd, acc)
}

/// The sum of (x - mean)^2.
#[inline(always)]
fn sum_of_squares<S: Lanes, X: Stored>(simd: S, x: &[X], mean: f32) -> f32 {
    let lanes = S::F32_LANES;
    let quads = x.chunks_exact(4 * lanes);
    let rest = quads.remainder().chunks_exact(lanes);
    let tail = rest.remainder();
    let means = simd.splat_f32s(mean);
    let mut acc = [simd.splat_f32s(0.0); 4];
    for quad in quads {
        for (i, acc) in acc.iter_mut().enumerate() {
            let d = simd.sub_f32s(X::load(simd, &quad[i * lanes..]), means);
            *acc = simd.mul_add_e_f32s(d, d, *acc);
        }
    }
    for x in rest {
        let d = simd.sub_f32s(X::load(simd, x), means);
        acc[0] = simd.mul_add_e_f32s(d, d, acc[0]);
    }
    let mut total = reduce(simd, acc);
    // The spare lanes of a vector would count (0 - mean)^2.
    for x in tail {
        let d = x.widen() - mean;
        total += d * d;
    }
    total
}

#[inline(always)]
pub(super) fn reduce<S: pulp::Simd>(simd: S, acc: [S::f32s; 4]) -> f32 {
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(acc[0], acc[1]), simd.add_f32s(acc[2], acc[3])))
}
