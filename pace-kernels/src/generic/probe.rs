//! Loops that do nothing but keep a unit of the CPU busy.

// The loops run over registers, which indices name.
#![allow(clippy::needless_range_loop)]

use pulp::Simd;

use crate::gemm::tile::{Dots, TileKind};

/// Independent sums: more than latency times throughput of any multiply-add.
const SUMS: usize = 12;

/// Rows of an int8 tile of 16 registers, and vectors across that the widest tier's has.
const ROWS: usize = 4;
const MOST_ACROSS: usize = 4;

/// `rounds` times some multiply-adds of registers. Returns the multiplications done.
#[inline(always)]
pub(crate) fn peak<L: Dots>(lanes: L, kind: TileKind, rounds: usize) -> u64 {
    match kind {
        TileKind::F32 => float_peak::<L, false>(lanes, rounds),
        TileKind::Bf16 => float_peak::<L, true>(lanes, rounds),
        TileKind::Int8 => int8_peak(lanes, rounds),
    }
}

#[inline(always)]
fn float_peak<L: Dots, const BF16: bool>(lanes: L, rounds: usize) -> u64 {
    let one = std::hint::black_box(1.0);
    let (w, a) = (lanes.splat_f32(one), lanes.splat_f32(one));
    let mut acc = [lanes.zero(); SUMS];
    for _ in 0..rounds {
        for acc in &mut acc {
            *acc = if BF16 { lanes.dot_bf16(*acc, w, a) } else { lanes.dot_f32(*acc, w, a) };
        }
    }
    std::hint::black_box(acc);
    (rounds * SUMS * L::LANES * if BF16 { 2 } else { 1 }) as u64
}

/// As [`peak`], from operands that change, and as many sums as a tile has: where a tier's dot takes several instructions,
/// those before the addition would be done once for all rounds and sums, or the registers would not hold what they need.
#[inline(always)]
fn int8_peak<L: Dots>(lanes: L, rounds: usize) -> u64 {
    let weights = std::hint::black_box([[1_u8; 64]; MOST_ACROSS]);
    let mut acc = [[lanes.zero(); MOST_ACROSS]; ROWS];
    for _ in 0..rounds {
        let a = std::hint::black_box([[1_u8; 8]; ROWS]);
        let mut w = [lanes.zero(); MOST_ACROSS];
        for v in 0..L::ACROSS {
            // SAFETY: the longest vector has 64 bytes.
            w[v] = unsafe { lanes.load(weights[v].as_ptr()) };
        }
        for r in 0..ROWS {
            // SAFETY: the longest quad has 8 bytes.
            let a = unsafe { lanes.quad(a[r].as_ptr()) };
            for v in 0..L::ACROSS {
                acc[r][v] = lanes.dot_quad(acc[r][v], w[v], a);
            }
        }
    }
    std::hint::black_box(acc);
    (rounds * ROWS * L::ACROSS * L::LANES * 4) as u64
}

/// Reads all of `x` front to back and returns its sum, so that no read can be left out.
#[inline(always)]
pub(crate) fn read<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (head, tail) = S::as_simd_f32s(x);
    let (blocks, rest) = head.as_chunks::<8>();
    let mut acc = [simd.splat_f32s(0.0); 8];
    for block in blocks {
        for i in 0..8 {
            acc[i] = simd.add_f32s(acc[i], block[i]);
        }
    }
    let mut sum = tail.iter().sum::<f32>();
    for &x in rest.iter().chain(&acc) {
        sum += simd.reduce_sum_f32s(x);
    }
    sum
}
