//! f32 weights to integers, on every tier.

use half::f16;
use proptest::prelude::*;

use super::super::{noise_vec, tiers};
use super::quantised;
use crate::{CodeRows, Kernels, Rounding, WeightFormat};

/// Rows as integers.
struct Codes {
    format: WeightFormat,
    k: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    mins: Vec<f32>,
}

const SEARCH: Rounding<'static> = Rounding::Search { importance: None };

fn quantize(
    kernels: &Kernels,
    format: WeightFormat,
    k: usize,
    rows: &[f32],
    rounding: Rounding<'_>,
) -> Codes {
    let groups = rows.len() / k * k.div_ceil(format.group().unwrap_or(k));
    let mins = if format.has_min() { groups } else { 0 };
    let (mut codes, mut scales, mut mins) = (vec![99; rows.len()], vec![9.0; groups], vec![9.0; mins]);
    let mut out = CodeRows { codes: &mut codes, scales: &mut scales, mins: &mut mins };
    kernels.quantize_weights(format, k, rows, rounding, &mut out);
    Codes { format, k, codes, scales, mins }
}

impl Codes {
    fn group(&self, at: usize) -> usize {
        let group = self.format.group().unwrap_or(self.k);
        at / self.k * self.k.div_ceil(group) + at % self.k / group
    }

    fn weight(&self, at: usize) -> f64 {
        let (code, scale) = (self.codes[at], f64::from(self.scales[self.group(at)]));
        match self.format {
            WeightFormat::Mxfp4 => {
                let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
                if code > 7 { -magnitude * scale } else { magnitude * scale }
            }
            _ if self.format.has_min() => f64::from(code) * scale + f64::from(self.mins[self.group(at)]),
            _ => (f64::from(code) - f64::from(self.format.zero())) * scale,
        }
    }

    fn error(&self, rows: &[f32], importance: Option<&[f32]>) -> f64 {
        let square = |(at, &x): (usize, &f32)| {
            let weight = importance.map_or(1.0, |importance| f64::from(importance[at % self.k]));
            weight * (self.weight(at) - f64::from(x)).powi(2)
        };
        rows.iter().enumerate().map(square).sum()
    }

    fn bits(&self) -> (&[u8], Vec<u32>) {
        (&self.codes, self.scales.iter().chain(&self.mins).map(|x| x.to_bits()).collect())
    }
}

/// Skewed numbers of very different sizes, as weights have.
fn weights(seed: u32, len: usize) -> Vec<f32> {
    noise_vec(seed, len)
        .into_iter()
        .enumerate()
        .map(|(i, x)| x * x * x * (1.0 + (i % 7) as f32) + 0.03)
        .collect()
}

/// How far the nearest code may be, in scales: half a step, a whole one at the short side of the range, and what f16 loses.
fn steps_off(format: WeightFormat) -> f64 {
    match format {
        WeightFormat::Int4(_) => 1.0 + 8.0 / 2048.0,
        WeightFormat::Int4Min(_) => 0.5 + 16.0 / 2048.0,
        // 7.99 becomes 6.
        WeightFormat::Mxfp4 => 2.0,
        _ => 0.501,
    }
}

#[test]
fn the_nearest_codes_are_near() {
    for (kernels, format) in
        tiers().flat_map(|kernels| quantised().into_iter().map(move |format| (kernels, format)))
    {
        for (rows, k) in [(3, 1), (2, 31), (2, 33), (5, 100), (2, 576)] {
            let w = weights(k as u32, rows * k);
            let got = quantize(&kernels, format, k, &w, Rounding::Nearest);
            for (at, &x) in w.iter().enumerate() {
                let scale = f64::from(got.scales[got.group(at)].abs());
                let least =
                    if got.mins.is_empty() { 0.0 } else { f64::from(got.mins[got.group(at)].abs()) / 2048.0 };
                let off = (got.weight(at) - f64::from(x)).abs();
                assert!(
                    off <= scale * steps_off(format) + least + 1e-7,
                    "{kernels:?} {format} {at}: {off} at scale {scale}"
                );
            }
        }
    }
}

#[test]
fn a_search_is_never_worse_than_the_nearest() {
    for (format, k) in quantised().into_iter().flat_map(|format| [31, 100, 576].map(|k| (format, k))) {
        let importance: Vec<f32> = noise_vec(5, k).into_iter().map(|x| (4.0 * x).exp2()).collect();
        for seed in 0..40 {
            let w = weights(seed, k);
            for importance in [None, Some(&importance[..])] {
                let nearest =
                    quantize(&Kernels::detect(), format, k, &w, Rounding::Nearest).error(&w, importance);
                let search = quantize(&Kernels::detect(), format, k, &w, Rounding::Search { importance });
                let error = search.error(&w, importance);
                // Errors are compared in f32.
                assert!(error <= nearest * 1.00001, "{format} {k} seed {seed}: {error} after {nearest}");
            }
        }
    }
}

#[test]
fn a_search_is_better_where_it_can_be() {
    for format in [WeightFormat::Int4(32), WeightFormat::Int4(128), WeightFormat::Int4Min(64)] {
        let w = weights(3, 50 * 256);
        let error = |rounding| quantize(&Kernels::detect(), format, 256, &w, rounding).error(&w, None);
        let (nearest, search) = (error(Rounding::Nearest), error(SEARCH));
        assert!(search < 0.95 * nearest, "{format}: {search} after {nearest}");
    }
}

#[test]
fn what_is_important_is_kept() {
    let k = 256;
    for format in [WeightFormat::Int4(64), WeightFormat::Int4Min(64)] {
        let w = weights(9, 20 * k);
        let importance: Vec<f32> = (0..k).map(|j| if j % 8 == 0 { 100.0 } else { 0.01 }).collect();
        let plain = quantize(&Kernels::detect(), format, k, &w, SEARCH);
        let search = Rounding::Search { importance: Some(&importance) };
        let aware = quantize(&Kernels::detect(), format, k, &w, search);
        let error = |codes: &Codes| codes.error(&w, Some(&importance));
        assert!(error(&aware) < 0.9 * error(&plain), "{format}: {} after {}", error(&aware), error(&plain));
    }
}

#[test]
fn a_group_in_which_nothing_counts_is_rounded_as_if_all_did() {
    let k = 96;
    let mut importance = vec![1.0; k];
    importance[32..64].fill(0.0);
    let w = weights(3, 4 * k);
    for format in [WeightFormat::Int4(32), WeightFormat::Int4Min(32)] {
        let search = Rounding::Search { importance: Some(&importance) };
        let aware = quantize(&Kernels::detect(), format, k, &w, search);
        assert_eq!(aware.bits(), quantize(&Kernels::detect(), format, k, &w, SEARCH).bits(), "{format}");
    }
}

#[test]
fn nothing_and_what_is_not_finite() {
    for (kernels, format) in
        tiers().flat_map(|kernels| quantised().into_iter().map(move |format| (kernels, format)))
    {
        for rounding in [Rounding::Nearest, SEARCH] {
            let k = 600;
            for zero in [0.0, -0.0] {
                let got = quantize(&kernels, format, k, &vec![zero; k], rounding);
                assert!((0..k).all(|at| got.weight(at) == 0.0), "{kernels:?} {format} {rounding:?}");
            }
            // A constant is kept as well as its scale can be stored.
            let got = quantize(&kernels, format, k, &vec![0.75; k], rounding);
            assert!(
                (0..k).all(|at| (got.weight(at) - 0.75).abs() < 1e-3),
                "{kernels:?} {format} {rounding:?}"
            );
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut w = weights(1, k);
                w[300] = bad;
                let got = quantize(&kernels, format, k, &w, rounding);
                let hit = got.group(300);
                for at in 0..k {
                    let finite = got.scales[got.group(at)].is_finite();
                    assert_eq!(
                        finite,
                        got.group(at) != hit,
                        "{kernels:?} {format} {bad} {rounding:?} at {at}"
                    );
                }
            }
        }
    }
}

/// The OCP specification's element values, with a largest magnitude that makes the scale 1.
#[test]
fn mxfp4_follows_the_specification() {
    let hand = [
        (0.0, 0),
        (0.25, 0),
        (0.26, 1),
        (0.5, 1),
        (0.74, 1),
        (0.75, 2),
        (1.0, 2),
        (1.25, 2),
        (1.26, 3),
        (1.5, 3),
        (1.75, 4),
        (2.0, 4),
        (2.5, 4),
        (2.51, 5),
        (3.0, 5),
        (3.5, 6),
        (4.0, 6),
        (5.0, 6),
        (5.01, 7),
        (6.0, 7),
        (7.9, 7),
        (-0.1, 0),
        (-0.5, 9),
        (-0.75, 10),
        (-1.5, 11),
        (-2.0, 12),
        (-3.0, 13),
        (-4.9, 14),
        (-5.5, 15),
        (-7.99, 15),
        (4.2, 6),
        (0.6, 1),
    ];
    for (kernels, power) in tiers().flat_map(|kernels| [-100, -20, 0, 3, 100].map(|power| (kernels, power))) {
        let w: Vec<f32> = hand.iter().map(|(x, _)| x * 2f32.powi(power)).collect();
        let got = quantize(&kernels, WeightFormat::Mxfp4, 32, &w, Rounding::Nearest);
        assert_eq!(got.scales, [2f32.powi(power)], "{kernels:?}");
        assert_eq!(got.codes, hand.map(|(_, code)| code), "{kernels:?} 2^{power}");
    }
    // The scale is that of the largest magnitude's exponent.
    for (largest, scale) in
        [(3.99, 0.5), (4.0, 1.0), (8.0, 2.0), (1e-45, 2f32.powi(-126)), (f32::MAX, 2f32.powi(125))]
    {
        let got = quantize(&Kernels::detect(), WeightFormat::Mxfp4, 1, &[-largest], Rounding::Nearest);
        assert_eq!(got.scales, [scale], "{largest:e}");
    }
}

/// What 4 bits are stored with is what the codes were chosen for.
#[test]
fn scales_of_4_bits_are_stored_exactly() {
    for format in [WeightFormat::Int4(32), WeightFormat::Int4Min(32)] {
        let got = quantize(&Kernels::detect(), format, 100, &weights(7, 300), SEARCH);
        assert!(got.scales.iter().chain(&got.mins).all(|&x| f16::from_f32(x).to_f32() == x), "{format}");
        assert!(got.codes.iter().all(|&code| code < 16));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_tier_gives_the_same_bits(
        format in prop::sample::select(quantised()),
        k in 1usize..400,
        rows in 1usize..4,
        power in -60i32..60,
        spoilt in any::<Option<(prop::sample::Index, u32)>>(),
        (search, with_importance) in any::<(bool, bool)>(),
        seed in any::<u32>(),
    ) {
        let mut w: Vec<f32> = weights(seed, rows * k).into_iter().map(|x| x * 2f32.powi(power)).collect();
        if let Some((at, bits)) = spoilt {
            let at = at.index(w.len());
            w[at] = f32::from_bits(bits);
        }
        let importance: Vec<f32> = noise_vec(seed ^ 1, k).into_iter().map(f32::abs).collect();
        let importance = with_importance.then_some(&importance[..]);
        let rounding = if search { Rounding::Search { importance } } else { Rounding::Nearest };
        let scalar = quantize(&Kernels::new(crate::Isa::Scalar).unwrap(), format, k, &w, rounding);
        for kernels in tiers() {
            let got = quantize(&kernels, format, k, &w, rounding);
            prop_assert_eq!(got.bits(), scalar.bits(), "{:?} {}", kernels, format);
        }
    }
}

#[test]
#[should_panic(expected = "one importance an input")]
fn importance_has_the_shape_of_a_row() {
    quantize(
        &Kernels::detect(),
        WeightFormat::Int4(32),
        40,
        &[0.0; 40],
        Rounding::Search { importance: Some(&[1.0; 39]) },
    );
}
