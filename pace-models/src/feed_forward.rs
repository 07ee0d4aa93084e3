//! The gated feed-forward layer's weights.

use pace_ops::{Mlp, MlpWeights};

use crate::ModelError;
use crate::arch::{LayerRole, Role};
use crate::tensor_loader::TensorLoader;

/// Loads the feed-forward layer of `layer`.
pub(crate) fn load(loader: &TensorLoader<'_>, layer: usize) -> Result<Mlp, ModelError> {
    let spec = loader.spec;
    let role = |role: LayerRole| [Role::Layer(layer, role)];
    let weights = MlpWeights {
        gate: loader.matrix(&role(LayerRole::Gate), spec.hidden)?,
        up: loader.matrix(&role(LayerRole::Up), spec.hidden)?,
        down: loader.matrix(&role(LayerRole::Down), spec.ffn)?,
        gate_bias: loader.bias(spec.mlp_bias, &role(LayerRole::GateBias))?,
        up_bias: loader.bias(spec.mlp_bias, &role(LayerRole::UpBias))?,
        down_bias: loader.bias(spec.mlp_bias, &role(LayerRole::DownBias))?,
    };
    Ok(Mlp::new(weights, spec.activation, loader.options.operators.mlp)?)
}
