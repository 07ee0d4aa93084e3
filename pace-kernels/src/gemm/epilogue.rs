//! What happens to the sums before they are stored.

use half::bf16;

use crate::{ActRef, Activation, WeightSlice};

/// How the f32 sums of a product become its output. The steps that are asked for are done in the
/// order of the fields, in f32, and the result is rounded once.
///
/// A [paired](crate::WeightLayout::Panels) matrix gives `act(gate + bias) * (up + bias)` first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added to the sums, one number for each row of the weight matrix, or of a slice of it: for a
    /// paired one those of its gate part, then those of its up part.
    pub bias: Option<&'a [f32]>,
    /// Applied then.
    pub activation: Option<Activation>,
    /// Multiplied by then: of the output's shape.
    pub multiply: Option<ActRef<'a>>,
    /// Whether what the output holds is added then, instead of being overwritten: the residual stream.
    pub accumulate: bool,
}

impl<'a> Epilogue<'a> {
    /// # Panics
    /// If a shape does not fit a product with `w` of `rows` rows.
    pub(super) fn check(&self, w: &WeightSlice<'_>, rows: usize) {
        assert!(
            self.bias.is_none_or(|bias| bias.len() == w.n()),
            "a bias for each of {} rows of weights",
            w.n()
        );
        if let Some(other) = self.multiply {
            assert!(
                other.rows() == rows && other.cols() == w.result_cols(),
                "{other:?} is not of the output's shape, {rows} x {}",
                w.result_cols()
            );
        }
    }

    /// The elements `cols` of row `i` of the matrix to multiply by.
    pub(super) fn multiplier(&self, i: usize, cols: std::ops::Range<usize>) -> RowRef<'a> {
        match self.multiply {
            None => RowRef::None,
            Some(ActRef::F32(other)) => RowRef::F32(&other.row(i)[cols]),
            Some(ActRef::Bf16(other)) => RowRef::Bf16(&other.row(i)[cols]),
        }
    }
}

/// The epilogue of one row of a panel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowEpilogue<'a> {
    /// The scales of int8 weights, one for each sum; empty if there are none.
    pub(crate) scales: &'a [f32],
    /// Where the sums of the up matrix begin, or the number of sums.
    pub(crate) half: usize,
    /// Whether the sums from `half` on multiply those before.
    pub(crate) paired: bool,
    /// Empty if there is none.
    pub(crate) bias: &'a [f32],
    /// Empty if there is none.
    pub(crate) up_bias: &'a [f32],
    pub(crate) activation: Option<Activation>,
    pub(crate) multiply: RowRef<'a>,
    pub(crate) accumulate: bool,
}

/// A part of a row of another matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RowRef<'a> {
    None,
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// The part of an output row that a panel gives.
#[derive(Debug)]
pub(crate) enum RowMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

impl RowMut<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(row) => row.len(),
            Self::Bf16(row) => row.len(),
        }
    }
}
