//! Every format against every other: joining, and the weights before and after widening.

use super::*;
use pace_kernels::WeightFormat::{Bf16, F16, F32, Int4, Int4Min, Int8, Int8Group, Int8Min, Mxfp4};

fn all() -> Vec<WeightFormat> {
    let mut all = vec![Int8, Mxfp4];
    all.extend([16, 32, 64, 128, 256].map(Int8Group));
    all.extend([16, 32, 64, 128, 256].map(Int8Min));
    all.extend([32, 64, 128].map(Int4));
    all.extend([32, 64, 128].map(Int4Min));
    all
}

/// A matrix that owns its parts.
#[derive(Clone, Debug, PartialEq)]
struct Matrix {
    codes: Vec<u8>,
    scales: Vec<f32>,
    mins: Vec<f32>,
}

impl Matrix {
    fn empty(format: WeightFormat, n: usize, k: usize) -> Self {
        let (scales, has_min) = (n * groups(format, k), Parts::of(format).unwrap().has_min);
        Self {
            codes: vec![0; n * k],
            scales: vec![f32::NAN; scales],
            mins: vec![f32::NAN; if has_min { scales } else { 0 }],
        }
    }

    /// Every code that there is, and scales that f16 and, for MXFP4, E8M0 hold.
    fn drawn(format: WeightFormat, n: usize, k: usize) -> Self {
        let mut matrix = Self::empty(format, n, k);
        let codes = if matches!(format, Int4(_) | Int4Min(_) | Mxfp4) { 16 } else { 256 };
        for (i, code) in matrix.codes.iter_mut().enumerate() {
            *code = ((i * 37 + i / k) % codes) as u8;
        }
        for (i, scale) in matrix.scales.iter_mut().enumerate() {
            *scale = match format {
                Mxfp4 => 2f32.powi((i % 40) as i32 - 30),
                _ => (i % 61 + 1) as f32 / 2048.0 * if i % 3 == 0 { -1.0 } else { 1.0 },
            };
        }
        for (i, min) in matrix.mins.iter_mut().enumerate() {
            *min = (i % 53) as f32 / 16.0 - 2.0;
        }
        matrix
    }

    fn rows(&mut self) -> CodeRows<'_> {
        CodeRows { codes: &mut self.codes, scales: &mut self.scales, mins: &mut self.mins }
    }

    fn weights(&mut self, format: WeightFormat, k: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.codes.len()];
        dequantise(format, k, &self.rows(), &mut out);
        out
    }

    fn widened(&self, own: WeightFormat, to: WeightFormat, k: usize) -> Result<Self, String> {
        let mut wide = Self::empty(to, self.codes.len() / k, k);
        read_widened(
            own,
            to,
            k,
            &mut wide.rows(),
            |what| what,
            |rows| {
                rows.codes.copy_from_slice(&self.codes);
                rows.scales.copy_from_slice(&self.scales);
                rows.mins.copy_from_slice(&self.mins);
                Ok(())
            },
        )?;
        Ok(wide)
    }
}

#[test]
fn the_join_is_the_narrowest_format_of_both() {
    let cases = [
        (Int4(32), Int4(128), Int4(32)),
        (Int4(64), Int4Min(32), Int4Min(32)),
        (Int4(128), Int8Group(16), Int8Group(16)),
        (Int4Min(32), Int8Group(16), Int8Min(16)),
        (Int4(64), Int8, Int8Group(64)),
        (Int4Min(128), Int8, Int8Min(128)),
        (Int8, Int8Group(256), Int8Group(256)),
        (Mxfp4, Int4(128), Int8Group(32)),
        (Mxfp4, Int8, Int8Group(32)),
        (Mxfp4, Int4Min(64), Int8Min(32)),
    ];
    for (a, b, both) in cases {
        assert_eq!((join(a, b), join(b, a)), (Some(both), Some(both)), "{a:?} and {b:?}");
    }
    for a in all() {
        assert_eq!(join(a, a), Some(a));
        for float in [F32, F16, Bf16] {
            assert_eq!((join(a, float), join(float, a), join(float, float)), (None, None, None));
        }
        for b in all() {
            let both = join(a, b).unwrap();
            assert_eq!((join(a, both), join(b, both)), (Some(both), Some(both)), "{a:?} and {b:?}");
            for c in all() {
                assert_eq!(join(both, c), join(a, join(b, c).unwrap()), "{a:?}, {b:?}, {c:?}");
            }
        }
    }
}

#[test]
fn widening_changes_no_weight() {
    for own in all() {
        for to in all().into_iter().filter(|&to| join(own, to) == Some(to)) {
            for (n, k) in [(1, 256), (3, 576), (5, 100), (2, 16), (4, 1)] {
                let mut narrow = Matrix::drawn(own, n, k);
                let mut wide = narrow.widened(own, to, k).unwrap();
                let (want, got) = (narrow.weights(own, k), wide.weights(to, k));
                let gains_min = wide.mins.len() > narrow.mins.len();
                for (at, (want, got)) in want.iter().zip(&got).enumerate() {
                    // These scales have so few digits that not even the sum with a minimum is rounded.
                    assert!(want == got, "{own:?} to {to:?}, [{n}, {k}], {at}: {want} became {got}");
                }
                assert!(want.iter().any(|&x| x != 0.0) || k == 1);
                assert!(gains_min || wide.mins.is_empty() || !narrow.mins.is_empty());
            }
        }
    }
}

#[test]
fn a_minimum_that_is_introduced_costs_at_most_one_rounding() {
    let mut narrow = Matrix::drawn(Int8Group(32), 1, 256);
    narrow.scales.iter_mut().for_each(|scale| *scale *= 0.123_456_79);
    let mut wide = narrow.widened(Int8Group(32), Int8Min(16), 256).unwrap();
    let (want, got) = (narrow.weights(Int8Group(32), 256), wide.weights(Int8Min(16), 256));
    for (i, (want, got)) in want.iter().zip(got).enumerate() {
        // Of the product, which is at most 255 times the scale.
        let ulp = 256.0 * narrow.scales[i / 32].abs() * f32::EPSILON;
        assert!((want - got).abs() <= ulp, "{i}: {want} became {got}");
    }
}

#[test]
fn codes_mean_what_the_kernels_say() {
    let weights = |format, code, scale, mins: &mut [f32]| {
        let mut out = [0.0];
        dequantise(format, 1, &CodeRows { codes: &mut [code], scales: &mut [scale], mins }, &mut out);
        out[0]
    };
    assert_eq!(weights(Int8, 127, 0.5, &mut []), -0.5);
    assert_eq!(weights(Int8Group(64), 0, 0.5, &mut []), -64.0);
    assert_eq!(weights(Int8Min(32), 200, 0.5, &mut [-3.0]), 97.0);
    assert_eq!(weights(Int4(32), 15, 2.0, &mut []), 14.0);
    assert_eq!(weights(Int4Min(32), 15, 2.0, &mut [1.0]), 31.0);
    let numbers = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    for (code, number) in (0..).zip(numbers) {
        assert_eq!(weights(Mxfp4, code, 4.0, &mut []), 4.0 * number);
        assert_eq!(weights(Mxfp4, code + 8, 4.0, &mut []), -4.0 * number);
    }
}

#[test]
fn what_cannot_be_widened_is_refused() {
    let narrow = Matrix::drawn(Int8Group(64), 2, 128);
    for to in [Int8, Int4(64), Int8Group(128), Mxfp4, F32, Bf16] {
        let what = read_widened(Int8Group(64), to, 128, &mut narrow.clone().rows(), |what| what, |_| Ok(()));
        assert!(what.as_ref().is_err_and(|what| what.contains("cannot be widened")), "{to:?}: {what:?}");
    }
    // A scale too few, minima that the format does not have, codes of half a row.
    let change: [fn(&mut Matrix); 3] =
        [|m| m.scales.truncate(3), |m| m.mins.push(0.0), |m| m.codes.truncate(192)];
    for change in change {
        let mut matrix = narrow.clone();
        change(&mut matrix);
        let rows = &mut matrix.rows();
        let what = read_widened(Int8Group(64), Int8Group(64), 128, rows, |what| what, |_| Ok(()));
        assert!(what.as_ref().is_err_and(|what| what.contains("no whole rows of 128")), "{what:?}");
    }
}
