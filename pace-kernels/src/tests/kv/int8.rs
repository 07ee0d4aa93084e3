//! What is particular to int8 blocks: how rows are quantised, and how blocks become bf16 blocks.

use half::bf16;
use proptest::prelude::*;

use super::Block;
use crate::attention::{KvElement, split_scales};
use crate::tests::guard::{Flush, Guarded};
use crate::tests::{noise_vec, tiers};
use crate::{Element, KV_BLOCK, Kernels, KvDType, KvLayout, KvMut, KvRef, MatRef};

/// A block of `rows` keys, which are the values, too, from slot `first` on.
fn block<E: Element>(layout: &KvLayout, first: usize, rows: MatRef<'_, E>) -> Vec<i8> {
    let mut block = Block::nan(layout);
    layout.append_rows(block.as_mut(), first, rows, rows);
    let Block::Int8(block) = block else { unreachable!() };
    block
}

#[test]
fn a_row_is_quantised_as_a_group_of_rotated_activations_is() {
    fn check<E: Element>(d: usize, kernels: &Kernels) {
        let layout = KvLayout::new(KvDType::Int8, d);
        let (first, tokens) = (3, 20);
        let data: Vec<E> = noise_vec(5, tokens * d).into_iter().map(E::from_f32).collect();
        let block = block(&layout, first, MatRef::new(&data, tokens, d));
        let ([k_scales, v_scales], elements) = split_scales(&block);
        for (t, row) in data.chunks_exact(d).enumerate() {
            let (mut values, mut scale, mut sum) = (vec![0; d], [0.0], [0]);
            let row = super::rotated(&row.iter().map(|x| x.to_f32()).collect::<Vec<_>>());
            kernels.quantize_groups(&row, d, &mut values, &mut scale, &mut sum);
            let slot = first + t;
            assert_eq!([k_scales[slot], v_scales[slot]], [scale[0]; 2]);
            for (j, (&x, &q)) in row.iter().zip(&values).enumerate() {
                let (k_at, v_at) = super::places(&layout, slot, j);
                let start = layout.k_start();
                assert_eq!([elements[k_at - start], elements[v_at - start]], [q; 2], "{d} {slot} {j}");
                // Half a scale, and what the roundings of scale and inverse add.
                let off = (f64::from(x) - f64::from(q) * f64::from(scale[0])).abs();
                assert!(off <= 0.500_02 * f64::from(scale[0]), "{x:?} is {q} of {}", scale[0]);
            }
        }
    }
    for kernels in tiers() {
        for d in [1, 2, 7, 16, 33, 64, 65, 80, 128, 200] {
            check::<f32>(d, &kernels);
            check::<bf16>(d, &kernels);
        }
    }
}

#[test]
fn rows_of_zeros_and_rows_that_are_not_finite() {
    let layout = KvLayout::new(KvDType::Int8, 8);
    let mut rows = noise_vec(1, 5 * 8);
    rows[..8].fill(0.0);
    rows[8..16].fill(1e-37);
    rows[16] = f32::NAN;
    rows[24] = f32::NEG_INFINITY;
    let block = block(&layout, 0, MatRef::new(&rows, 5, 8));
    for kernels in tiers() {
        let (mut k, mut v) = (vec![9.0; 8 * KV_BLOCK], vec![9.0; 5 * 8]);
        layout.unpack_k(&kernels, KvRef::Int8(&block), 5, &mut k);
        layout.unpack_v(&kernels, KvRef::Int8(&block), 5, &mut v);
        for (j, t) in (0..8).flat_map(|j| (0..5).map(move |t| (j, t))) {
            for x in [k[j * KV_BLOCK + t], v[t * 8 + j]] {
                match t {
                    0 | 1 => assert_eq!(x, 0.0),
                    2 | 3 => assert!(x.is_nan(), "{x}"),
                    _ => assert!((x - rows[t * 8 + j]).abs() < 0.01),
                }
            }
        }
    }
}

/// Unpacks by every tier, whose operands lie next to pages without access, and compares with the definition.
fn check_unpacked(d: usize, scale: f32, filled: usize, seen: std::ops::Range<usize>, flush: Flush) {
    let layout = KvLayout::new(KvDType::Int8, d);
    let rows: Vec<f32> = noise_vec(d as u32, filled * d).iter().map(|x| x * scale).collect();
    let block = Guarded::new(flush, &block(&layout, 0, MatRef::new(&rows, filled, d)));
    let (scales, elements) = split_scales(&block);
    let wide = KvLayout::new(KvDType::Bf16, d);
    for kernels in tiers() {
        let untouched = bf16::from_bits(0x1234);
        let mut out = Guarded::filled(flush, wide.block_len(), untouched);
        bf16::block(kernels, &layout, seen.clone(), KvRef::Int8(&block), &mut out);
        for (slot, j) in (0..KV_BLOCK).flat_map(|slot| (0..d).map(move |j| (slot, j))) {
            let (k_at, v_at) = super::places(&wide, slot, j);
            let what = format!("{kernels:?} {d}, slot {slot}, dimension {j}");
            let want = |at: usize, v: usize| bf16::from_f32(f32::from(elements[at]) * scales[v][slot]);
            if slot < filled {
                assert_eq!(out[k_at].to_bits(), want(k_at, 0).to_bits(), "key, {what}");
            }
            if (seen.start / 2 * 2..seen.end.next_multiple_of(2)).contains(&slot) {
                assert_eq!(out[v_at].to_bits(), want(v_at, 1).to_bits(), "value, {what}");
            } else {
                assert_eq!(out[v_at], untouched, "value, {what}");
            }
        }
    }
}

#[test]
fn a_block_becomes_the_same_bf16_block_on_every_tier() {
    for flush in Flush::BOTH {
        for d in (8..=256).step_by(8) {
            check_unpacked(d, 1.0, 64, 0..64, flush);
            check_unpacked(d, 1.0, 37, 0..37, flush);
        }
        // The smallest scales that there are, and the largest numbers that a rotation does not make infinite.
        for scale in [2e-36, 1e-30, 1e30, f32::MAX / 64.0] {
            check_unpacked(24, scale, 64, 0..64, flush);
        }
    }
}

proptest! {
    #[test]
    fn only_pairs_that_are_seen_are_unpacked(eighths in 1usize..33, filled in 1usize..65, start in 0usize..64) {
        check_unpacked(8 * eighths, 0.3, filled, start.min(filled - 1)..filled, Flush::Right);
    }
}

#[test]
#[should_panic(expected = "are not a block")]
fn a_block_without_scales_is_refused() {
    let layout = KvLayout::new(KvDType::Int8, 4);
    let mut bytes = vec![0; layout.block_len() - 512];
    layout.append(KvMut::Int8(&mut bytes), 0, &[0.0f32; 4], &[0.0f32; 4]);
}
