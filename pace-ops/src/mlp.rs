//! [`Mlp`]: the feed-forward layer, added to the residual stream.

mod composed;

use std::sync::Arc;

use pace_kernels::{ActMut, ActRef, Activation, PackedWeights};

use self::composed::ComposedMlp;
use crate::{Backend, OpCx, OpError, Operator};

/// The weights of a gated feed-forward layer: `down(act(gate(x)) * up(x))`.
pub struct MlpWeights {
    /// `[ffn, hidden]`.
    pub gate: Arc<PackedWeights>,
    /// `[ffn, hidden]`.
    pub up: Arc<PackedWeights>,
    /// `[hidden, ffn]`.
    pub down: Arc<PackedWeights>,
    /// `[ffn]`.
    pub gate_bias: Option<Vec<f32>>,
    /// `[ffn]`.
    pub up_bias: Option<Vec<f32>>,
    /// `[hidden]`.
    pub down_bias: Option<Vec<f32>>,
}

/// A gated feed-forward layer. The intermediate rows are rounded to the activations' type after
/// `act(gate) * up`; sums are f32.
pub struct Mlp {
    backend: Box<dyn MlpBackend>,
}

impl Mlp {
    /// Builds the layer.
    ///
    /// # Errors
    /// The operator has no such backend.
    ///
    /// # Panics
    /// The weights' shapes do not fit together.
    pub fn new(weights: MlpWeights, activation: Activation, backend: Backend) -> Result<Self, OpError> {
        let (ffn, hidden) = (weights.gate.n(), weights.gate.k());
        assert!(weights.up.n() == ffn && weights.up.k() == hidden, "gate and up differ in shape");
        assert!(
            weights.down.n() == hidden && weights.down.k() == ffn,
            "down is not the transposed shape of up"
        );
        match Operator::Mlp.resolve(backend)? {
            Backend::Native => Ok(Self { backend: Box::new(ComposedMlp::new(weights, activation)) }),
            other => Err(OpError::Unsupported {
                op: Operator::Mlp,
                backend: other,
                available: Operator::Mlp.backends(),
            }),
        }
    }

    /// `residual += mlp(x)`; both `[rows, hidden]`.
    ///
    /// # Panics
    /// Shapes differ.
    pub fn forward(&self, cx: &OpCx<'_>, x: ActRef<'_>, residual: ActMut<'_>) {
        self.backend.forward(cx, x, residual);
    }
}

/// One way to compute a feed-forward layer.
trait MlpBackend: Send + Sync {
    /// `residual += mlp(x)`.
    fn forward(&self, cx: &OpCx<'_>, x: ActRef<'_>, residual: ActMut<'_>);
}
