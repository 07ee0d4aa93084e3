use super::{assert_close, tiers, with_rows};

fn max(row: &[f32]) -> f64 {
    f64::from(row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)))
}

#[test]
fn exp_is_good_to_3e_7() {
    let inputs: Vec<f32> = (-868_000..=887_000).map(|i| i as f32 * 1e-4).collect();
    for kernels in tiers() {
        let mut out = inputs.clone();
        // SAFETY: the CPU has this table's tier.
        unsafe { (kernels.table().exp_sub)(&mut out, 0.0) };
        for (&x, &y) in inputs.iter().zip(&out) {
            let expected = f64::from(x).exp();
            assert_close(y, expected, 3e-7 * expected, format_args!("{kernels:?} exp({x})"));
        }
    }
}

#[test]
fn exp_at_the_edges() {
    for kernels in tiers() {
        let inputs = [0.0, -0.0, -87.0, -1000.0, f32::MIN, f32::NEG_INFINITY, 89.5, f32::MAX, f32::INFINITY];
        for x in inputs {
            let mut out = [x; 21];
            // SAFETY: the CPU has this table's tier.
            unsafe { (kernels.table().exp_sub)(&mut out, 0.0) };
            let expected = if x > 0.0 {
                f32::INFINITY
            } else if x < 0.0 {
                0.0
            } else {
                1.0
            };
            assert_eq!(out, [expected; 21], "{kernels:?} exp({x})");
        }
        let mut nan = [f32::NAN; 21];
        // SAFETY: the CPU has this table's tier.
        unsafe { (kernels.table().exp_sub)(&mut nan, 0.0) };
        assert!(nan.iter().all(|x| x.is_nan()));
    }
}

#[test]
fn softmax_follows_the_reference() {
    with_rows(300, |kernels, row| {
        let mut out = row.to_vec();
        kernels.softmax(&mut out);
        let sum: f64 = row.iter().map(|&x| (f64::from(x) - max(row)).exp()).sum();
        for (&x, &y) in row.iter().zip(&out) {
            let expected = (f64::from(x) - max(row)).exp() / sum;
            // x - max is rounded once: up to half an ulp of 60 in the exponent.
            assert_close(y, expected, 3e-6 * expected, format_args!("{kernels:?}"));
        }
        assert_close(out.iter().sum(), 1.0, 1e-5, "the sum");
    });
}

#[test]
fn masked_entries_become_zero() {
    for kernels in tiers() {
        for len in [1, 5, 16, 37, 130] {
            let mut row = vec![f32::NEG_INFINITY; len];
            kernels.softmax(&mut row);
            assert_eq!(row, vec![0.0; len]);
            row.fill(f32::NEG_INFINITY);
            row[len / 2] = -3e38;
            kernels.softmax(&mut row);
            let ones = row.iter().filter(|&&x| x == 1.0).count();
            assert!(ones == 1 && row[len / 2] == 1.0 && row.iter().sum::<f32>() == 1.0);
            row.fill(f32::NAN);
            kernels.softmax(&mut row);
            assert!(row.iter().all(|x| x.is_nan()));
            row.fill(1.0);
            row[len - 1] = f32::NAN;
            kernels.softmax(&mut row);
            assert!(row.iter().all(|x| x.is_nan()));
        }
        kernels.softmax(&mut []);
    }
}

#[test]
fn log_sum_exp_follows_the_reference() {
    with_rows(700, |kernels, row| {
        let sum: f64 = row.iter().map(|&x| (f64::from(x) - max(row)).exp()).sum();
        let error = (kernels.log_sum_exp(row) - (max(row) + sum.ln())).abs();
        // exp of a rounded difference: 3e-7 for exp, 2^-24 * 60 for the difference where it counts least.
        assert!(error < 1e-6, "{kernels:?}: {error:e}");
    });
    for kernels in tiers() {
        assert_eq!(kernels.log_sum_exp(&[]), f64::NEG_INFINITY);
        assert_eq!(kernels.log_sum_exp(&[f32::NEG_INFINITY; 20]), f64::NEG_INFINITY);
        assert_eq!(kernels.log_sum_exp(&[0.0, f32::INFINITY]), f64::INFINITY);
        assert!(kernels.log_sum_exp(&[0.0, f32::NAN]).is_nan());
        assert!(kernels.log_sum_exp(&[f32::INFINITY, f32::NAN]).is_nan());
        assert!((kernels.log_sum_exp(&[1e30; 2]) / 1e30 - 1.0).abs() < 1e-7);
    }
}

#[test]
fn sums_and_scalings() {
    with_rows(100, |kernels, row| {
        let mut out = row.to_vec();
        kernels.add(&mut out, row);
        assert!(out.iter().zip(row).all(|(out, x)| *out == x + x));
        kernels.scale(&mut out, 0.25);
        assert!(out.iter().zip(row).all(|(out, x)| *out == 0.5 * x));
    });
}
