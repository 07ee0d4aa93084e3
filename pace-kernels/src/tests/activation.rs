use std::f64::consts::{FRAC_2_SQRT_PI, PI, SQRT_2};

use super::{assert_close, tiers, with_rows};
use crate::Activation;

/// erf by its Maclaurin series for small arguments and a continued fraction of erfc for large ones
/// (Abramowitz and Stegun 7.1.6 and 7.1.14).
fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..200 {
            term *= 2.0 * a * a / f64::from(2 * n + 1);
            sum += term;
        }
        FRAC_2_SQRT_PI * (-a * a).exp() * sum
    } else {
        let fraction = (1..=100).rev().fold(0.0, |f, k| f64::from(k) / 2.0 / (a + f));
        1.0 - (-a * a).exp() / PI.sqrt() / (a + fraction)
    };
    value.copysign(x)
}

fn reference(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * 0.5 * (1.0 + erf(x / SQRT_2)),
        Activation::GeluTanh => x * 0.5 * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        Activation::Relu => x.max(0.0),
    }
}

#[test]
fn the_reference_erf_is_right() {
    // Table 7.1 of Abramowitz and Stegun.
    for (x, expected) in [(0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)] {
        assert!((erf(x) - expected).abs() < 1e-9 && (erf(-x) + expected).abs() < 1e-9);
    }
    assert!((erf(2.999_999) - erf(3.000_001)).abs() < 1e-8);
}

/// Bound: exp is good to 3e-7, the rest are a few roundings.
fn tolerance(kind: Activation, x: f64) -> f64 {
    let relative = match kind {
        Activation::Silu => 5e-7 * reference(kind, x).abs(),
        Activation::Gelu => 2e-7 * x.abs(),
        Activation::GeluTanh => 5e-7 * x.abs(),
        Activation::Relu => 0.0,
    };
    // Where exp is cut to 0 or infinity, what is left is below this.
    relative + 1e-35
}

#[test]
fn activations_follow_the_reference() {
    let dense: Vec<f32> = (-300_000..=300_000).map(|i| i as f32 * 1e-4).collect();
    let wide = (-126..=126).flat_map(|e| [2f32.powi(e), -(2f32.powi(e))]);
    let inputs: Vec<f32> = dense.into_iter().chain(wide).chain([0.0, -0.0, f32::MAX, f32::MIN]).collect();
    for kernels in tiers() {
        for kind in Activation::ALL {
            let mut out = inputs.clone();
            kernels.activate(kind, &mut out);
            for (&x, &y) in inputs.iter().zip(&out) {
                let x = f64::from(x);
                assert_close(
                    y,
                    reference(kind, x),
                    tolerance(kind, x),
                    format_args!("{kernels:?} {kind}({x})"),
                );
            }
        }
    }
}

#[test]
fn the_erf_of_gelu_is_good_to_2e_7() {
    let inputs: Vec<f32> = (-80_000..=80_000).map(|i| i as f32 * 1e-4).collect();
    for kernels in tiers() {
        let mut out = inputs.clone();
        kernels.activate(Activation::Gelu, &mut out);
        for (&x, &y) in inputs.iter().zip(&out) {
            // erf is (1 + erf) / 2 in the product, which is rounded once more.
            let expected = reference(Activation::Gelu, f64::from(x));
            let bound = 1e-7 * f64::from(x.abs()) + expected.abs() * 2f64.powi(-24);
            assert_close(y, expected, bound, format_args!("{kernels:?} gelu({x})"));
        }
    }
}

#[test]
fn odd_lengths_and_products() {
    with_rows(100, |kernels, row| {
        for kind in Activation::ALL {
            let mut alone = row.to_vec();
            kernels.activate(kind, &mut alone);
            let up: Vec<f32> = row.iter().map(|x| 0.5 - x).collect();
            let mut out = vec![f32::NAN; row.len()];
            kernels.act_mul(kind, row, &up, &mut out);
            for i in 0..row.len() {
                assert_eq!(out[i], alone[i] * up[i]);
                let x = f64::from(row[i]);
                assert_close(alone[i], reference(kind, x), tolerance(kind, x), kind);
            }
        }
    });
}

#[test]
fn nan_and_infinity() {
    for kernels in tiers() {
        for kind in Activation::ALL {
            // Long enough for a vector and a tail.
            let mut x = [f32::NAN; 19];
            x[..4].fill(f32::INFINITY);
            x[18] = f32::INFINITY;
            kernels.activate(kind, &mut x);
            assert!(
                x[..4].iter().all(|&x| x == f32::INFINITY) && x[18] == f32::INFINITY,
                "{kernels:?} {kind}"
            );
            assert!(x[4..18].iter().all(|x| x.is_nan()), "{kernels:?} {kind}");
        }
    }
}
