use half::bf16;

use super::{assert_close, noise_vec, tiers, with_rows};
use crate::{ActBuf, ActMut, ActRef, DType, Kernels, MatMut, MatRef, RowNorm};

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

const STORED: [DType; 2] = [DType::F32, DType::Bf16];

/// A `[rows, cols]` matrix of the given type.
fn stored(kernels: &Kernels, dtype: DType, rows: usize, values: &[f32]) -> ActBuf {
    let cols = values.len() / rows;
    let mut buf = ActBuf::new(dtype, cols);
    match buf.rows_mut(rows) {
        ActMut::F32(mut mat) => {
            (0..rows).for_each(|i| mat.row_mut(i).copy_from_slice(&values[i * cols..][..cols]));
        }
        ActMut::Bf16(mut mat) => {
            (0..rows).for_each(|i| kernels.narrow_bf16(&values[i * cols..][..cols], mat.row_mut(i)));
        }
    }
    buf
}

/// The elements of a matrix, as f32.
fn wide_values(kernels: &Kernels, act: ActRef<'_>) -> Vec<f32> {
    let mut values = vec![0.0; act.rows() * act.cols()];
    for (i, row) in values.chunks_mut(act.cols()).enumerate() {
        match act {
            ActRef::F32(mat) => row.copy_from_slice(mat.row(i)),
            ActRef::Bf16(mat) => kernels.widen_bf16(mat.row(i), row),
        }
    }
    values
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn norms<'a>(weight: &'a [f32], bias: &'a [f32]) -> [RowNorm<'a>; 4] {
    let rms = RowNorm::rms(weight, 1e-5);
    let layer = RowNorm::layer(weight, Some(bias), 1e-5);
    [rms, rms.weight_plus_one(), layer, RowNorm::layer(weight, None, 1e-5)]
}

const LENGTHS: [usize; 9] = [1, 7, 16, 37, 64, 100, 128, 576, 1027];

#[test]
fn any_type_of_row_gives_the_same_numbers_rounded_once() {
    for cols in LENGTHS {
        let (weight, bias) = (noise_vec(1, cols), noise_vec(2, cols));
        for kernels in tiers() {
            // Numbers that both types hold.
            let rows = noise_vec(3, 3 * cols).iter().map(|&x| bf16::from_f32(x).to_f32()).collect::<Vec<_>>();
            for norm in norms(&weight, &bias) {
                let reference: Vec<f32> = rows
                    .chunks(cols)
                    .flat_map(|row| {
                        let mut out = vec![f32::NAN; cols];
                        let (x, y) = (MatRef::new(row, 1, cols), MatMut::new(&mut out, 1, cols));
                        kernels.norm(&norm, ActRef::F32(x), ActMut::F32(y));
                        out
                    })
                    .collect();
                for (from, to) in STORED.iter().flat_map(|&from| STORED.map(|to| (from, to))) {
                    let x = stored(&kernels, from, 3, &rows);
                    let mut out = stored(&kernels, to, 3, &vec![f32::NAN; rows.len()]);
                    kernels.norm(&norm, x.rows(3), out.rows_mut(3));
                    let expected = stored(&kernels, to, 3, &reference);
                    assert_eq!(
                        bits(&wide_values(&kernels, out.rows(3))),
                        bits(&wide_values(&kernels, expected.rows(3))),
                        "{kernels:?} {norm:?} {from} to {to}"
                    );
                }
            }
        }
    }
}

#[test]
fn one_is_added_to_the_weight() {
    with_rows(300, |kernels, row| {
        let weight = noise_vec(1, row.len());
        let more: Vec<f32> = weight.iter().map(|w| w + 1.0).collect();
        let (mut a, mut b) = (vec![f32::NAN; row.len()], vec![f32::NAN; row.len()]);
        let x = ActRef::F32(MatRef::new(row, 1, row.len()));
        let out = ActMut::F32(MatMut::new(&mut a, 1, row.len()));
        kernels.norm(&RowNorm::rms(&weight, 1e-6).weight_plus_one(), x, out);
        kernels.rms_norm(row, &more, 1e-6, &mut b);
        assert_eq!(bits(&a), bits(&b));
    });
}

#[test]
fn adding_first_is_the_two_steps() {
    for cols in LENGTHS {
        let (weight, bias) = (noise_vec(1, cols), noise_vec(2, cols));
        let (x, r) = (noise_vec(3, 2 * cols), noise_vec(4, 2 * cols));
        for kernels in tiers() {
            for norm in norms(&weight, &bias) {
                for (from, to) in STORED.iter().flat_map(|&from| STORED.map(|to| (from, to))) {
                    let mut stream = stored(&kernels, from, 2, &x);
                    let r = stored(&kernels, from, 2, &r);
                    let mut sum = wide_values(&kernels, stream.rows(2));
                    kernels.add(&mut sum, &wide_values(&kernels, r.rows(2)));
                    let expected_stream = stored(&kernels, from, 2, &sum);
                    let mut expected = ActBuf::new(to, cols);
                    kernels.norm(&norm, expected_stream.rows(2), expected.rows_mut(2));

                    let mut out = ActBuf::new(to, cols);
                    kernels.add_norm(&norm, stream.rows_mut(2), r.rows(2), out.rows_mut(2));
                    for (got, expected) in [(&stream, &expected_stream), (&out, &expected)] {
                        let (got, expected) = (got.rows(2), expected.rows(2));
                        assert_eq!(
                            bits(&wide_values(&kernels, got)),
                            bits(&wide_values(&kernels, expected)),
                            "{kernels:?} {cols} {from} to {to}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn quantising_the_result_is_the_two_steps() {
    for cols in LENGTHS {
        let (weight, bias) = (noise_vec(1, cols), noise_vec(2, cols));
        let x = noise_vec(3, cols);
        for kernels in tiers() {
            for norm in norms(&weight, &bias) {
                for (from, to) in STORED.iter().flat_map(|&from| STORED.map(|to| (from, to))) {
                    for group in [32, 64, 100, 4096] {
                        let x = stored(&kernels, from, 1, &x);
                        let mut normed = ActBuf::new(to, cols);
                        kernels.norm(&norm, x.rows(1), normed.rows_mut(1));
                        let normed = wide_values(&kernels, normed.rows(1));
                        let groups = cols.div_ceil(group);
                        let new = || (vec![99i8; cols], vec![9.0f32; groups], vec![9; groups]);
                        let (mut a, mut b) = (new(), new());
                        kernels.quantize_groups(&normed, group, &mut a.0, &mut a.1, &mut a.2);
                        let mut scratch = vec![f32::NAN; cols];
                        let (values, scales, sums) = (&mut b.0, &mut b.1, &mut b.2);
                        let x = x.rows(1);
                        kernels.norm_quantize(&norm, x, to, group, &mut scratch, values, scales, sums);
                        assert_eq!(a, b, "{kernels:?} {cols} {from} to {to} in groups of {group}");
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "types of the residual stream")]
fn a_residual_of_another_type_is_refused() {
    let (mut x, r, mut out) = ([0.0; 3], [bf16::ZERO; 3], [0.0; 3]);
    Kernels::detect().add_norm(
        &RowNorm::rms(&[1.0; 3], 0.0),
        ActMut::F32(MatMut::new(&mut x, 1, 3)),
        ActRef::Bf16(MatRef::new(&r, 1, 3)),
        ActMut::F32(MatMut::new(&mut out, 1, 3)),
    );
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
            kernels.rope_half(&mut halves, head, &cos, &sin);
            kernels.rope_interleaved(&mut pairs, head, &cos, &sin);
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
            let mut heads = x.repeat(3);
            kernels.rope_half(&mut heads, head, &cos, &sin);
            assert_eq!(bits(&heads), bits(&halves.repeat(3)));
            heads = x.repeat(3);
            kernels.rope_interleaved(&mut heads, head, &cos, &sin);
            assert_eq!(bits(&heads), bits(&pairs.repeat(3)));
        }
    }
}

#[test]
#[should_panic(expected = "for a head of 6")]
fn a_rotation_beyond_the_head_is_refused() {
    Kernels::detect().rope_half(&mut [0.0; 6], 6, &[1.0; 4], &[0.0; 4]);
}
