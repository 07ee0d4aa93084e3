//! One pre-norm decoder layer.

use pace_ops::{Mlp, Norm, OpCx, RopeAngles};

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
    pub(crate) fn load(loader: &TensorLoader<'_>, layer: usize) -> Result<Self, ModelError> {
        let norm = |role: LayerRole| -> Result<Norm, ModelError> {
            let weight = loader.vector(&[Role::Layer(layer, role)])?;
            Ok(Norm::rms(weight, loader.spec.norm_eps, loader.options.operators.norm)?)
        };
        Ok(Self {
            attention_norm: norm(LayerRole::AttnNorm)?,
            attention: SelfAttention::load(loader, layer)?,
            ffn_norm: norm(LayerRole::FfnNorm)?,
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
