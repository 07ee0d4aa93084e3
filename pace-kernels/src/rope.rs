//! Rotary position embedding of one head (Su et al., RoFormer, arXiv 2104.09864).

use crate::Kernels;

impl Kernels {
    /// Rotates the pairs `(x[i], x[i + h])`, `h = cos.len()`, by the angles whose cosines and sines are
    /// given; `x[2h..]` stays as it is (partial rotation). The order of Llama checkpoints in HF form.
    ///
    /// # Panics
    /// If `cos` and `sin` differ in length, or `x` is shorter than both together.
    pub fn rope_half(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        check(x, cos, sin);
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().rope_half)(x, cos, sin) }
    }

    /// Rotates the pairs `(x[2i], x[2i + 1])`; `x[2h..]` stays as it is, `h = cos.len()`. The order of
    /// GPT-J and of the original Llama checkpoints.
    ///
    /// # Panics
    /// If `cos` and `sin` differ in length, or `x` is shorter than both together.
    pub fn rope_interleaved(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        check(x, cos, sin);
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().rope_interleaved)(x, cos, sin) }
    }
}

fn check(x: &[f32], cos: &[f32], sin: &[f32]) {
    assert!(
        cos.len() == sin.len() && cos.len() <= x.len() / 2,
        "{} cosines and {} sines for a head of {}",
        cos.len(),
        sin.len(),
        x.len()
    );
}
