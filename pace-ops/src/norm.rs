//! [`Norm`]: normalisation of every row.

use pace_kernels::{ActMut, ActRef, RowNorm};

use crate::{Backend, OpCx, OpError, Operator};

/// RMSNorm with a weight: `x / sqrt(mean(x^2) + eps) * weight`, statistics in f32, rounded once.
///
/// Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".
#[derive(Debug)]
pub struct Norm {
    weight: Vec<f32>,
    eps: f32,
}

impl Norm {
    /// RMSNorm over rows of `weight.len()` numbers.
    ///
    /// # Errors
    /// The operator has no such backend.
    pub fn rms(weight: Vec<f32>, eps: f32, backend: Backend) -> Result<Self, OpError> {
        Operator::Norm.resolve(backend)?;
        Ok(Self { weight, eps })
    }

    /// Numbers in a row.
    pub fn cols(&self) -> usize {
        self.weight.len()
    }

    /// Bytes of weights.
    pub fn bytes(&self) -> usize {
        size_of_val(self.weight.as_slice())
    }

    /// Normalises each row of `x` into `out`, both `[rows, cols]`.
    ///
    /// # Panics
    /// Shapes differ.
    pub fn forward(&self, cx: &OpCx<'_>, x: ActRef<'_>, out: ActMut<'_>) {
        let cols = self.cols();
        assert!(x.cols() == cols && out.cols() == cols && x.rows() == out.rows(), "norm: shapes differ");
        let norm = RowNorm::rms(&self.weight, self.eps);
        let (kernels, cuts) = (cx.kernels, cx.row_cuts(x.rows()));
        cx.par.grid_act(out, cuts.as_slice(), cols, &mut [], |_, row_tile, _, tile| {
            let first = cuts.as_slice()[row_tile];
            kernels.norm(&norm, x.rows_range(first..first + tile.rows()), tile);
        });
    }
}
