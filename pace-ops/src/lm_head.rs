//! [`LmHead`]: hidden rows to logits.

use std::sync::Arc;

use pace_kernels::{ActMut, ActRef, MatMut, PackedWeights};

use crate::linear::{Finish, Projection, Projects};
use crate::{BuildCx, Choice, OpCx, OpError, Operator};

/// The projection to the vocabulary. Logits stay f32.
pub struct LmHead {
    projection: Projection,
}

impl LmHead {
    /// `weights` is `[vocab, hidden]`; the embedding's own when the model ties them.
    ///
    /// # Errors
    /// The operator has no such backend, not for these weights, or not here.
    pub fn new(
        build: &BuildCx,
        weights: Arc<PackedWeights>,
        choice: impl Into<Choice>,
    ) -> Result<Self, OpError> {
        Ok(Self { projection: Projection::new(build, Operator::LmHead, weights, None, choice.into())? })
    }

    /// Logits per row.
    pub fn vocab_size(&self) -> usize {
        self.projection.n()
    }

    /// Logits `[rows, vocab]` of the rows of `hidden` `[rows, hidden]`: pass only rows that need them.
    ///
    /// # Panics
    /// Shapes differ.
    pub fn forward(&self, cx: &OpCx<'_>, hidden: ActRef<'_>, logits: MatMut<'_, f32>) {
        self.projection.forward(cx, hidden, ActMut::F32(logits), Finish::Store);
    }
}

impl Projects for LmHead {
    fn projection(&self) -> &Projection {
        &self.projection
    }

    fn projection_mut(&mut self) -> &mut Projection {
        &mut self.projection
    }

    fn with_finish<R>(&self, _: &OpCx<'_>, f: impl FnOnce(Finish<'_>) -> R) -> R {
        f(Finish::Store)
    }
}
