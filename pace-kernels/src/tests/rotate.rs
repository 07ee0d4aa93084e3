//! Rotations in blocks, and rotated rows as int8.

use super::{noise_vec, tiers};
use crate::generic::rotate::Out;
use crate::{ActRef, MatRef};

/// The rotation of a row by its definition: element i of a block is the sum of all j by (-1)^popcount(i & j) / sqrt(size).
pub(super) fn rotate(row: &mut [f64]) {
    let mut rest = row;
    while !rest.is_empty() {
        let size = [64, 16, 4, 1].into_iter().find(|&size| size <= rest.len()).unwrap();
        let (block, after) = std::mem::take(&mut rest).split_at_mut(size);
        let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let element = |i| (0..size).map(|j| sign(i, j) * block[j]).sum::<f64>() / (size as f64).sqrt();
        let rotated: Vec<f64> = (0..size).map(element).collect();
        block.copy_from_slice(&rotated);
        rest = after;
    }
}

const LENGTHS: [usize; 12] = [0, 1, 3, 4, 15, 16, 63, 64, 65, 127, 576, 1000];

#[test]
fn a_rotation_is_orthogonal_and_has_the_same_bits_on_every_tier() {
    for len in LENGTHS {
        let x = noise_vec(7, len);
        let mut want: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        rotate(&mut want);
        let mut bits = None;
        for kernels in tiers() {
            let mut got = x.clone();
            kernels.rotate(&mut got);
            for (got, want) in got.iter().zip(&want) {
                assert!((f64::from(*got) - want).abs() < 1e-5, "{kernels:?} {len}: {got} instead of {want}");
            }
            assert_eq!(*bits.get_or_insert_with(|| got.clone()), got, "{kernels:?} {len}");
            kernels.rotate(&mut got);
            assert!(got.iter().zip(&x).all(|(got, x)| (got - x).abs() < 1e-5), "{kernels:?} {len}: twice");
        }
    }
}

#[test]
fn a_rotated_row_is_quantised_as_a_plain_one() {
    for (len, one_scale) in LENGTHS.into_iter().flat_map(|len| [(len, false), (len, true)]) {
        let x = noise_vec(9, len);
        for kernels in tiers() {
            let mut rotated = x.clone();
            kernels.rotate(&mut rotated);
            let own = if one_scale { len.max(1) } else { 64 };
            let quantised =
                |group: usize| (vec![0i8; len], vec![0.0; len.div_ceil(group)], vec![0; len.div_ceil(group)]);
            let (mut values, mut scales, mut sums) = quantised(own);
            kernels.quantize_groups(&rotated, own, &mut values, &mut scales, &mut sums);
            let group = if one_scale { 128 } else { 64 };
            let mut got = quantised(group);
            let out = Out { group, one_scale, values: &mut got.0, scales: &mut got.1, sums: &mut got.2 };
            kernels.quantize_rotated(ActRef::F32(MatRef::new(&x, 1, len)), 0, out);
            assert_eq!(got.0, values, "{kernels:?} {len} {one_scale}");
            let by_group = values.chunks(group).map(|q| q.iter().map(|&q| i32::from(q)).sum::<i32>());
            assert!(by_group.eq(got.2), "{kernels:?} {len} {one_scale}: sums");
            assert!(got.1.iter().enumerate().all(|(g, s)| *s == scales[if one_scale { 0 } else { g }]));
        }
    }
}
