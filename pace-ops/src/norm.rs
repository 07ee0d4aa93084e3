//! [`Norm`]: normalisation of every row, alone or after a sum with the residual stream.

use pace_kernels::{ActMut, ActRef, DType, MatMut, MatRef, RowNorm};

use crate::cx::{load_row, store_row};
use crate::self_test::{Mismatch, Sample, SelfTest};
use crate::{Backend, BuildCx, Choice, MClass, OpCx, OpDType, OpError, OpShape, Operator, Work};

/// RMSNorm or LayerNorm with a weight; statistics in f32, rounded once.
///
/// NATIVE goes through each step by itself: sum, widening, normalisation in f32, rounding. TPP does them in one pass
/// over the row, with the same bits.
///
/// Sources: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"; Ba, Kiros and Hinton 2016, "Layer
/// Normalization".
#[derive(Debug)]
pub struct Norm {
    weight: Vec<f32>,
    /// The bias of a LayerNorm; none: RMSNorm.
    layer: Option<Option<Vec<f32>>>,
    eps: f32,
    dtype: OpDType,
    backend: Backend,
}

impl Norm {
    /// RMSNorm, `x / sqrt(mean(x^2) + eps) * weight`, over rows of `weight.len()` numbers of type `dtype`.
    ///
    /// # Errors
    /// The operator has no such backend.
    pub fn rms(
        build: &BuildCx,
        weight: Vec<f32>,
        eps: f32,
        dtype: DType,
        choice: impl Into<Choice>,
    ) -> Result<Self, OpError> {
        Self::build(build, weight, None, eps, dtype, choice.into())
    }

    /// LayerNorm, `(x - mean) / sqrt(variance + eps) * weight + bias`.
    ///
    /// # Errors
    /// The operator has no such backend.
    ///
    /// # Panics
    /// The bias has another length than the weight.
    pub fn layer(
        build: &BuildCx,
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
        eps: f32,
        dtype: DType,
        choice: impl Into<Choice>,
    ) -> Result<Self, OpError> {
        assert!(bias.as_ref().is_none_or(|b| b.len() == weight.len()), "one bias per number of a row");
        Self::build(build, weight, Some(bias), eps, dtype, choice.into())
    }

    fn build(
        build: &BuildCx,
        weight: Vec<f32>,
        layer: Option<Option<Vec<f32>>>,
        eps: f32,
        dtype: DType,
        choice: Choice,
    ) -> Result<Self, OpError> {
        let shape = OpShape::row(Operator::Norm, dtype.into(), weight.len());
        let backend = build.resolve(shape, choice)?.of(MClass::One);
        Ok(Self { weight, layer, eps, dtype: dtype.into(), backend })
    }

    /// Numbers in a row.
    pub fn cols(&self) -> usize {
        self.weight.len()
    }

    /// Normalises each row of `x` into `out`, both `[rows, cols]`.
    ///
    /// # Panics
    /// Shapes differ.
    pub fn forward(&self, cx: &OpCx<'_>, x: ActRef<'_>, out: ActMut<'_>) {
        self.check(x, out.as_ref());
        let _span = cx.span(Operator::Norm.name(), self.backend, || Work::rows(x, out.as_ref()));
        self.normalise(cx, self.backend, x, out);
    }

    /// `x += r`, rounded to the type of `x`, then as [`forward`](Self::forward); all are `[rows, cols]`.
    ///
    /// # Panics
    /// Shapes or types differ.
    pub fn add_forward(&self, cx: &OpCx<'_>, mut x: ActMut<'_>, r: ActRef<'_>, out: ActMut<'_>) {
        self.check(x.as_ref(), out.as_ref());
        self.check(r, out.as_ref());
        assert_eq!(x.dtype(), r.dtype(), "norm: types differ");
        let _span = cx.span(Operator::Norm.name(), self.backend, || Work::rows(r, out.as_ref()));
        let (norm, kernels, cols) = (self.row_norm(), cx.kernels, self.cols());
        let cuts = cx.row_cuts(x.rows());
        if self.backend != Backend::Native {
            return cx.par.row_tiles_of_two(x, out, cuts.as_slice(), |row_tile, x, out| {
                let first = cuts.as_slice()[row_tile];
                kernels.add_norm(&norm, x, r.rows_range(first..first + out.rows()), out);
            });
        }
        let mut scratch = cx.thread_scratch(2 * cols);
        cx.par.grid_act(
            x.rb_mut(),
            cuts.as_slice(),
            cols.max(1),
            &mut scratch,
            |slot, row_tile, _, mut x| {
                let (sum, row) = slot.split_at_mut(cols);
                for i in 0..x.rows() {
                    load_row(kernels, x.as_ref(), i, sum);
                    load_row(kernels, r, cuts.as_slice()[row_tile] + i, row);
                    kernels.add(sum, row);
                    store_row(kernels, sum, &mut x, i);
                }
            },
        );
        self.normalise(cx, Backend::Native, x.as_ref(), out);
    }

    fn row_norm(&self) -> RowNorm<'_> {
        match &self.layer {
            None => RowNorm::rms(&self.weight, self.eps),
            Some(bias) => RowNorm::layer(&self.weight, bias.as_deref(), self.eps),
        }
    }

    fn normalise(&self, cx: &OpCx<'_>, backend: Backend, x: ActRef<'_>, out: ActMut<'_>) {
        let (norm, cols) = (self.row_norm(), self.cols());
        let (kernels, cuts) = (cx.kernels, cx.row_cuts(x.rows()));
        let native = backend == Backend::Native;
        let mut scratch = cx.thread_scratch(if native { 2 * cols } else { 0 });
        cx.par.grid_act(out, cuts.as_slice(), cols.max(1), &mut scratch, |slot, row_tile, _, mut tile| {
            let first = cuts.as_slice()[row_tile];
            if !native {
                return kernels.norm(&norm, x.rows_range(first..first + tile.rows()), tile);
            }
            let (wide, normed) = slot.split_at_mut(cols);
            for i in 0..tile.rows() {
                load_row(kernels, x, first + i, wide);
                let row = ActRef::F32(MatRef::new(wide, 1, cols));
                kernels.norm(&norm, row, ActMut::F32(MatMut::new(normed, 1, cols)));
                store_row(kernels, normed, &mut tile, i);
            }
        });
    }

    fn check(&self, x: ActRef<'_>, out: ActRef<'_>) {
        let cols = self.cols();
        assert!(x.cols() == cols && out.cols() == cols && x.rows() == out.rows(), "norm: shapes differ");
    }
}

impl SelfTest for Norm {
    fn shape(&self) -> OpShape {
        OpShape::row(Operator::Norm, self.dtype, self.cols())
    }

    fn self_test(&self, cx: &OpCx<'_>) -> Result<(), Mismatch> {
        const ROWS: usize = 3;
        if self.backend == Backend::Native {
            return Ok(());
        }
        let sample = Sample::new(self.dtype);
        let x = sample.rows(ROWS, self.cols());
        let run = |backend| {
            let mut out = sample.rows(ROWS, self.cols());
            self.normalise(cx, backend, x.rows(ROWS), out.rows_mut(ROWS));
            out
        };
        sample.compare(self.backend, &run(self.backend), &run(Backend::Native), ROWS)
    }

    fn set_native(&mut self) {
        self.backend = Backend::Native;
    }
}
