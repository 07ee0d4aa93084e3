//! Matrices that come as integers with scales, and matrices that become such.

use std::ops::Range;

use super::{PackError, PackSpec, PackedWeights, product};
use crate::{Arena, Par};

/// Some rows of a matrix as integers: weight = (code - zero) * scale, or code * scale + min in formats with a minimum. The
/// zero is 128 for 8 bits, 8 for `Int4`; codes of `Mxfp4` are the four bits of E2M1 numbers.
#[derive(Debug)]
pub struct CodeRows<'a> {
    /// One byte a weight, `[rows, k]`.
    pub codes: &'a mut [u8],
    /// `[rows, ceil(k / group)]`; one a row for `Int8`.
    pub scales: &'a mut [f32],
    /// As `scales` for formats with a minimum, else empty.
    pub mins: &'a mut [f32],
}

impl PackedWeights {
    /// As [`pack_in`](Self::pack_in), of weights that are integers already: `fill(rows, out)` writes the codes, scales and
    /// minima of some consecutive rows. Formats of 4 bits round scales and minima to f16, those of `Mxfp4` to powers of two
    /// that bf16 holds.
    ///
    /// # Errors
    /// As [`pack`](Self::pack).
    ///
    /// # Panics
    /// As [`pack`](Self::pack), and if the format is f32, f16 or bf16.
    pub fn pack_codes_in<E: Send, F>(
        arena: &Arena,
        spec: impl Into<PackSpec>,
        n: usize,
        k: usize,
        par: &Par<'_>,
        fill: F,
    ) -> Result<Self, PackError<E>>
    where
        F: Fn(Range<usize>, &mut CodeRows<'_>) -> Result<(), E> + Sync,
    {
        let spec = spec.into();
        assert!(spec.format.is_quantised(), "{} weights are no integers", spec.format);
        let mut packed = Self::allocate(spec, n, k, |bytes| arena.zeroed(bytes))?;
        let Some(panels) = packed.panels().filter(|_| !packed.data.is_empty() && !arena.is_filled()) else {
            return Ok(packed);
        };
        let mins = if spec.format.has_min() { panels.groups() } else { 0 };
        let row = product(&[k.div_ceil(size_of::<f32>()) + panels.groups() + mins])?;
        let scratch = product(&[panels.width.min(n), row])?;
        packed.pack_panels(&panels, par, scratch, |column, rows, scratch, steps, scales| {
            let count = rows.len();
            let (codes, rest) = scratch.split_at_mut((count * k).div_ceil(size_of::<f32>()));
            let (own_scales, rest) = rest.split_at_mut(count * panels.groups());
            let mut out = CodeRows {
                codes: &mut bytemuck::cast_slice_mut(codes)[..count * k],
                scales: own_scales,
                mins: &mut rest[..count * mins],
            };
            fill(rows, &mut out)?;
            panels.store_codes(column, &out, steps, scales);
            Ok(())
        })?;
        Ok(packed)
    }
}
