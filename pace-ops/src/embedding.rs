//! [`Embedding`]: token ids to rows.

use std::sync::Arc;

use pace_kernels::{ActMut, PackedWeights};

use crate::cx::store_row;
use crate::{Backend, OpCx, Work};

/// The embedding matrix `[vocab, hidden]`. A tied LM head shares it.
#[derive(Clone)]
pub struct Embedding {
    weights: Arc<PackedWeights>,
}

impl Embedding {
    /// Rows of `weights` are tokens.
    pub fn new(weights: Arc<PackedWeights>) -> Self {
        Self { weights }
    }

    /// The matrix itself, for a tied LM head.
    pub fn weights(&self) -> &Arc<PackedWeights> {
        &self.weights
    }

    /// Writes the row of each id into `out` `[ids.len(), hidden]`.
    ///
    /// # Panics
    /// An id is beyond the vocabulary, or shapes differ.
    pub fn forward<'i>(&self, cx: &OpCx<'_>, ids: impl Iterator<Item = &'i u32>, mut out: ActMut<'_>) {
        assert_eq!(out.cols(), self.weights.k(), "embedding: width differs");
        // Rows of weights are as wide as the output's.
        let _span = cx.span("embedding", Backend::Native, || Work::rows(out.as_ref(), out.as_ref()));
        let mut row = cx.scratch.take(self.weights.k());
        for (i, &id) in ids.enumerate() {
            self.weights.row(id as usize, &cx.kernels, &mut row);
            store_row(cx.kernels, &row, &mut out, i);
        }
    }
}
