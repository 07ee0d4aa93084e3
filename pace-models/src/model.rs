//! [`Model`]: what the engine needs of a model.

use std::ops::Range;

use pace_kernels::{ActRef, DType, MatMut};
use pace_ops::{OpCx, Selection};

use crate::{DecoderSpec, QuantLoss, Sequence, Workspace};

/// The memory of a model's packed weights.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightMemory {
    /// Bytes.
    pub bytes: usize,
    /// The part of the matrices that lies in huge pages, from 0 to 1, measured after loading; none where the system
    /// does not tell.
    pub huge_share: Option<f64>,
    /// Tells apart how matrices may be packed. Memory of another process may be used as weights only if this is equal
    /// there.
    pub layout: u64,
    /// Where the matrices lie: addresses of this process, for asking the system about them.
    pub addresses: Vec<Range<usize>>,
    /// What weights lost when they became integers.
    pub losses: Vec<QuantLoss>,
}

/// A loaded model: weights and operators, no state of any sequence.
pub trait Model: Send + Sync {
    /// The model's shape.
    fn spec(&self) -> &DecoderSpec;

    /// The type of activations, and so of the [`Workspace`].
    fn activations(&self) -> DType;

    /// The memory of the packed weights.
    fn weights(&self) -> WeightMemory;

    /// Which backends the operators got.
    fn selection(&self) -> &Selection;

    /// Appends every sequence's `input` to its cache, clears it, and leaves the rows asked for by `outputs` in
    /// [`Workspace::outputs`].
    ///
    /// # Panics
    /// A cache has no room reserved for its input, or an id is beyond the vocabulary.
    fn forward(&self, cx: &OpCx<'_>, ws: &mut Workspace, batch: &mut [Sequence]);

    /// Logits `[rows, vocab]` of rows of [`Workspace::outputs`].
    ///
    /// # Panics
    /// Shapes differ.
    fn logits(&self, cx: &OpCx<'_>, hidden: ActRef<'_>, logits: MatMut<'_, f32>);
}
