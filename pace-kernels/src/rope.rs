//! Rotary position embedding of the heads of one token (Su et al., RoFormer, arXiv 2104.09864).

use crate::Kernels;

impl Kernels {
    /// Rotates the pairs `(x[i], x[i + h])` of every head by the angles whose cosines and sines are given,
    /// h = `cos.len()`; the dimensions from 2h on stay as they are (partial rotation). The order of Llama
    /// checkpoints in HF form. `x` holds heads of `head_dim` elements.
    ///
    /// # Panics
    /// If `cos` and `sin` differ in length, a head is shorter than both together, or `x` does not hold
    /// whole heads.
    pub fn rope_half(&self, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        check(x, head_dim, cos, sin);
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().rope_half)(x, head_dim, cos, sin) }
    }

    /// Rotates the pairs `(x[2i], x[2i + 1])` of every head; otherwise as [`rope_half`](Self::rope_half).
    /// The order of GPT-J and of the original Llama checkpoints.
    ///
    /// # Panics
    /// As [`rope_half`](Self::rope_half).
    pub fn rope_interleaved(&self, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        check(x, head_dim, cos, sin);
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().rope_interleaved)(x, head_dim, cos, sin) }
    }
}

fn check(x: &[f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    assert!(
        cos.len() == sin.len() && cos.len() <= head_dim / 2,
        "{} cosines and {} sines for a head of {head_dim}",
        cos.len(),
        sin.len()
    );
    assert!(head_dim > 0 && x.len().is_multiple_of(head_dim), "{} elements in heads of {head_dim}", x.len());
}
