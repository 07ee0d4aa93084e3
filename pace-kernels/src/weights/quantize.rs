//! f32 weights to integers.
//!
//! Nearest: the scale maps the group's largest magnitude to the end of the range. Search: a few scales around that one are
//! tried; for each, the codes are the nearest ones and the scale (and minimum) the least-squares fit to these codes. The one
//! with the least weighted squared error is taken, unless the nearest scale has a lower one. Weights of the error are the mean
//! squares of the activations that the inputs get, if they are known, else 1.
//!
//! Source: the idea of the importance matrix and of the fit is that of llama.cpp's k-quants.

use super::{CodeRows, WeightFormat};
use crate::generic::rotate;
use crate::generic::weights::{Row, Scheme};
use crate::{ActRef, Kernels, MatRef};

/// How the scale of a group is found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Rounding<'a> {
    /// From the largest magnitude alone.
    #[default]
    Nearest,
    /// By the least weighted error among some candidates. 8 bits lose too little for a search.
    Search {
        /// How much an error of each input counts, `[k]`, not negative; none, or nothing but 0 in a group: all the same.
        importance: Option<&'a [f32]>,
    },
}

impl Kernels {
    /// Quantises rows of `k` weights to a format. The same bits on every tier. A group with a weight that is not finite gets a
    /// scale that is not, as does one of 4 bits whose scale or minimum f16 cannot hold. A group of zeros has scale and minimum 0,
    /// or scale 1 for MXFP4; ties between its numbers go to the even code.
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
            let Some(scheme) = scheme(format) else {
                if format.is_rotated() {
                    self.rotated_row(format.group(), row, codes, scales);
                } else {
                    self.int8_row(group, row, codes, scales);
                }
                continue;
            };
            let mins = out.mins.get_mut(i * groups..(i + 1) * groups).unwrap_or_default();
            // 8 bits lose too little for a search, and the exponent of MXFP4 is prescribed.
            let search = format.is_4_bit() && matches!(rounding, Rounding::Search { .. });
            let row = Row { scheme, group, search, x: row, importance, codes, scales, mins };
            // SAFETY: the CPU has this table's tier.
            unsafe { (self.table().quantize_weights)(row) }
        }
    }

    fn int8_row(&self, group: usize, row: &[f32], codes: &mut [u8], scales: &mut [f32]) {
        let mut sums = vec![0; scales.len()];
        self.quantize_groups(row, group, bytemuck::cast_slice_mut(codes), scales, &mut sums);
        codes.iter_mut().for_each(|code| *code ^= 0x80);
    }

    /// With a scale for each `group`, or one.
    fn rotated_row(&self, group: Option<usize>, row: &[f32], codes: &mut [u8], scales: &mut [f32]) {
        let (one_scale, mut sums) = (group.is_none(), vec![0; scales.len()]);
        let group = group.unwrap_or_else(|| row.len().next_multiple_of(rotate::BLOCK));
        let values = bytemuck::cast_slice_mut(codes);
        let out = rotate::Out { group, one_scale, values, scales, sums: &mut sums };
        self.quantize_rotated(ActRef::F32(MatRef::new(row, 1, row.len())), 0, out);
        codes.iter_mut().for_each(|code| *code ^= 0x80);
    }
}

/// None for symmetric int8, whose rows are quantised as activations are.
fn scheme(format: WeightFormat) -> Option<Scheme> {
    match format {
        WeightFormat::Int4(_) => Some(Scheme::Int4),
        WeightFormat::Mxfp4 => Some(Scheme::Mxfp4),
        WeightFormat::Int4Min(_) => Some(Scheme::WithMin { top: 15, f16: true }),
        WeightFormat::Int8Min(_) => Some(Scheme::WithMin { top: 255, f16: false }),
        _ => None,
    }
}
