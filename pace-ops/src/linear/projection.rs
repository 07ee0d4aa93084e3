//! [`Projection`]: a weight matrix with its bias and the backends that multiply by it.

use std::sync::Arc;

use pace_kernels::{ActMut, ActQuant, ActRef, DType, PackedWeights, WeightFormat};

use super::native::NativeMatrix;
use super::panels::PanelLinear;
use crate::choice::{ByClass, MOST_ROWS};
use crate::panels::{PanelGemm, require_panels_for};
use crate::rope::AngleTable;
use crate::self_test::{Mismatch, Sample, SelfTest};
use crate::{Backend, BuildCx, Choice, OpCx, OpDType, OpError, OpShape, Operator, Product, Work};

/// How a projection's f32 result becomes its output, after the bias was added.
#[derive(Clone, Copy)]
pub(crate) enum Finish<'a> {
    /// Round.
    Store,
    /// Add what the output holds, round.
    Residual,
    /// Rotate the heads in the columns `..rotated`, round.
    Rope {
        /// One row a token.
        angles: AngleTable<'a>,
        /// Columns of one head.
        head_dim: usize,
        /// Columns of the query and key heads together.
        rotated: usize,
    },
}

/// One way to compute a projection.
pub(crate) trait LinearBackend: Send + Sync {
    /// `out = finish(a * W^T + bias)`; `a` is `[rows, k]`, `out` `[rows, n]`.
    fn forward(
        &self,
        cx: &OpCx<'_>,
        a: ActRef<'_>,
        bias: Option<&[f32]>,
        out: ActMut<'_>,
        finish: Finish<'_>,
    );
}

/// A matrix `[n, k]`, a bias, and a backend for each class of row counts.
pub(crate) struct Projection {
    shape: OpShape,
    weights: Arc<PackedWeights>,
    bias: Option<Vec<f32>>,
    backends: ByClass<dyn LinearBackend>,
}

impl Projection {
    /// # Errors
    /// The operator has no such backend, not for these weights, or not here.
    ///
    /// # Panics
    /// The bias has another length than `n`.
    pub(crate) fn new(
        build: &BuildCx,
        op: Operator,
        weights: Arc<PackedWeights>,
        bias: Option<Vec<f32>>,
        choice: Choice,
    ) -> Result<Self, OpError> {
        assert!(bias.as_ref().is_none_or(|b| b.len() == weights.n()), "one bias per output column");
        let shape = OpShape::matrix(op, weights.format().into(), weights.n(), weights.k());
        let choice = build.resolve(shape, choice)?;
        require_panels_for(op, choice, &weights, false)?;
        let mut build = build.clone();
        if build.act_quant == ActQuant::Groups && wants_fine(op, weights.format()) {
            build.act_quant = ActQuant::Fine;
        }
        let backends = ByClass::build(choice, |backend| matrix(&build, &weights, backend));
        Ok(Self { shape, weights, bias, backends })
    }

    /// Output columns.
    pub(crate) fn n(&self) -> usize {
        self.weights.n()
    }

    /// `out = finish(a * W^T + bias)`.
    ///
    /// # Panics
    /// Shapes differ.
    pub(crate) fn forward(&self, cx: &OpCx<'_>, a: ActRef<'_>, out: ActMut<'_>, finish: Finish<'_>) {
        let (rows, n, k) = (a.rows(), self.weights.n(), self.weights.k());
        assert!(a.cols() == k && out.cols() == n && out.rows() == rows, "projection: shapes differ");
        let (backend, built) = self.backends.of(rows);
        let _span = cx.span(self.shape.op.name(), backend, || {
            Work::product(self.shape, self.weights.bytes(), a, out.as_ref())
        });
        cx.observe(Product::of(self.shape.op), k, 0, a);
        built.forward(cx, a, self.bias.as_deref(), out, finish);
    }

    /// Runs the backend of every class and compares it with the reference, of which the first and the last columns are
    /// enough: all panels are computed by the same code, and the last one may be narrower. The reference of a whole LM head
    /// would take longer than loading a model that is packed.
    fn self_test(&self, cx: &OpCx<'_>, finish: Finish<'_>) -> Result<(), Mismatch> {
        let native = NativeMatrix::edges(Arc::clone(&self.weights), SELF_TEST_COLUMNS);
        let sample = Sample::new(OpDType::from(self.weights.format()));
        let bias = self.bias.as_deref();
        let logits = self.shape.op == Operator::LmHead;
        let dtype = if logits { DType::F32 } else { self.shape.dtype.activations() };
        let a = sample.rows(MOST_ROWS, self.weights.k());
        sample.test(&self.backends, &native, SELF_TEST_COLUMNS, |by, rows| {
            let mut out = Sample::zeros(dtype, rows, self.weights.n());
            by.forward(cx, a.rows(rows), bias, out.rows_mut(rows), finish);
            out
        })
    }

    /// Puts a wrong implementation in the place of every backend.
    #[cfg(test)]
    pub(crate) fn break_backends(&mut self) {
        self.backends.replace(|| Box::new(Broken));
    }
}

/// Whether activations are rounded with finer scales. An error of keys and values reaches every later token: on SmolLM2, this
/// takes a fifth of what weights of 4 bits lose, in a tenth of the arithmetic. Logits are of a few rows, bound by
/// memory.
fn wants_fine(op: Operator, format: WeightFormat) -> bool {
    op == Operator::LmHead || (op == Operator::QkvProjection && format.is_4_bit())
}

/// Output columns at either end that a self-test compares.
const SELF_TEST_COLUMNS: usize = 1024;

/// An operator that is a projection and what becomes of its result.
pub(crate) trait Projects {
    fn projection(&self) -> &Projection;

    fn projection_mut(&mut self) -> &mut Projection;

    /// Calls `f` with what becomes of the result, on random angles where it is rotated.
    fn with_finish<R>(&self, cx: &OpCx<'_>, f: impl FnOnce(Finish<'_>) -> R) -> R;
}

impl<T: Projects> SelfTest for T {
    fn shape(&self) -> OpShape {
        self.projection().shape
    }

    fn self_test(&self, cx: &OpCx<'_>) -> Result<(), Mismatch> {
        self.with_finish(cx, |finish| self.projection().self_test(cx, finish))
    }

    fn set_native(&mut self) {
        let projection = self.projection_mut();
        let native = NativeMatrix::new(Arc::clone(&projection.weights));
        projection.backends = ByClass::native(Box::new(native));
    }
}

fn matrix(build: &BuildCx, weights: &Arc<PackedWeights>, backend: Backend) -> Box<dyn LinearBackend> {
    let weights = Arc::clone(weights);
    match backend {
        Backend::Tpp => Box::new(PanelLinear::new(PanelGemm::table(build), weights)),
        Backend::Jit => Box::new(PanelLinear::new(PanelGemm::generated(build), weights)),
        Backend::Native => Box::new(NativeMatrix::new(weights)),
        Backend::Auto | Backend::Imbps | Backend::Flash => {
            unreachable!("`resolve` leaves what a projection has")
        }
    }
}

/// A backend that gives the same numbers whatever it is asked for.
#[cfg(test)]
struct Broken;

#[cfg(test)]
impl LinearBackend for Broken {
    fn forward(&self, cx: &OpCx<'_>, _: ActRef<'_>, _: Option<&[f32]>, mut out: ActMut<'_>, _: Finish<'_>) {
        let ones = vec![1.0; out.cols()];
        (0..out.rows()).for_each(|i| crate::cx::store_row(cx.kernels, &ones, &mut out, i));
    }
}
