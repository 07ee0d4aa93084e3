//! f32 weights to integers.
//!
//! Nearest: the scale maps the group's largest magnitude to the end of the range. Search: a few scales around that one are
//! tried; for each, the codes are the nearest ones and the scale (and minimum) the least-squares fit to these codes, so that
//! the weighted squared error of the group is as small as one of the candidates makes it. Weights of the error are the mean
//! squares of the activations that the inputs get, if they are known, else 1.
//!
//! Source: the idea of the importance matrix and of the fit is that of llama.cpp's k-quants.

use half::f16;

use super::four_bits::E2M1;
use super::{CodeRows, WeightFormat};
use crate::Kernels;

/// How the scale of a group is found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Rounding<'a> {
    /// From the largest magnitude alone.
    #[default]
    Nearest,
    /// By the least weighted error among some candidates. 8 bits lose too little for a search.
    Search {
        /// How much an error of each input counts, `[k]`, not negative; none, or nothing but zeros in a group: all the same.
        importance: Option<&'a [f32]>,
    },
}

/// Candidates of a search to each side of the nearest scale, and how far apart they are in units of the code range.
const CANDIDATES: i32 = 6;
const STEP: f32 = 0.12;

impl Kernels {
    /// Quantises rows of `k` weights to a format. Weights that are not finite make scales that are not.
    ///
    /// # Panics
    /// If the format is not one of integers, `rows` are not whole, or `out` or the importance has another shape.
    pub fn quantize_weights(
        &self,
        format: WeightFormat,
        k: usize,
        rows: &[f32],
        rounding: Rounding<'_>,
        out: &mut CodeRows<'_>,
    ) {
        assert!(format.is_quantised() && k > 0 && rows.len().is_multiple_of(k), "rows of {k} to {format}");
        let (group, count) = (format.group().unwrap_or(k), rows.len() / k);
        let groups = k.div_ceil(group);
        let mins = if format.has_min() { count * groups } else { 0 };
        assert!(
            out.codes.len() == rows.len() && out.scales.len() == count * groups && out.mins.len() == mins,
            "codes of {count} rows in {groups} groups"
        );
        let importance = match rounding {
            Rounding::Search { importance: Some(importance) } => {
                assert_eq!(importance.len(), k, "one importance an input");
                importance
            }
            _ => &[],
        };
        for (i, row) in rows.chunks_exact(k).enumerate() {
            let codes = &mut out.codes[i * k..(i + 1) * k];
            let scales = &mut out.scales[i * groups..(i + 1) * groups];
            if matches!(format, WeightFormat::Int8 | WeightFormat::Int8Group(_)) {
                self.int8_row(group, row, codes, scales);
                continue;
            }
            for (g, (x, codes)) in row.chunks(group).zip(codes.chunks_mut(group)).enumerate() {
                let weights = importance.get(g * group..g * group + x.len());
                // Where nothing counts, every scale is as good as another, even 0.
                let weights = weights.filter(|all| all.iter().any(|&w| w > 0.0)).unwrap_or(&[]);
                let search = matches!(rounding, Rounding::Search { .. });
                match format {
                    WeightFormat::Int4(_) => scales[g] = symmetric(x, weights, search, codes),
                    WeightFormat::Mxfp4 => scales[g] = mxfp4(x, codes),
                    _ => {
                        let top = if format.is_4_bit() { 15.0 } else { 255.0 };
                        let fit = with_min(x, weights, search && format.is_4_bit(), top, codes);
                        (scales[g], out.mins[i * groups + g]) = fit;
                    }
                }
            }
        }
    }

    fn int8_row(&self, group: usize, row: &[f32], codes: &mut [u8], scales: &mut [f32]) {
        let mut sums = vec![0; scales.len()];
        self.quantize_groups(row, group, bytemuck::cast_slice_mut(codes), scales, &mut sums);
        codes.iter_mut().for_each(|code| *code ^= 0x80);
    }
}

/// x as f16 holds it.
fn half(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// 1 / scale, or 0 for a group that is as good as 0.
fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The importance of input `i`.
fn weight(weights: &[f32], i: usize) -> f32 {
    if weights.is_empty() { 1.0 } else { weights[i] }
}

/// Codes 0 to 15 with zero 8; returns the scale. The weight of the largest magnitude becomes -8, so the scale has the other
/// sign.
fn symmetric(x: &[f32], weights: &[f32], search: bool, codes: &mut [u8]) -> f32 {
    let largest = x.iter().fold(0.0f32, |a, &b| if b.abs() > a.abs() || b.is_nan() { b } else { a });
    let nearest = half(largest / -8.0);
    let code = |x: f32, inverse: f32| (x * inverse).round_ties_even().clamp(-8.0, 7.0);
    let mut best = (f32::INFINITY, nearest);
    if search && largest.is_finite() {
        for candidate in -CANDIDATES..=CANDIDATES {
            let inverse = inverse(largest / (-8.0 + candidate as f32 * STEP));
            let (mut cross, mut square) = (0.0, 0.0);
            for (i, &x) in x.iter().enumerate() {
                let (q, w) = (code(x, inverse), weight(weights, i));
                cross += w * q * x;
                square += w * q * q;
            }
            let scale = half(if square > 0.0 { cross / square } else { 0.0 });
            let error: f32 = x.iter().enumerate().fold(0.0, |error, (i, &x)| {
                let off = x - code(x, inverse) * scale;
                error + weight(weights, i) * off * off
            });
            if error < best.0 {
                best = (error, scale);
            }
        }
    }
    let inverse = inverse(best.1);
    for (code_out, &x) in codes.iter_mut().zip(x) {
        *code_out = (code(x, inverse) + 8.0) as u8;
    }
    best.1
}

/// Codes 0 to `top`; returns the scale and the minimum, which are f16 for 4 bits.
fn with_min(x: &[f32], weights: &[f32], search: bool, top: f32, codes: &mut [u8]) -> (f32, f32) {
    let round = |x: f32| if top > 15.0 { x } else { half(x) };
    let (low, high) =
        x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)));
    if !x.iter().all(|x| x.is_finite()) {
        codes.fill(0);
        return (f32::NAN, f32::NAN);
    }
    let code = |x: f32, inverse: f32, min: f32| ((x - min) * inverse).round_ties_even().clamp(0.0, top);
    let mut best = (f32::INFINITY, round((high - low) / top), round(low));
    if search && high > low {
        for candidate in -CANDIDATES..=CANDIDATES {
            let inverse = (top + candidate as f32 * 2.0 * STEP) / (high - low);
            let fit = least_squares(x, weights, |x| code(x, inverse, low));
            let Some((scale, min)) = fit.map(|(scale, min)| (round(scale), round(min))) else { continue };
            let error: f32 = x.iter().enumerate().fold(0.0, |error, (i, &x)| {
                let off = x - (code(x, self::inverse(scale), min) * scale + min);
                error + weight(weights, i) * off * off
            });
            if error < best.0 {
                best = (error, scale, min);
            }
        }
    }
    let (_, scale, min) = best;
    for (code_out, &x) in codes.iter_mut().zip(x) {
        *code_out = code(x, inverse(scale), min) as u8;
    }
    (scale, min)
}

/// Scale and minimum of the line through the codes that is nearest to the weights; none if all codes are one.
fn least_squares(x: &[f32], weights: &[f32], code: impl Fn(f32) -> f32) -> Option<(f32, f32)> {
    let (mut sum_w, mut sum_q, mut sum_x, mut sum_qq, mut sum_qx) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (i, &x) in x.iter().enumerate() {
        let (q, w) = (code(x), weight(weights, i));
        sum_w += w;
        sum_q += w * q;
        sum_x += w * x;
        sum_qq += w * q * q;
        sum_qx += w * q * x;
    }
    let determinant = sum_w * sum_qq - sum_q * sum_q;
    if determinant <= 0.0 {
        return None;
    }
    let scale = (sum_w * sum_qx - sum_q * sum_x) / determinant;
    Some((scale, (sum_x - scale * sum_q) / sum_w))
}

/// E2M1 codes; returns the power of two, as the MX specification finds it: the largest magnitude's own exponent less that of
/// the largest code.
fn mxfp4(x: &[f32], codes: &mut [u8]) -> f32 {
    let largest =
        x.iter().fold(0.0f32, |largest, x| if x.is_nan() { f32::NAN } else { largest.max(x.abs()) });
    if !largest.is_finite() {
        codes.fill(0);
        return largest;
    }
    let exponent = if largest > 0.0 { largest.log2().floor() as i32 - 2 } else { 0 };
    let scale = 2f32.powi(exponent.clamp(-126, 125));
    for (code, &x) in codes.iter_mut().zip(x) {
        let doubled = x / scale * 2.0;
        let near = |a: u8, b: u8| {
            let off = |code: u8| (f32::from(E2M1[usize::from(code)]) - doubled.abs()).abs();
            if off(b) < off(a) { b } else { a }
        };
        let magnitude = (1..8).fold(0, near);
        *code = if doubled < 0.0 && magnitude > 0 { magnitude | 8 } else { magnitude };
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes, scales and minima of one row, and the squared error of each weight.
    fn quantized(format: WeightFormat, row: &[f32], rounding: Rounding<'_>) -> (Vec<f32>, Vec<f32>) {
        let group = format.group().unwrap_or(row.len());
        let groups = row.len().div_ceil(group);
        let mut codes = vec![0; row.len()];
        let mut scales = vec![0.0; groups];
        let mut mins = vec![0.0; if format.has_min() { groups } else { 0 }];
        let mut out = CodeRows { codes: &mut codes, scales: &mut scales, mins: &mut mins };
        Kernels::detect().quantize_weights(format, row.len(), row, rounding, &mut out);
        let decoded = |i: usize| {
            let (code, g) = (f32::from(codes[i]), i / group);
            if format.has_min() { code * scales[g] + mins[g] } else { (code - f32::from(format.zero())) * scales[g] }
        };
        let errors = row.iter().enumerate().map(|(i, x)| (x - decoded(i)).powi(2)).collect();
        (scales, errors)
    }

    fn row(k: usize) -> Vec<f32> {
        (0..k).map(|i| ((i * 7919 + 13) % 101) as f32 / 50.0 - 1.0 + (i % 7) as f32 * 0.1).collect()
    }

    fn weighted(errors: &[f32], importance: &[f32]) -> f32 {
        errors.iter().zip(importance).map(|(e, w)| e * w).sum()
    }

    #[test]
    fn a_search_makes_the_error_small_where_it_counts() {
        for k in [32, 77, 256, 300] {
            let x = row(k);
            let importance: Vec<f32> = (0..k).map(|i| if i % 5 == 0 { 100.0 } else { 0.01 }).collect();
            for format in [WeightFormat::Int4(32), WeightFormat::Int4(128), WeightFormat::Int4Min(64)] {
                let error = |importance_of| weighted(&quantized(format, &x, importance_of).1, &importance);
                let with = error(Rounding::Search { importance: Some(&importance) });
                let (without, nearest) = (error(Rounding::Search { importance: None }), error(Rounding::Nearest));
                assert!(with < without && with < nearest, "{format} {k}: {with}, {without}, {nearest}");
            }
        }
    }

    #[test]
    fn a_group_in_which_nothing_counts_is_rounded_as_if_all_did() {
        let x = row(96);
        let mut importance = vec![1.0; 96];
        importance[32..64].fill(0.0);
        for format in [WeightFormat::Int4(32), WeightFormat::Int4Min(32)] {
            let with = quantized(format, &x, Rounding::Search { importance: Some(&importance) });
            assert_eq!(with, quantized(format, &x, Rounding::Search { importance: None }), "{format}");
            assert!(with.0[1] != 0.0);
        }
    }
}
