//! Softmax and its relatives over one row, and plain sums and scalings.

use crate::Kernels;

impl Kernels {
    /// x = e^(x - max) / sum(e^(x - max)), relative error 1e-6.
    ///
    /// A -inf becomes 0, and a row of nothing but -inf becomes all 0. A NaN or +inf in the row makes
    /// NaN of every finite element.
    pub fn softmax(&self, x: &mut [f32]) {
        let max = self.max(x);
        if max == f32::NEG_INFINITY {
            // Without a number above -inf there are only -inf, which count as nothing, and NaN.
            let value = if x.iter().any(|x| x.is_nan()) { f32::NAN } else { 0.0 };
            x.fill(value);
            return;
        }
        // SAFETY: the CPU has this table's tier.
        let sum = unsafe { (self.table().exp_sub)(x, max) };
        self.scale(x, 1.0 / sum);
    }

    /// ln(sum(e^x)), summed in f64; absolute error 5e-7. -inf for a row of nothing but -inf or of
    /// no elements; NaN if the row has one.
    pub fn log_sum_exp(&self, x: &[f32]) -> f64 {
        let max = self.max(x);
        if max.is_infinite() {
            return if x.iter().any(|x| x.is_nan()) { f64::NAN } else { f64::from(max) };
        }
        let mut sum = 0.0;
        let mut part = [0.0; 256];
        for chunk in x.chunks(part.len()) {
            let part = &mut part[..chunk.len()];
            part.copy_from_slice(chunk);
            // SAFETY: the CPU has this table's tier.
            unsafe { (self.table().exp_sub)(part, max) };
            sum += part.iter().map(|&e| f64::from(e)).sum::<f64>();
        }
        f64::from(max) + sum.ln()
    }

    /// The largest element; NaN is passed over. -inf without any.
    pub fn max(&self, x: &[f32]) -> f32 {
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().max)(x) }
    }

    /// x += y.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "lengths of the summands");
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().add)(x, y) }
    }

    /// x *= factor.
    pub fn scale(&self, x: &mut [f32], factor: f32) {
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().scale)(x, factor) }
    }
}
