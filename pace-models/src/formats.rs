//! [`ModelFormats`]: in which format each matrix of a model is kept, and what operators that makes, known before any weight
//! is read.

use std::collections::BTreeMap;

use pace_kernels::{DType, KvDType, WeightFormat};
use pace_ops::{OpDType, OpShape, Operator};

use crate::arch::{Architecture, LayerRole, Role};
use crate::self_attention::attention_shape;
use crate::weights::{WeightSource, codes};
use crate::{DecoderSpec, LoadOptions};

/// In which format each matrix of a model is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFormats {
    /// The embedding; none: that of the LM head, which is the same matrix.
    pub embedding: Option<WeightFormat>,
    /// The LM head.
    pub lm_head: WeightFormat,
    /// Each layer, front to back.
    pub layers: Vec<LayerFormats>,
}

/// In which format each matrix of a layer is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerFormats {
    /// Query, key and value projection.
    pub qkv: WeightFormat,
    /// The attention's output projection.
    pub out: WeightFormat,
    /// Gate and up projection.
    pub up: WeightFormat,
    /// Down projection.
    pub down: WeightFormat,
}

impl ModelFormats {
    /// What the options make of a model in `source`.
    pub fn new(
        source: &dyn WeightSource,
        arch: Architecture,
        spec: &DecoderSpec,
        options: &LoadOptions,
    ) -> Self {
        let of = |roles: &[Role], format| own_format(source, arch, options, roles).unwrap_or(format);
        let layer = |i| {
            let of = |roles: &[LayerRole]| {
                let roles: Vec<Role> = roles.iter().map(|&role| Role::Layer(i, role)).collect();
                of(&roles, options.weights)
            };
            LayerFormats {
                qkv: of(&[LayerRole::Q, LayerRole::K, LayerRole::V]),
                out: of(&[LayerRole::O]),
                up: of(&[LayerRole::Gate, LayerRole::Up]),
                down: of(&[LayerRole::Down]),
            }
        };
        let head = options.lm_head.unwrap_or(options.weights);
        Self {
            embedding: (!spec.tied_embeddings).then(|| of(&[Role::Embedding], head)),
            lm_head: of(&[if spec.tied_embeddings { Role::Embedding } else { Role::LmHead }], head),
            layers: (0..spec.n_layers).map(layer).collect(),
        }
    }

    /// Bytes of the packed weights of a model, norms and biases in f32 included.
    pub fn bytes(&self, spec: &DecoderSpec) -> usize {
        let matrices: usize = self.matrices(spec).map(|(format, weights)| format.bytes(weights)).sum();
        matrices + spec.vector_parameters() * size_of::<f32>()
    }

    /// Bytes of the matrices of all decoder layers, and of the LM head.
    pub fn forward_bytes(&self, spec: &DecoderSpec) -> (usize, usize) {
        let head = self.lm_head.bytes(spec.vocab_size * spec.hidden);
        let embedding = self.embedding.map_or(0, |format| format.bytes(spec.vocab_size * spec.hidden));
        (self.bytes(spec) - spec.vector_parameters() * size_of::<f32>() - head - embedding, head)
    }

    /// The formats by the number of weights in them, most first.
    pub fn shares(&self, spec: &DecoderSpec) -> Vec<(WeightFormat, usize)> {
        let mut shares = BTreeMap::<String, (WeightFormat, usize)>::new();
        for (format, weights) in self.matrices(spec) {
            shares.entry(format.to_string()).or_insert((format, 0)).1 += weights;
        }
        let mut shares: Vec<_> = shares.into_values().collect();
        shares.sort_by_key(|&(_, weights)| std::cmp::Reverse(weights));
        shares
    }

    /// The distinct shapes of the operators that [`Decoder::load`](crate::Decoder::load) builds, in the order of a
    /// forward, for activations and cached keys and values of these types.
    pub fn operator_shapes(&self, spec: &DecoderSpec, activations: DType, kv: KvDType) -> Vec<OpShape> {
        let activations = OpDType::from(activations);
        let q_cols = spec.n_heads * spec.head_dim;
        let qkv_cols = q_cols + 2 * spec.n_kv_heads * spec.head_dim;
        let mut shapes = vec![
            OpShape::row(Operator::Norm, activations, spec.hidden),
            OpShape::row(Operator::Rope, activations, spec.head_dim),
            attention_shape(spec).op_shape(kv),
        ];
        for layer in &self.layers {
            let [qkv, out] = [layer.qkv, layer.out].map(OpDType::from);
            shapes.extend([
                OpShape::matrix(Operator::QkvProjection, qkv, qkv_cols, spec.hidden),
                OpShape::matrix(Operator::OutProjection, out, spec.hidden, q_cols),
                OpShape::mlp(OpDType::of_mlp(layer.up, layer.down), spec.hidden, spec.ffn, true),
            ]);
        }
        shapes.push(OpShape::matrix(Operator::LmHead, self.lm_head.into(), spec.vocab_size, spec.hidden));
        let mut seen = std::collections::HashSet::new();
        shapes.retain(|&shape| seen.insert(shape));
        shapes.sort_by_key(|shape| Operator::ALL.iter().position(|&op| op == shape.op));
        shapes
    }

    /// Each matrix: its format and the number of its weights.
    fn matrices(&self, spec: &DecoderSpec) -> impl Iterator<Item = (WeightFormat, usize)> {
        let (hidden, q) = (spec.hidden, spec.n_heads * spec.head_dim);
        let (vocabulary, qkv) =
            (spec.vocab_size * hidden, (q + 2 * spec.n_kv_heads * spec.head_dim) * hidden);
        let (out, ffn) = (q * hidden, spec.ffn * hidden);
        let layers = self.layers.iter().flat_map(move |layer| {
            [(layer.qkv, qkv), (layer.out, out), (layer.up, 2 * ffn), (layer.down, ffn)]
        });
        self.embedding.into_iter().chain([self.lm_head]).map(move |format| (format, vocabulary)).chain(layers)
    }
}

/// The format that holds the tensors of `roles` as the files have them, if the options want that and there is one; of a
/// packed model, the one that it has.
fn own_format(
    source: &dyn WeightSource,
    arch: Architecture,
    options: &LoadOptions,
    roles: &[Role],
) -> Option<WeightFormat> {
    let name = |role: &Role| arch.tensor_name(source.naming(), *role);
    if let Some(packed) = source.packed() {
        let names: Vec<String> = roles.iter().map(name).collect();
        return packed.format(&names.iter().map(String::as_str).collect::<Vec<_>>());
    }
    if !options.own_formats {
        return None;
    }
    joined_codes(source, roles.iter().map(name))
}

/// The format that holds the matrices called `names`, one below the other, as the files have them; none if there is no such
/// format, or they have their inputs in different orders.
pub(crate) fn joined_codes(
    source: &dyn WeightSource,
    mut names: impl Iterator<Item = impl AsRef<str>>,
) -> Option<WeightFormat> {
    let first = names.next()?;
    let order = source.input_order(first.as_ref());
    names.try_fold(source.codes(first.as_ref())?, |joined, name| {
        let own = source.codes(name.as_ref())?;
        codes::join(joined, own).filter(|_| source.input_order(name.as_ref()) == order)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use pace_kernels::{Kernels, Par};

    use super::*;
    use crate::weights::random::{RandomSource, random_spec};
    use crate::{Decoder, Model};

    #[test]
    fn they_are_the_shapes_and_the_bytes_that_a_decoder_is_built_of() {
        let spec = random_spec("tiny").unwrap();
        let source = RandomSource::new(&spec, 1);
        for (weights, lm_head, activations, kv) in [
            (WeightFormat::F32, None, DType::F32, KvDType::F32),
            (WeightFormat::Bf16, None, DType::Bf16, KvDType::Bf16),
            (WeightFormat::Bf16, None, DType::Bf16, KvDType::F32),
            (WeightFormat::Int8Group(64), None, DType::Bf16, KvDType::Int8),
            (WeightFormat::Int4(32), Some(WeightFormat::Int8), DType::Bf16, KvDType::Bf16),
        ] {
            let options = LoadOptions { kv, lm_head, ..LoadOptions::new(weights, activations) };
            let (arch, kernels) = (Architecture::Llama, Kernels::detect());
            let formats = ModelFormats::new(&source, arch, &spec, &options);
            let model = Decoder::load(&source, arch, &spec, options, kernels, Par::seq(), &|_| {}).unwrap();
            let shapes = formats.operator_shapes(&spec, activations, kv);
            let built: HashSet<OpShape> = model.selection().chosen().iter().map(|c| c.shape).collect();
            assert_eq!(shapes.iter().copied().collect::<HashSet<_>>(), built);
            assert_eq!(shapes.len(), built.len());
            assert_eq!(model.weights().bytes, formats.bytes(&spec));
            assert_eq!(formats.lm_head, lm_head.unwrap_or(weights));
            let weights: usize = formats.shares(&spec).iter().map(|share| share.1).sum();
            assert_eq!(weights + spec.vector_parameters(), spec.parameters());
        }
    }
}
