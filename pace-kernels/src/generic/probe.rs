//! Loops that do nothing but keep a unit of the CPU busy.

use pulp::Simd;

use crate::gemm::tile::{Dots, TileKind};

/// Independent sums: more than latency times throughput of any multiply-add.
const SUMS: usize = 12;

/// Different activations of a round, each for several sums.
const ROWS: usize = 4;

/// `rounds` times 12 multiply-adds of registers. Returns the multiplications done.
#[inline(always)]
pub(crate) fn peak<L: Dots>(lanes: L, kind: TileKind, rounds: usize) -> u64 {
    let one = std::hint::black_box(1.0);
    let (w, a) = (lanes.splat_f32(one), lanes.splat_f32(one));
    let mut acc = [lanes.zero(); SUMS];
    match kind {
        TileKind::F32 => {
            for _ in 0..rounds {
                for acc in &mut acc {
                    *acc = lanes.dot_f32(*acc, w, a);
                }
            }
        }
        TileKind::Bf16 => {
            for _ in 0..rounds {
                for acc in &mut acc {
                    *acc = lanes.dot_bf16(*acc, w, a);
                }
            }
        }
        TileKind::Int8 => int8_rounds(lanes, rounds, &mut acc),
    }
    let inputs = match kind {
        TileKind::F32 => 1,
        TileKind::Bf16 => 2,
        TileKind::Int8 => 4,
    };
    for acc in acc {
        std::hint::black_box(acc);
    }
    (rounds * SUMS * L::LANES * inputs) as u64
}

/// From operands that change: where a tier's dot takes several instructions, those before the addition would be done once
/// for all rounds, and for all sums.
#[inline(always)]
fn int8_rounds<L: Dots>(lanes: L, rounds: usize, acc: &mut [L::V; SUMS]) {
    let weights = std::hint::black_box([[1_u8; 64]; SUMS / ROWS]);
    for _ in 0..rounds {
        let a = std::hint::black_box([1_i32; ROWS]);
        for (acc, w) in acc.chunks_exact_mut(ROWS).zip(&weights) {
            // SAFETY: the longest vector has 64 bytes, and an element 4.
            unsafe {
                let w = lanes.load(w.as_ptr());
                for (acc, a) in acc.iter_mut().zip(&a) {
                    *acc = lanes.dot_int8(*acc, w, lanes.splat((&raw const *a).cast()));
                }
            }
        }
    }
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
