//! [`LmHead`]: hidden rows to logits.

use std::sync::Arc;

use pace_kernels::{ActMut, ActRef, MatMut, PackedWeights};

use crate::linear::{Epilogue, LinearBackend, build};
use crate::{Backend, OpCx, OpError, Operator};

/// The projection to the vocabulary. Logits stay f32.
pub struct LmHead {
    backend: Box<dyn LinearBackend>,
}

impl LmHead {
    /// `weights` is `[vocab, hidden]`; the embedding's own when the model ties them.
    ///
    /// # Errors
    /// The operator has no such backend.
    pub fn new(weights: Arc<PackedWeights>, backend: Backend) -> Result<Self, OpError> {
        Ok(Self { backend: build(Operator::LmHead, weights, backend)? })
    }

    /// Logits per row.
    pub fn vocab_size(&self) -> usize {
        self.backend.n()
    }

    /// Logits `[rows, vocab]` of the rows of `hidden` `[rows, hidden]`: pass only rows that need them.
    ///
    /// # Panics
    /// Shapes differ.
    pub fn forward(&self, cx: &OpCx<'_>, hidden: ActRef<'_>, logits: MatMut<'_, f32>) {
        self.backend.forward(cx, hidden, ActMut::F32(logits), Epilogue::Store { bias: None });
    }
}
