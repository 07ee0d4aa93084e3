use super::{assert_close, noise_vec, tiers, with_rows};

fn wide(row: &[f32]) -> impl Iterator<Item = f64> + Clone {
    row.iter().map(|&x| f64::from(x))
}

#[test]
fn rms_norm_follows_the_reference() {
    with_rows(1500, |kernels, row| {
        let weight = noise_vec(1, row.len());
        let mut out = vec![f32::NAN; row.len()];
        kernels.rms_norm(row, &weight, 1e-5, &mut out);
        let mean_square = wide(row).map(|x| x * x).sum::<f64>() / row.len() as f64;
        for i in 0..row.len() {
            let expected = f64::from(row[i]) * f64::from(weight[i]) / (mean_square + 1e-5).sqrt();
            // All summands are positive: n roundings at worst in one lane, halved by the root.
            let bound = (row.len() as f64 / 2.0 + 8.0) * 2f64.powi(-24);
            assert_close(out[i], expected, bound.min(2e-5) * expected.abs(), format_args!("{kernels:?}"));
        }
    });
}

#[test]
fn layer_norm_follows_the_reference() {
    with_rows(1500, |kernels, row| {
        let (weight, bias) = (noise_vec(1, row.len()), noise_vec(2, row.len()));
        let (mut plain, mut out) = (vec![f32::NAN; row.len()], vec![f32::NAN; row.len()]);
        kernels.layer_norm(row, &weight, None, 1e-5, &mut plain);
        kernels.layer_norm(row, &weight, Some(&bias), 1e-5, &mut out);
        let n = row.len() as f64;
        let mean = wide(row).sum::<f64>() / n;
        let variance = wide(row).map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        for i in 0..row.len() {
            let expected = (f64::from(row[i]) - mean) * f64::from(weight[i]) / (variance + 1e-5).sqrt();
            // The mean's rounding error, up to 30 * 1e-5, counts most where the variance is small.
            let bound = (30.0 * (n + 8.0) * 2f64.powi(-24)).min(3e-4) / (variance + 1e-5).sqrt()
                + 2e-5 * expected.abs();
            assert_close(plain[i], expected, bound, format_args!("{kernels:?}"));
            assert_eq!(out[i], plain[i] + bias[i]);
        }
    });
}

#[test]
fn a_row_of_zeros_and_a_row_with_nan() {
    for kernels in tiers() {
        let mut out = [f32::NAN; 20];
        kernels.rms_norm(&[0.0; 20], &[1.0; 20], 1e-5, &mut out);
        assert_eq!(out, [0.0; 20]);
        kernels.layer_norm(&[7.0; 20], &[1.0; 20], None, 1e-5, &mut out);
        assert_eq!(out, [0.0; 20]);
        let mut x = [1.0; 20];
        x[19] = f32::NAN;
        kernels.rms_norm(&x, &[1.0; 20], 1e-5, &mut out);
        assert!(out.iter().all(|x| x.is_nan()));
        kernels.rms_norm(&[], &[], 1e-5, &mut []);
    }
}

#[test]
fn rope_rotates_pairs_and_leaves_the_rest() {
    for kernels in tiers() {
        for (head, half) in [(1, 0), (2, 1), (7, 3), (16, 8), (64, 32), (80, 16), (101, 37), (128, 64)] {
            let x = noise_vec(head as u32, head);
            let angles: Vec<f64> = (0..half).map(|i| 0.37 * i as f64 + 0.1).collect();
            let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
            let (mut halves, mut pairs) = (x.clone(), x.clone());
            kernels.rope_half(&mut halves, &cos, &sin);
            kernels.rope_interleaved(&mut pairs, &cos, &sin);
            for (i, angle) in angles.iter().enumerate() {
                for (out, a, b) in [(&halves, i, i + half), (&pairs, 2 * i, 2 * i + 1)] {
                    let (s, c) = angle.sin_cos();
                    let (xa, xb) = (f64::from(x[a]), f64::from(x[b]));
                    assert_close(out[a], xa * c - xb * s, 3e-7, format_args!("{kernels:?} {head} {half}"));
                    assert_close(out[b], xb * c + xa * s, 3e-7, format_args!("{kernels:?} {head} {half}"));
                }
            }
            assert_eq!(halves[2 * half..], x[2 * half..]);
            assert_eq!(pairs[2 * half..], x[2 * half..]);
        }
    }
}

#[test]
#[should_panic(expected = "for a head of 6")]
fn a_rotation_beyond_the_head_is_refused() {
    crate::Kernels::detect().rope_half(&mut [0.0; 6], &[1.0; 4], &[0.0; 4]);
}
