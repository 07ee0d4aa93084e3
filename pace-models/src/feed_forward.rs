//! The gated feed-forward layer's weights.

use pace_ops::{Mlp, MlpWeights, OpDType, OpShape, Operator};

use crate::ModelError;
use crate::arch::{LayerRole, Role};
use crate::tensor_loader::TensorLoader;

/// Loads the feed-forward layer of `layer`.
pub(crate) fn load(loader: &mut TensorLoader<'_>, layer: usize) -> Result<Mlp, ModelError> {
    let (hidden, ffn, biased) = (loader.spec.hidden, loader.spec.ffn, loader.spec.mlp_bias);
    let (formats, activation) = (loader.formats.layers[layer], loader.spec.activation);
    let role = |role: LayerRole| Role::Layer(layer, role);
    let shape = OpShape::mlp(OpDType::of_mlp(formats.up, formats.down), hidden, ffn, true);
    let (choice, up) = (loader.choose(shape)?, loader.pack_spec(shape, formats.up)?);
    let down = OpShape::matrix(Operator::Linear, formats.down.into(), hidden, ffn);
    let down = loader.build().pack_spec(down, choice, formats.down);
    let weights = MlpWeights {
        up: loader.matrix(&[role(LayerRole::Gate), role(LayerRole::Up)], hidden, up)?,
        down: loader.matrix(&[role(LayerRole::Down)], ffn, down)?,
        up_bias: loader.bias(biased, &[role(LayerRole::GateBias), role(LayerRole::UpBias)])?,
        down_bias: loader.bias(biased, &[role(LayerRole::DownBias)])?,
    };
    let mlp = Mlp::new(loader.build(), weights, activation, choice)?;
    Ok(loader.admit(mlp))
}
