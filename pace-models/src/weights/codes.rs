//! Quantised weights as their integers: which format holds those of which, and the way from one to the other.
//!
//! A weight is `(code - zero) * scale`, or `code * scale + min` in a format with a minimum. Nothing here rounds: a wider
//! format has more bits, shorter groups or a minimum, and MXFP4's numbers are halves of integers.

use pace_kernels::{CodeRows, WeightFormat};

/// The narrowest format that holds the weights of `a` and of `b` as they are; none if one of them is no format of
/// integers.
pub fn join(a: WeightFormat, b: WeightFormat) -> Option<WeightFormat> {
    let (one, other) = (Parts::of(a)?, Parts::of(b)?);
    if a == b {
        return Some(a);
    }
    if a.is_rotated() || b.is_rotated() {
        return None;
    }
    Some(Parts::join(one, other).format())
}

/// The number of groups, each with a scale, in a row of `k` weights; 0 for a format without scales.
pub fn groups(format: WeightFormat, k: usize) -> usize {
    Parts::of(format).map_or(0, |parts| k.div_ceil(parts.group_in(k)))
}

/// Writes the weights that `rows`, of `k` inputs each, stand for in `format`; rotated ones stay rotated. A product is
/// rounded, and then its sum with the minimum.
///
/// # Panics
/// If `format` is no format of integers, or `out` and the parts of `rows` do not have the same number of rows.
pub fn dequantise(format: WeightFormat, k: usize, rows: &CodeRows<'_>, out: &mut [f32]) {
    let Some(parts) = Parts::of(format) else { panic!("{format} weights are no integers") };
    if k == 0 {
        return;
    }
    let (group, per_row) = (parts.group_in(k), groups(format, k));
    assert_eq!(out.len(), rows.codes.len());
    assert_eq!(rows.scales.len(), out.len() / k * per_row);
    let (codes, scales) = (rows.codes.chunks_exact(k), rows.scales.chunks_exact(per_row));
    for (row, ((codes, scales), out)) in codes.zip(scales).zip(out.chunks_exact_mut(k)).enumerate() {
        let cut = codes.chunks(group).zip(scales).zip(out.chunks_mut(group)).enumerate();
        for (at, ((codes, &scale), out)) in cut {
            if format == WeightFormat::Mxfp4 {
                each(codes, out, |code| E2M1_DOUBLED[usize::from(code & 15)] * 0.5 * scale);
            } else if parts.has_min {
                let min = rows.mins[row * per_row + at];
                each(codes, out, |code| f32::from(code) * scale + min);
            } else {
                let zero = f32::from(parts.zero());
                each(codes, out, |code| (f32::from(code) - zero) * scale);
            }
        }
    }
}

/// Fills `rows`, of `k` inputs each, in the format `to`: `fill` writes them in their `own` format, into the same memory
/// and of the lengths that are right for it.
///
/// # Errors
/// `own` cannot be widened to `to` or the lengths are not those of whole rows (what is wrong), or `fill` failed.
pub(crate) fn read_widened<E>(
    own: WeightFormat,
    to: WeightFormat,
    k: usize,
    rows: &mut CodeRows<'_>,
    wrong: impl FnOnce(String) -> E,
    fill: impl FnOnce(&mut CodeRows<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let Some((from, target)) =
        Parts::of(own).zip(Parts::of(to)).filter(|_| join(own, to).is_some_and(|joined| joined == to))
    else {
        return Err(wrong(format!("its format {own} cannot be widened to {to}")));
    };
    let n = rows.codes.len().checked_div(k).unwrap_or(0);
    let wanted = n * groups(to, k);
    let mins = if target.has_min { wanted } else { 0 };
    if n * k != rows.codes.len() || rows.scales.len() != wanted || rows.mins.len() != mins {
        let lengths = (rows.codes.len(), rows.scales.len(), rows.mins.len());
        return Err(wrong(format!("{lengths:?} codes, scales and minima are no whole rows of {k} in {to}")));
    }
    let stored = n * groups(own, k);
    fill(&mut CodeRows {
        codes: &mut *rows.codes,
        scales: &mut rows.scales[..stored],
        mins: &mut rows.mins[..if from.has_min { stored } else { 0 }],
    })?;
    if own != to {
        widen(own, from, target, k, rows);
    }
    Ok(())
}

/// The numbers of E2M1, doubled.
const E2M1_DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// What a format of integers is made of; of MXFP4, what its numbers take as integers.
#[derive(Clone, Copy)]
struct Parts {
    bits: u32,
    /// Inputs that share a scale, a power of two; none: all of a row.
    group: Option<usize>,
    has_min: bool,
}

impl Parts {
    const fn of(format: WeightFormat) -> Option<Self> {
        if !format.is_quantised() {
            return None;
        }
        let bits = if format.is_4_bit() && !matches!(format, WeightFormat::Mxfp4) { 4 } else { 8 };
        Some(Self { bits, group: format.group(), has_min: format.has_min() })
    }

    fn join(self, other: Self) -> Self {
        // Of two powers of two, the smaller one divides the other.
        let group = self.group.into_iter().chain(other.group).min();
        Self { bits: self.bits.max(other.bits), group, has_min: self.has_min || other.has_min }
    }

    const fn format(self) -> WeightFormat {
        match (self.bits, self.has_min, self.group) {
            (4, false, Some(group)) => WeightFormat::Int4(group),
            (4, true, Some(group)) => WeightFormat::Int4Min(group),
            (_, true, Some(group)) => WeightFormat::Int8Min(group),
            (_, false, Some(group)) => WeightFormat::Int8Group(group),
            (_, _, None) => WeightFormat::Int8,
        }
    }

    /// Inputs in a group of a row of `k`.
    fn group_in(self, k: usize) -> usize {
        self.group.unwrap_or(k).max(1)
    }

    /// The code of the number 0 where there is no minimum.
    const fn zero(self) -> u8 {
        1 << (self.bits - 1)
    }
}

fn each(codes: &[u8], out: &mut [f32], weight: impl Fn(u8) -> f32) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = weight(code);
    }
}

/// Turns rows of `own`, whose scales and minima lie in the front of theirs, into rows of another format.
fn widen(own: WeightFormat, from: Parts, to: Parts, k: usize, rows: &mut CodeRows<'_>) {
    if own == WeightFormat::Mxfp4 {
        for code in rows.codes.iter_mut() {
            *code = (128.0 + E2M1_DOUBLED[usize::from(*code & 15)]) as u8;
        }
        rows.scales.iter_mut().for_each(|scale| *scale *= 0.5);
    } else if !to.has_min && from.bits < to.bits {
        let shift = to.zero() - from.zero();
        rows.codes.iter_mut().for_each(|code| *code += shift);
    }
    split(rows.scales, from.group_in(k), to.group_in(k), k);
    if from.has_min {
        split(rows.mins, from.group_in(k), to.group_in(k), k);
    } else if to.has_min {
        let zero = f32::from(from.zero());
        for (min, scale) in rows.mins.iter_mut().zip(&*rows.scales) {
            *min = -zero * scale;
        }
    }
}

/// Repeats the numbers of groups of `from` inputs, which lie in the front of `numbers`, for the groups of `to` inputs
/// that they are cut into. From the back on, so that none is overwritten before it was read.
fn split(numbers: &mut [f32], from: usize, to: usize, k: usize) {
    let (stored, wanted) = (k.div_ceil(from), k.div_ceil(to));
    if stored == wanted {
        return;
    }
    for at in (0..numbers.len()).rev() {
        let (row, group) = (at / wanted, at % wanted);
        numbers[at] = numbers[row * stored + group * to / from];
    }
}

#[cfg(test)]
mod tests;
