//! A part of a matrix in panels, for products that are computed part by part.

use std::ops::Range;

use super::{InputOrder, PackedWeights, Panels};

/// Inputs that a slice starts at a multiple of, unless the format's groups are larger: a group of
/// quantised activations.
const INPUTS: usize = 64;

/// Some outputs and some inputs of a [`PackedWeights`]: an operand of [`Kernels::gemm`](crate::Kernels::gemm)
/// that reads no other weights.
#[derive(Clone, Copy, Debug)]
pub struct WeightSlice<'a> {
    weights: &'a PackedWeights,
    first_output: usize,
    result_cols: usize,
    first_input: usize,
    k: usize,
}

impl PackedWeights {
    /// Inputs that a [slice](Self::slice) starts at a multiple of: 64, or the format's group if that is larger; all of them
    /// where they are stored in another order than the model's.
    pub fn input_unit(&self) -> usize {
        match self.input_order() {
            Some(_) => self.k().max(1),
            None => INPUTS.max(self.format().group().unwrap_or(INPUTS)),
        }
    }

    /// The weights of some outputs and inputs. `outputs` are columns of a product, `0..result_cols()`:
    /// of a [paired](crate::WeightLayout::Panels) matrix, these of the gate and of the up part.
    ///
    /// # Panics
    /// If the weights are not in panels, if a range does not lie in the matrix, or if it is cut where it
    /// cannot be: outputs between whole panels (multiples of the panel's width, half of it if paired) and
    /// at the end, inputs at multiples of [`input_unit`](Self::input_unit) and at the end.
    pub fn slice(&self, outputs: Range<usize>, inputs: Range<usize>) -> WeightSlice<'_> {
        let panels = self.panels().expect("weights that are sliced are packed in panels");
        check_cuts("outputs", &outputs, panels.result_width(), self.result_cols());
        check_cuts("inputs", &inputs, self.input_unit(), self.k());
        WeightSlice {
            weights: self,
            first_output: outputs.start,
            result_cols: outputs.len(),
            first_input: inputs.start,
            k: inputs.len(),
        }
    }
}

impl WeightSlice<'_> {
    /// Rows of the slice: its outputs, twice as many if the matrix is paired.
    pub fn n(&self) -> usize {
        if self.is_paired() { 2 * self.result_cols } else { self.result_cols }
    }

    /// Inputs of the slice.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of a product with this slice.
    pub fn result_cols(&self) -> usize {
        self.result_cols
    }

    /// The order in which the inputs are stored, if it is another than the model's.
    pub(crate) fn input_order(&self) -> Option<&InputOrder> {
        // A slice of them has all inputs, or none.
        self.weights.input_order().filter(|_| self.has_whole_rows())
    }

    /// Whether it holds parts of a gate and of an up matrix.
    pub(crate) fn is_paired(&self) -> bool {
        self.weights.result_cols() < self.weights.n()
    }

    /// Whether it has all inputs of the matrix.
    pub(crate) fn has_whole_rows(&self) -> bool {
        self.k == self.weights.k()
    }

    /// Where things lie, if the weights are in panels, as in a matrix of this slice alone.
    pub(crate) fn panels(&self) -> Option<Panels> {
        self.weights.panels().map(|whole| Panels { n: self.n(), k: self.k, ..whole })
    }

    /// The steps and the scales of a panel of the slice.
    ///
    /// # Panics
    /// If there is no such panel, or no panels.
    pub(crate) fn panel(&self, panel: usize) -> (&[u8], &[f32]) {
        let (Some(whole), Some(part)) = (self.weights.panels(), self.panels()) else {
            panic!("weights in rows have no panels");
        };
        let (weights, scales) = self.weights.panel(&whole, self.first_output / whole.result_width() + panel);
        let first = self.first_input / whole.format.step_inputs();
        let weights = &weights[whole.stored(&(first..first + part.steps()))];
        let scales = match whole.format.group() {
            Some(group) if part.scales() > 0 => {
                &scales[self.first_input / group * whole.group_scales()..][..part.scales()]
            }
            _ => scales,
        };
        (weights, scales)
    }

    /// Bytes from a panel to the next.
    ///
    /// # Panics
    /// If the matrix has no panels.
    pub(crate) fn panel_stride(&self) -> usize {
        let count = self.weights.panels().map_or(0, |panels| panels.count());
        assert!(count > 0, "there are panels");
        self.weights.bytes() / count
    }
}

impl<'a> From<&'a PackedWeights> for WeightSlice<'a> {
    /// The whole matrix.
    fn from(weights: &'a PackedWeights) -> Self {
        Self { weights, first_output: 0, result_cols: weights.result_cols(), first_input: 0, k: weights.k() }
    }
}

fn check_cuts(what: &str, range: &Range<usize>, unit: usize, end: usize) {
    assert!(range.start <= range.end && range.end <= end, "the {what} {range:?} do not lie in 0..{end}");
    let is_cut = |at: usize| at == end || at.is_multiple_of(unit);
    assert!(
        is_cut(range.start) && is_cut(range.end),
        "the {what} {range:?} are not cut at multiples of {unit}"
    );
}
