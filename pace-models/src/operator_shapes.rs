//! Which operators a model is built of, known before any weight is read.

use pace_kernels::{DType, KvDType, WeightFormat};
use pace_ops::{OpDType, OpShape, Operator};

use crate::DecoderSpec;
use crate::self_attention::attention_shape;

impl DecoderSpec {
    /// The distinct shapes of the operators that [`Decoder::load`](crate::Decoder::load) builds, in the order of a
    /// forward: for matrices in `weights`, activations in f32 or bf16, cached keys and values in `kv`.
    pub fn operator_shapes(&self, weights: WeightFormat, activations: DType, kv: KvDType) -> Vec<OpShape> {
        let (weights, activations) = (OpDType::from(weights), OpDType::from(activations));
        let q_cols = self.n_heads * self.head_dim;
        let qkv_cols = q_cols + 2 * self.n_kv_heads * self.head_dim;
        vec![
            OpShape::row(Operator::Norm, activations, self.hidden),
            OpShape::matrix(Operator::QkvProjection, weights, qkv_cols, self.hidden),
            OpShape::row(Operator::Rope, activations, self.head_dim),
            attention_shape(self).op_shape(kv),
            OpShape::matrix(Operator::OutProjection, weights, self.hidden, q_cols),
            OpShape::mlp(weights, self.hidden, self.ffn, true),
            OpShape::matrix(Operator::LmHead, weights, self.vocab_size, self.hidden),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use pace_kernels::{Kernels, Par};

    use super::*;
    use crate::weights::random::{RandomSource, random_spec};
    use crate::{Architecture, Decoder, LoadOptions, Model};

    #[test]
    fn they_are_the_shapes_that_a_decoder_is_built_of() {
        let spec = random_spec("tiny").unwrap();
        let source = RandomSource::new(&spec, 1);
        for (weights, activations, kv) in [
            (WeightFormat::F32, DType::F32, KvDType::F32),
            (WeightFormat::Bf16, DType::Bf16, KvDType::Bf16),
            (WeightFormat::Bf16, DType::Bf16, KvDType::F32),
            (WeightFormat::F32, DType::F32, KvDType::Int8),
        ] {
            let options = LoadOptions { kv, ..LoadOptions::new(weights, activations) };
            let (arch, kernels) = (Architecture::Llama, Kernels::detect());
            let model = Decoder::load(&source, arch, &spec, options, kernels, Par::seq(), &|_| {}).unwrap();
            let shapes = spec.operator_shapes(weights, activations, kv);
            let built: HashSet<OpShape> = model.selection().chosen().iter().map(|c| c.shape).collect();
            assert_eq!(shapes.iter().copied().collect::<HashSet<_>>(), built);
            assert_eq!(shapes.len(), built.len());
        }
    }
}
