//! One pre-norm decoder layer.

use pace_ops::{Mlp, Norm, OpCx, OpShape, Operator, RopeAngles};

use crate::arch::{LayerRole, Role};
use crate::batch::{Sequence, Workspace};
use crate::self_attention::SelfAttention;
use crate::tensor_loader::TensorLoader;
use crate::{ModelError, feed_forward};

pub(crate) struct Layer {
    attention_norm: Norm,
    attention: SelfAttention,
    ffn_norm: Norm,
    ffn: Mlp,
}

impl Layer {
    pub(crate) fn load(loader: &mut TensorLoader<'_>, layer: usize) -> Result<Self, ModelError> {
        Ok(Self {
            attention_norm: load_norm(loader, Role::Layer(layer, LayerRole::AttnNorm))?,
            attention: SelfAttention::load(loader, layer)?,
            ffn_norm: load_norm(loader, Role::Layer(layer, LayerRole::FfnNorm))?,
            ffn: feed_forward::load(loader, layer)?,
        })
    }

    /// Advances the residual stream `ws.x` by this layer.
    pub(crate) fn forward(
        &self,
        cx: &OpCx<'_>,
        layer: usize,
        ws: &mut Workspace,
        angles: &RopeAngles<'_>,
        batch: &mut [Sequence],
    ) {
        let rows = angles.tokens();
        self.attention_norm.forward(cx, ws.x.rows(rows), ws.normed.rows_mut(rows));
        self.attention.forward(cx, layer, ws, angles, batch);
        self.ffn_norm.forward(cx, ws.x.rows(rows), ws.normed.rows_mut(rows));
        self.ffn.forward(cx, ws.normed.rows(rows), ws.x.rows_mut(rows));
    }
}

/// Loads the norm whose weights are `role`.
pub(crate) fn load_norm(loader: &mut TensorLoader<'_>, role: Role) -> Result<Norm, ModelError> {
    let (weight, activations) = (loader.vector(&[role])?, loader.options.activations);
    let choice = loader.choose(OpShape::row(Operator::Norm, activations.into(), weight.len()))?;
    let norm = Norm::rms(loader.build(), weight, loader.spec.norm_eps, activations, choice)?;
    Ok(loader.admit(norm))
}
