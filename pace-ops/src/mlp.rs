//! [`Mlp`]: the feed-forward layer, added to the residual stream.

mod imbps;
mod native;
mod panels;

use std::sync::Arc;

use pace_kernels::{ActMut, ActRef, Activation, PackedWeights};

use self::imbps::ImbpsMlp;
use self::native::NativeMlp;
use self::panels::PanelMlp;
use crate::choice::{ByClass, MOST_ROWS};
use crate::panels::{PanelGemm, require_panels_for};
use crate::self_test::{Mismatch, Sample, SelfTest};
use crate::{Backend, BuildCx, Choice, OpCx, OpDType, OpError, OpShape, Operator, Product, Work};

/// The weights of a feed-forward layer: `down(act(gate(x)) * up(x))`, or without a gate `down(act(up(x)))`.
#[derive(Clone, Debug)]
pub struct MlpWeights {
    /// `[ffn, hidden]`; with a gate `[2 * ffn, hidden]`, the gate above the up matrix.
    pub up: Arc<PackedWeights>,
    /// `[hidden, ffn]`.
    pub down: Arc<PackedWeights>,
    /// One number for each row of `up`.
    pub up_bias: Option<Vec<f32>>,
    /// `[hidden]`.
    pub down_bias: Option<Vec<f32>>,
}

impl MlpWeights {
    /// Inputs and outputs of the layer.
    fn hidden(&self) -> usize {
        self.down.n()
    }

    /// The intermediate dimension.
    fn ffn(&self) -> usize {
        self.down.k()
    }

    /// Whether there is a gate.
    fn gated(&self) -> bool {
        self.up.n() == 2 * self.ffn() && self.ffn() > 0
    }

    fn dtype(&self) -> OpDType {
        OpDType::of_mlp(self.up.format(), self.down.format())
    }

    /// What tells this layer's measurements and tests from those of others.
    fn op_shape(&self) -> OpShape {
        OpShape::mlp(self.dtype(), self.hidden(), self.ffn(), self.gated())
    }

    fn bytes(&self) -> usize {
        self.up.bytes() + self.down.bytes()
    }

    fn check(&self) {
        let (hidden, ffn) = (self.hidden(), self.ffn());
        assert!(
            self.up.k() == hidden && (self.up.n() == ffn || self.gated()),
            "up [{}, {}] does not fit down [{hidden}, {ffn}]",
            self.up.n(),
            self.up.k()
        );
        assert!(self.up_bias.as_ref().is_none_or(|b| b.len() == self.up.n()), "one bias for each row of up");
        assert!(self.down_bias.as_ref().is_none_or(|b| b.len() == hidden), "one bias for each row of down");
    }
}

/// A feed-forward layer. The intermediate rows are rounded to the activations' type after `act(gate) * up`, or after
/// the activation where there is no gate; sums are f32.
pub struct Mlp {
    weights: Arc<MlpWeights>,
    activation: Activation,
    backends: ByClass<dyn MlpBackend>,
}

impl Mlp {
    /// Builds the layer; the weights are packed as [`BuildCx::pack_spec`] says: `up` for this operator, `down` for a
    /// projection.
    ///
    /// # Errors
    /// The operator has no such backend, not for these weights, or not here.
    ///
    /// # Panics
    /// The weights' shapes do not fit together.
    pub fn new(
        build: &BuildCx,
        weights: MlpWeights,
        activation: Activation,
        choice: impl Into<Choice>,
    ) -> Result<Self, OpError> {
        weights.check();
        let choice = build.resolve(weights.op_shape(), choice.into())?;
        require_panels_for(Operator::Mlp, choice, &weights.up, weights.gated())?;
        require_panels_for(Operator::Mlp, choice, &weights.down, false)?;
        let weights = Arc::new(weights);
        let backends = ByClass::build(choice, |backend| layer(build, &weights, activation, backend));
        Ok(Self { weights, activation, backends })
    }

    /// `residual += mlp(x)`; both `[rows, hidden]`.
    ///
    /// # Panics
    /// Shapes differ.
    pub fn forward(&self, cx: &OpCx<'_>, x: ActRef<'_>, residual: ActMut<'_>) {
        let hidden = self.weights.hidden();
        assert!(
            x.cols() == hidden && residual.cols() == hidden && x.rows() == residual.rows(),
            "mlp: shapes differ"
        );
        let (backend, built) = self.backends.of(x.rows());
        let _span = cx.span(Operator::Mlp.name(), backend, || {
            Work::product(self.weights.op_shape(), self.weights.bytes(), x, residual.as_ref())
        });
        cx.observe(Product::Up, hidden, 0, x);
        built.forward(cx, x, residual);
    }
}

impl SelfTest for Mlp {
    fn shape(&self) -> OpShape {
        self.weights.op_shape()
    }

    fn self_test(&self, cx: &OpCx<'_>) -> Result<(), Mismatch> {
        let native = NativeMlp::new(Arc::clone(&self.weights), self.activation);
        let sample = Sample::new(self.weights.dtype());
        let x = sample.rows(MOST_ROWS, self.weights.hidden());
        sample.test(&self.backends, &native, usize::MAX, |by, rows| {
            let mut residual = Sample::zeros(x.dtype(), rows, self.weights.hidden());
            by.forward(cx, x.rows(rows), residual.rows_mut(rows));
            residual
        })
    }

    fn set_native(&mut self) {
        let native = NativeMlp::new(Arc::clone(&self.weights), self.activation);
        self.backends = ByClass::native(Box::new(native));
    }
}

/// One way to compute a feed-forward layer.
trait MlpBackend: Send + Sync {
    /// `residual += mlp(x)`. The intermediate rows are shown to [`OpCx::observe`] before they are multiplied.
    fn forward(&self, cx: &OpCx<'_>, x: ActRef<'_>, residual: ActMut<'_>);
}

fn layer(
    build: &BuildCx,
    weights: &Arc<MlpWeights>,
    activation: Activation,
    backend: Backend,
) -> Box<dyn MlpBackend> {
    let weights = Arc::clone(weights);
    match backend {
        Backend::Tpp => Box::new(PanelMlp::new(PanelGemm::table(build), weights, activation)),
        Backend::Jit => Box::new(PanelMlp::new(PanelGemm::generated(build), weights, activation)),
        Backend::Native => Box::new(NativeMlp::new(weights, activation)),
        Backend::Imbps => Box::new(ImbpsMlp::new(build, weights, activation)),
        Backend::Auto | Backend::Flash => unreachable!("`resolve` leaves what an MLP has"),
    }
}
