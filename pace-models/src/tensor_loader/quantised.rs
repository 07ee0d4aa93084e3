//! Matrices of integers: those that the files hold as such, taken as they are, and those that become such here.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use half::f16;
use pace_kernels::{CodeRows, PackError, PackSpec, PackedWeights, Rounding, WeightFormat};

use super::{ABSURD, Part, TensorLoader, overlaps};
use crate::ModelError;
use crate::arch::unpermute_row;
use crate::formats::joined_codes;
use crate::weights::codes;

/// Rows that are read in f32 and quantised at a time.
const ROWS: usize = 8;

/// What weights lost on the way to a format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuantLoss {
    /// The format.
    pub format: WeightFormat,
    /// How many weights there are.
    pub weights: usize,
    /// Root of the mean squared error, by the root of the weights' mean square.
    pub relative_rms: f64,
}

/// Sums of errors, from all threads.
#[derive(Debug, Default)]
pub(crate) struct Losses(Mutex<Vec<Sums>>);

#[derive(Clone, Copy, Debug)]
struct Sums {
    format: WeightFormat,
    weights: usize,
    error: f64,
    power: f64,
}

impl Losses {
    fn add(&self, sums: Sums) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.iter_mut().find(|s| s.format == sums.format) {
            Some(own) => {
                own.weights += sums.weights;
                own.error += sums.error;
                own.power += sums.power;
            }
            None => all.push(sums),
        }
    }

    /// Formats in the order in which they appeared.
    pub(crate) fn into_list(self) -> Vec<QuantLoss> {
        let all = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        // The last digits depend on the order in which threads add their sums: f32 leaves them out.
        let rms = |s: &Sums| if s.power > 0.0 { (s.error / s.power).sqrt() as f32 } else { 0.0 };
        let loss =
            |s: Sums| QuantLoss { format: s.format, weights: s.weights, relative_rms: f64::from(rms(&s)) };
        all.into_iter().map(loss).collect()
    }
}

impl TensorLoader<'_> {
    /// Packs the rows of `parts` in a format of integers.
    pub(super) fn pack_integers(
        &self,
        parts: &[Part],
        n: usize,
        k: usize,
        spec: PackSpec,
        rounding: Rounding<'_>,
    ) -> Result<PackedWeights, PackError<ModelError>> {
        let own = self.options.own_formats
            && joined_codes(self.source, parts.iter().map(|part| &part.name)).is_some();
        let packed = PackedWeights::pack_codes_in(&self.arena, spec, n, k, &self.par, |rows, out| {
            for (part, own_rows) in overlaps(parts, &rows) {
                let at = own_rows.start - rows.start..own_rows.end - rows.start;
                let first = own_rows.start - part.rows.start;
                let mut out = slice(out, rows.len(), k, at);
                if own {
                    self.read_codes(part, first, k, spec.format, &mut out)?;
                } else {
                    self.quantise(part, first, k, spec.format, rounding, &mut out)?;
                }
            }
            (self.progress)(out.codes.len());
            Ok(())
        })?;
        // All parts have the same one.
        let order = parts.first().filter(|_| own).and_then(|part| self.source.input_order(&part.name));
        Ok(match order {
            Some(order) => packed.with_input_order(order.clone()),
            None => packed,
        })
    }

    /// How weights become integers where an error counts by its input as `importance` says.
    pub(super) const fn rounding<'i>(&self, importance: Option<&'i [f32]>) -> Rounding<'i> {
        if self.options.search_scales { Rounding::Search { importance } } else { Rounding::Nearest }
    }

    /// Rows of a part as the file has them, put back into HF's order where the file permuted them.
    fn read_codes(
        &self,
        part: &Part,
        first: usize,
        k: usize,
        format: WeightFormat,
        out: &mut CodeRows<'_>,
    ) -> Result<(), ModelError> {
        let read = |row, out: &mut CodeRows<'_>| {
            if self.options.allow_nonfinite {
                self.source.read_any_codes(&part.name, row, format, out)
            } else {
                self.source.read_codes(&part.name, row, format, out)
            }
        };
        match part.permuted_heads {
            None => read(first, out)?,
            Some(head_dim) => {
                let rows = out.codes.len() / k;
                for i in 0..rows {
                    read(unpermute_row(first + i, head_dim), &mut slice(out, rows, k, i..i + 1))?;
                }
            }
        }
        self.check_codes(part, out)?;
        self.check_f16(part, first, format, k, out)?;
        if has_f16_scales(format) {
            self.losses.add(rounded_scales(format, k, out));
        }
        Ok(())
    }

    /// Reads rows of a part in f32 and makes integers of them.
    fn quantise(
        &self,
        part: &Part,
        first: usize,
        k: usize,
        format: WeightFormat,
        rounding: Rounding<'_>,
        out: &mut CodeRows<'_>,
    ) -> Result<(), ModelError> {
        let rows = out.codes.len() / k;
        let mut wide = vec![0.0; ROWS.min(rows) * k];
        let mut decoded = vec![0.0; wide.len()];
        let kernels = self.selection.build().kernels();
        for start in (0..rows).step_by(ROWS) {
            let count = ROWS.min(rows - start);
            let wide = &mut wide[..count * k];
            self.read_rows(part, first + start, k, wide)?;
            let mut out = slice(out, rows, k, start..start + count);
            kernels.quantize_weights(format, k, wide, rounding, &mut out);
            self.check_f16(part, first + start, format, k, &out)?;
            let decoded = &mut decoded[..count * k];
            codes::dequantise(format, k, &out, decoded);
            if format.is_rotated() {
                decoded.chunks_exact_mut(k).for_each(|row| kernels.rotate(row));
            }
            let (error, power) = wide.iter().zip(&*decoded).fold((0.0, 0.0), |(error, power), (&w, &d)| {
                (error + f64::from((w - d) * (w - d)), power + f64::from(w * w))
            });
            self.losses.add(Sums { format, weights: count * k, error, power });
        }
        Ok(())
    }

    /// Refuses what no model holds, and remembers whether there is anything but zeros.
    fn check_codes(&self, part: &Part, rows: &CodeRows<'_>) -> Result<(), ModelError> {
        let mut numbers = rows.scales.iter().chain(&*rows.mins);
        if numbers.clone().any(|&x| x != 0.0) {
            part.has_weights.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        match numbers.find(|x| x.abs() >= ABSURD && !self.options.allow_nonfinite) {
            None => Ok(()),
            Some(number) => {
                let what =
                    format!("a scale is {number:e}; weights are far below {ABSURD:e}, the file is damaged");
                Err(ModelError::tensor(self.source.path(&part.name), part.name.as_str(), what))
            }
        }
    }

    /// Refuses rows, from `first` on, with a scale or a minimum that becomes infinite where `format` stores it as f16.
    fn check_f16(
        &self,
        part: &Part,
        first: usize,
        format: WeightFormat,
        k: usize,
        rows: &CodeRows<'_>,
    ) -> Result<(), ModelError> {
        if self.options.allow_nonfinite || !has_f16_scales(format) {
            return Ok(());
        }
        let beyond = |numbers: &[f32]| numbers.iter().position(|&x| !f16::from_f32(x).is_finite());
        let scale = beyond(rows.scales).map(|at| ("scale", at));
        let Some((number, at)) = scale.or_else(|| beyond(rows.mins).map(|at| ("minimum", at))) else {
            return Ok(());
        };
        let (row, group) = (first + at / codes::groups(format, k), at % codes::groups(format, k));
        let row = part.permuted_heads.map_or(row, |head_dim| unpermute_row(row, head_dim));
        let what = format!(
            "row {row}, group {group}: the weights are too large for {format}, which has their {number} as f16, {} at \
             most; --quant int8 or --dtype bf16 holds them",
            f16::MAX
        );
        Err(ModelError::tensor(self.source.path(&part.name), part.name.as_str(), what))
    }
}

/// Whether scales and minima are stored as f16.
const fn has_f16_scales(format: WeightFormat) -> bool {
    matches!(format, WeightFormat::Int4(_) | WeightFormat::Int4Min(_))
}

/// Some of `rows` rows of `k` weights.
fn slice<'r>(out: &'r mut CodeRows<'_>, rows: usize, k: usize, at: Range<usize>) -> CodeRows<'r> {
    let (groups, mins) = (out.scales.len() / rows, out.mins.len() / rows);
    CodeRows {
        codes: &mut out.codes[at.start * k..at.end * k],
        scales: &mut out.scales[at.start * groups..at.end * groups],
        mins: &mut out.mins[at.start * mins..at.end * mins],
    }
}

/// What is lost where scales and minima are rounded to f16.
fn rounded_scales(format: WeightFormat, k: usize, rows: &CodeRows<'_>) -> Sums {
    let groups = codes::groups(format, k);
    let group = format.group().unwrap_or(k);
    let (zero, off) = (f32::from(format.zero()), |x: f32| x - f16::from_f32(x).to_f32());
    let mut sums = Sums { format, weights: rows.codes.len(), error: 0.0, power: 0.0 };
    for (row, codes) in rows.codes.chunks_exact(k).enumerate() {
        for (g, codes) in codes.chunks(group).enumerate() {
            let at = row * groups + g;
            let (scale, min) = (rows.scales[at], rows.mins.get(at).copied().unwrap_or(0.0));
            let (scale_off, min_off) = (off(scale), off(min));
            for &code in codes {
                let q = f32::from(code) - zero;
                sums.error += f64::from((q * scale_off + min_off) * (q * scale_off + min_off));
                sums.power += f64::from((q * scale + min) * (q * scale + min));
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests;
