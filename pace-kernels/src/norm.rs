//! Normalisation of one row.

use crate::Kernels;

impl Kernels {
    /// out = x / sqrt(mean(x^2) + eps) * weight.
    ///
    /// The sum of squares is f32 in the tier's lanes, the root and the quotient are exactly rounded.
    /// The relative error against f64 is at most (n / 16 + 8) * 2^-24 for a row of n elements with
    /// 16 lanes and four accumulators, in practice below 1e-6.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len(), "lengths of row, weight and output");
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().rms_norm)(x, weight, eps, out) }
    }

    /// out = (x - mean) / sqrt(variance + eps) * weight + bias, with the variance of the population,
    /// summed in a second pass over the row.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn layer_norm(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len(), "lengths of row, weight and output");
        assert!(bias.is_none_or(|bias| bias.len() == x.len()), "lengths of row and bias");
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().layer_norm)(x, weight, bias.unwrap_or(&[]), eps, out) }
    }
}
