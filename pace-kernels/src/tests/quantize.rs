use half::bf16;
use proptest::prelude::*;

use super::guard::{Flush, Guarded};
use super::{noise_vec, tiers};
use crate::{Element, Kernels};

struct Quantized {
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

fn quantize<E: Element>(kernels: &Kernels, src: &[E], group: usize) -> Quantized {
    let groups = src.len().div_ceil(group);
    let (mut values, mut scales, mut sums) = (vec![99; src.len()], vec![9.0; groups], vec![9; groups]);
    kernels.quantize_groups(src, group, &mut values, &mut scales, &mut sums);
    Quantized { values, scales, sums }
}

/// The definition, in the order of its roundings.
fn check<E: Element>(src: &[E], group: usize, got: &Quantized) {
    for (i, (src, values)) in src.chunks(group).zip(got.values.chunks(group)).enumerate() {
        let largest = src.iter().fold(0.0, |largest: f32, x| largest.max(x.to_f32().abs()));
        assert_eq!(got.scales[i].to_bits(), (largest / 127.0).to_bits());
        assert_eq!(got.sums[i], values.iter().map(|&q| i32::from(q)).sum::<i32>());
        for (&x, &q) in src.iter().zip(values) {
            let expected = (x.to_f32() * (127.0 / largest)).round_ties_even();
            assert!(expected.abs() <= 127.0 && f32::from(q) == expected, "{q} for {x:?}, not {expected}");
        }
    }
}

const GROUPS: [usize; 8] = [1, 3, 16, 32, 64, 100, 128, 1 << 20];

#[test]
fn groups_are_quantised_as_defined() {
    for len in (0..=200).chain([1023, 2048]) {
        let src = noise_vec(len as u32, len);
        let narrow: Vec<bf16> = src.iter().map(|&x| bf16::from_f32(x * 1e-30)).collect();
        for kernels in tiers() {
            for group in GROUPS {
                check(&src, group, &quantize(&kernels, &src, group));
                check(&narrow, group, &quantize(&kernels, &narrow, group));
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bits_give_the_same_on_every_tier(bits in prop::collection::vec(any::<u32>(), 1..300), at in 0usize..300) {
        let mut src: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        // Mostly ordinary numbers, so that most groups are finite.
        for (i, x) in src.iter_mut().enumerate() {
            if i != at {
                *x = (x.to_bits() >> 8) as f32 / 4096.0 - 2048.0;
            }
        }
        let scalar = quantize(&Kernels::new(crate::Isa::Scalar).unwrap(), &src, 64);
        for kernels in tiers() {
            let got = quantize(&kernels, &src, 64);
            prop_assert_eq!(&got.values, &scalar.values);
            prop_assert_eq!(&got.sums, &scalar.sums);
            prop_assert!(got.scales.iter().zip(&scalar.scales).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}

#[test]
fn halves_are_rounded_to_even() {
    let mut src = [0.0f32; 64];
    for (i, x) in src.iter_mut().enumerate() {
        *x = i as f32 - 31.5;
    }
    src[0] = 127.0;
    for kernels in tiers() {
        let got = quantize(&kernels, &src, 64);
        assert_eq!(got.scales, [1.0]);
        assert!((1..64).all(|i| f32::from(got.values[i]) == src[i].round_ties_even()));
        assert!(got.values[1..].iter().all(|q| q % 2 == 0));
    }
}

#[test]
fn zeros_and_what_is_not_finite() {
    for kernels in tiers() {
        for len in [1, 63, 64, 65, 192] {
            for tiny in [0.0, -0.0, 1e-45, -1.4e-36] {
                let got = quantize(&kernels, &vec![tiny; len], 64);
                assert!(got.values.iter().all(|&q| q == 0) && got.sums.iter().all(|&sum| sum == 0));
                assert!(got.scales.iter().all(|scale| scale.to_bits() == 0), "{tiny:e}");
            }
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, len / 2, len - 1] {
                    let mut src = vec![2.0f32; len];
                    src[at] = bad;
                    let got = quantize(&kernels, &src, 64);
                    for (i, values) in got.values.chunks(64).enumerate() {
                        if i == at / 64 {
                            let scale = got.scales[i];
                            assert!(if bad.is_nan() { scale.is_nan() } else { scale == f32::INFINITY });
                            assert!(values.iter().all(|&q| q == 0) && got.sums[i] == 0);
                        } else {
                            assert!(got.scales[i] == 2.0 / 127.0 && values.iter().all(|&q| q == 127));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn quantising_stays_inside() {
    for flush in Flush::BOTH {
        for len in (0..=70).chain([127, 129, 191, 1023]) {
            let src = Guarded::new(flush, &noise_vec(1, len));
            let narrow: Vec<bf16> = src.iter().map(|&x| bf16::from_f32(x)).collect();
            let narrow = Guarded::new(flush, &narrow);
            for kernels in tiers() {
                for group in GROUPS {
                    let groups = len.div_ceil(group);
                    let mut values = Guarded::filled(flush, len, 0i8);
                    let mut scales = Guarded::filled(flush, groups, 0.0f32);
                    let mut sums = Guarded::filled(flush, groups, 0i32);
                    kernels.quantize_groups(&src, group, &mut values, &mut scales, &mut sums);
                    kernels.quantize_groups(&narrow, group, &mut values, &mut scales, &mut sums);
                    assert!(scales.iter().all(|&scale| scale > 0.0));
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "in groups of 64")]
fn a_scale_for_every_group_is_required() {
    Kernels::detect().quantize_groups(&[0.0f32; 65], 64, &mut [0; 65], &mut [0.0; 1], &mut [0; 2]);
}
