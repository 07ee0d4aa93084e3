use half::{bf16, f16};
use proptest::prelude::*;

use super::tiers;

/// Bit patterns with many NaNs, infinities, denormals and ties among them.
fn patterns() -> impl Strategy<Value = u32> {
    let edges = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1_7fff, 0x1_8000, 0x007f_ffff, 0x0080_0000];
    let specials =
        [0x7f7f_7fff, 0x7f7f_8000, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, 0x7fc0_0000, 0x7fff_ffff];
    let special = proptest::sample::select([&edges[..], &specials[..]].concat());
    (prop_oneof![any::<u32>(), special], any::<bool>())
        .prop_map(|(bits, negative)| bits | u32::from(negative) << 31)
}

#[test]
fn every_bf16_and_f16_widens_exactly() {
    let bits: Vec<u16> = (0..=u16::MAX).collect();
    let (b, h): (&[bf16], &[f16]) = (bytemuck::cast_slice(&bits), bytemuck::cast_slice(&bits));
    for kernels in tiers() {
        let mut out = vec![0.0; bits.len()];
        kernels.widen(b, &mut out);
        assert!(out.iter().zip(&bits).all(|(out, &bits)| out.to_bits() == u32::from(bits) << 16));
        kernels.widen(h, &mut out);
        for (out, half) in out.iter().zip(h) {
            assert!(*out == half.to_f32() || (out.is_nan() && half.is_nan()), "{kernels:?}: {half}");
        }
        let mut narrow = vec![f16::ZERO; bits.len()];
        kernels.narrow(&out, &mut narrow);
        assert!(narrow.iter().zip(h).all(|(a, b)| a == b || (a.is_nan() && b.is_nan())));
    }
}

proptest! {
    #[test]
    fn narrowing_rounds_to_nearest_even(bits in prop::collection::vec(patterns(), 0..150), offset in 0usize..16) {
        let src: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        let src = &src[offset.min(src.len())..];
        for kernels in tiers() {
            let mut out = vec![bf16::ZERO; src.len()];
            kernels.narrow(src, &mut out);
            for (out, &src) in out.iter().zip(src) {
                // `half` rounds in software, the same on every machine.
                let expected = bf16::from_f32_const(src);
                prop_assert!(
                    out.to_bits() == expected.to_bits() || (out.is_nan() && src.is_nan()),
                    "{:?}: {:#x} to {:#x}", kernels, src.to_bits(), out.to_bits()
                );
                prop_assert_eq!(out.is_nan(), src.is_nan());
            }
        }
    }

    #[test]
    fn pairs_are_taken_apart(bits in prop::collection::vec(any::<u16>(), 0..150)) {
        let src: Vec<bf16> = bits[..bits.len() / 2 * 2].iter().map(|&bits| bf16::from_bits(bits)).collect();
        for kernels in tiers() {
            let (mut even, mut odd) = (vec![0.0; src.len() / 2], vec![0.0; src.len() / 2]);
            kernels.deinterleave_bf16(&src, &mut even, &mut odd);
            for (i, pair) in src.chunks(2).enumerate() {
                prop_assert_eq!(even[i].to_bits(), u32::from(pair[0].to_bits()) << 16);
                prop_assert_eq!(odd[i].to_bits(), u32::from(pair[1].to_bits()) << 16);
            }
        }
    }
}

#[test]
fn f32_is_copied() {
    for kernels in tiers() {
        let (mut wide, mut narrow) = ([0.0; 3], [0.0f32; 3]);
        kernels.widen(&[1.0f32, -0.0, f32::MIN_POSITIVE / 2.0], &mut wide);
        kernels.narrow(&wide, &mut narrow);
        assert_eq!(narrow.map(f32::to_bits), [1.0, -0.0, f32::MIN_POSITIVE / 2.0].map(f32::to_bits));
    }
}

#[test]
#[should_panic(expected = "lengths")]
fn lengths_are_checked() {
    crate::Kernels::detect().widen(&[bf16::ZERO; 3], &mut [0.0; 4]);
}
