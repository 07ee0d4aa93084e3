//! From the f32 sums of one row of a tile to the output.

use half::bf16;
use pulp::Simd;

use crate::gemm::epilogue::{RowEpilogue, RowMut, RowRef};
use crate::generic::lanes::Lanes;
use crate::generic::{activation, convert, softmax};

/// Finishes `sums`, one row of a panel, into `out`.
#[inline(always)]
pub(crate) fn finish_row<S: Lanes>(simd: S, sums: &mut [f32], e: &RowEpilogue<'_>, out: RowMut<'_>) {
    if !e.scales.is_empty() {
        multiply(simd, sums, e.scales);
    }
    let (sums, up) = sums.split_at_mut(e.half);
    let sums = &mut sums[..out.len()];
    if !e.bias.is_empty() {
        softmax::add(simd, sums, e.bias);
    }
    if let Some(kind) = e.activation {
        activation::activate(simd, kind, sums);
    }
    if e.paired {
        let up = &mut up[..sums.len()];
        if !e.up_bias.is_empty() {
            softmax::add(simd, up, e.up_bias);
        }
        multiply(simd, sums, up);
    }
    match e.multiply {
        RowRef::None => {}
        RowRef::F32(other) => multiply(simd, sums, other),
        RowRef::Bf16(other) => multiply_bf16(sums, other),
    }
    match out {
        RowMut::F32(out) if e.accumulate => softmax::add(simd, out, sums),
        RowMut::F32(out) => out.copy_from_slice(sums),
        RowMut::Bf16(out) => {
            if e.accumulate {
                add_bf16(sums, out);
            }
            convert::narrow_bf16(simd, sums, out);
        }
    }
}

/// x *= y.
#[inline(always)]
fn multiply<S: Simd>(simd: S, x: &mut [f32], y: &[f32]) {
    let (xs, x_tail) = S::as_mut_simd_f32s(x);
    let (ys, y_tail) = S::as_simd_f32s(y);
    for (x, &y) in xs.iter_mut().zip(ys) {
        *x = simd.mul_f32s(*x, y);
    }
    for (x, &y) in x_tail.iter_mut().zip(y_tail) {
        *x *= y;
    }
}

#[inline(always)]
fn multiply_bf16(x: &mut [f32], y: &[bf16]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x *= f32::from_bits(u32::from(y.to_bits()) << 16);
    }
}

#[inline(always)]
fn add_bf16(x: &mut [f32], y: &[bf16]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += f32::from_bits(u32::from(y.to_bits()) << 16);
    }
}
