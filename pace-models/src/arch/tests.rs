use super::*;
use pace_kernels::Activation;

use crate::weights::TensorInfo;
use crate::{RopeScaling, RopeSpec};

fn spec() -> DecoderSpec {
    DecoderSpec {
        vocab_size: 11,
        hidden: 12,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 6,
        ffn: 20,
        max_positions: 32,
        norm_eps: 1e-5,
        activation: Activation::Silu,
        qkv_bias: false,
        out_bias: false,
        mlp_bias: false,
        tied_embeddings: true,
        rope: RopeSpec { theta: 10_000.0, scaling: RopeScaling::Default },
    }
}

/// A checkpoint that has shapes and no numbers.
struct Shapes(Naming, Vec<TensorInfo>);

impl WeightSource for Shapes {
    fn naming(&self) -> Naming {
        self.0
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.1
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.1.iter().find(|info| info.name == name)
    }

    fn path(&self, _: &str) -> &std::path::Path {
        std::path::Path::new("shapes.bin")
    }

    fn read_f32(&self, name: &str, _: usize, _: &mut [f32]) -> Result<(), ModelError> {
        Err(ModelError::tensor(self.path(name), name, "has no numbers"))
    }
}

fn shapes(naming: Naming, spec: &DecoderSpec) -> Shapes {
    let expected = Architecture::Llama.expected_tensors(naming, spec);
    let infos = expected.map(|(name, shape)| TensorInfo { name, shape, format: "F32".to_owned() });
    Shapes(naming, infos.collect())
}

#[test]
fn unpermuting_is_the_inverse_of_the_converter() {
    // The converter: reshape [heads, 2, d/2], swap the last two, flatten. Row by row, with the row's number as data.
    for (heads, d) in [(1, 2), (3, 4), (2, 6), (4, 64), (5, 128)] {
        let mut stored = vec![usize::MAX; heads * d];
        for head in 0..heads {
            for half in 0..2 {
                for p in 0..d / 2 {
                    stored[head * d + p * 2 + half] = head * d + half * (d / 2) + p;
                }
            }
        }
        let back: Vec<usize> = (0..heads * d).map(|row| stored[unpermute_row(row, d)]).collect();
        assert_eq!(back, (0..heads * d).collect::<Vec<_>>(), "{heads} heads of {d}");
    }
    assert_eq!([0, 1, 2, 3, 4, 5].map(|row| unpermute_row(row, 6)), [0, 2, 4, 1, 3, 5]);
    assert_eq!(unpermute_row(7, 6), 8);
}

#[test]
fn only_gguf_permutes() {
    for arch in Architecture::ALL {
        assert!(!arch.permuted_qk(Naming::Hf), "{}", arch.name());
    }
    assert!(Architecture::Llama.permuted_qk(Naming::Gguf));
}

#[test]
fn a_plain_tied_layer_has_the_known_names_and_shapes() {
    let spec = DecoderSpec { n_layers: 1, ..spec() };
    let named = |naming| Architecture::Llama.expected_tensors(naming, &spec).collect::<Vec<_>>();
    let owned =
        |names: [(&str, &[usize]); 11]| names.map(|(name, shape)| (name.to_owned(), shape.to_vec())).to_vec();
    let hf = owned([
        ("model.embed_tokens.weight", &[11, 12]),
        ("model.layers.0.input_layernorm.weight", &[12]),
        ("model.layers.0.self_attn.q_proj.weight", &[24, 12]),
        ("model.layers.0.self_attn.k_proj.weight", &[12, 12]),
        ("model.layers.0.self_attn.v_proj.weight", &[12, 12]),
        ("model.layers.0.self_attn.o_proj.weight", &[12, 24]),
        ("model.layers.0.post_attention_layernorm.weight", &[12]),
        ("model.layers.0.mlp.gate_proj.weight", &[20, 12]),
        ("model.layers.0.mlp.up_proj.weight", &[20, 12]),
        ("model.layers.0.mlp.down_proj.weight", &[12, 20]),
        ("model.norm.weight", &[12]),
    ]);
    assert_eq!(named(Naming::Hf), hf);
    let gguf = owned([
        ("token_embd.weight", &[11, 12]),
        ("blk.0.attn_norm.weight", &[12]),
        ("blk.0.attn_q.weight", &[24, 12]),
        ("blk.0.attn_k.weight", &[12, 12]),
        ("blk.0.attn_v.weight", &[12, 12]),
        ("blk.0.attn_output.weight", &[12, 24]),
        ("blk.0.ffn_norm.weight", &[12]),
        ("blk.0.ffn_gate.weight", &[20, 12]),
        ("blk.0.ffn_up.weight", &[20, 12]),
        ("blk.0.ffn_down.weight", &[12, 20]),
        ("output_norm.weight", &[12]),
    ]);
    assert_eq!(named(Naming::Gguf), gguf);
}

#[test]
fn biases_and_an_untied_head_are_expected_when_the_spec_says_so() {
    let full =
        DecoderSpec { qkv_bias: true, out_bias: true, mlp_bias: true, tied_embeddings: false, ..spec() };
    for naming in [Naming::Hf, Naming::Gguf] {
        let count = |spec: &DecoderSpec| Architecture::Llama.expected_tensors(naming, spec).count();
        assert_eq!(count(&spec()), 2 + 2 * 9);
        assert_eq!(count(&full), 3 + 2 * LayerRole::ALL.len());
        let mut names: Vec<_> = Architecture::Llama.expected_tensors(naming, &full).map(|t| t.0).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count(&full), "names are distinct");
    }
    let bias = |role| Architecture::Llama.tensor_name(Naming::Hf, Role::Layer(1, role));
    assert_eq!(bias(LayerRole::QBias), "model.layers.1.self_attn.q_proj.bias");
    assert_eq!(bias(LayerRole::DownBias), "model.layers.1.mlp.down_proj.bias");
    assert_eq!(tensor_shape(&full, Role::Layer(1, LayerRole::QBias)), [24]);
    assert_eq!(tensor_shape(&full, Role::Layer(1, LayerRole::KBias)), [12]);
    assert_eq!(tensor_shape(&full, Role::LmHead), [11, 12]);
}

#[test]
fn a_complete_checkpoint_passes_and_extra_tensors_are_allowed() {
    for naming in [Naming::Hf, Naming::Gguf] {
        let mut source = shapes(naming, &spec());
        source.1.push(TensorInfo { name: "extra".to_owned(), shape: vec![1], format: "F32".to_owned() });
        Architecture::Llama.validate_shapes(&source, &spec()).unwrap();
    }
}

#[test]
fn every_missing_or_misshapen_tensor_is_named() {
    let full =
        DecoderSpec { qkv_bias: true, out_bias: true, mlp_bias: true, tied_embeddings: false, ..spec() };
    for naming in [Naming::Hf, Naming::Gguf] {
        let count = shapes(naming, &full).1.len();
        for at in 0..count {
            let mut source = shapes(naming, &full);
            let gone = source.1.remove(at);
            let message = Architecture::Llama.validate_shapes(&source, &full).unwrap_err().to_string();
            let expected = format!("shapes.bin: tensor `{}`: is missing", gone.name);
            assert!(message.starts_with(&expected), "{message}");

            let mut source = shapes(naming, &full);
            source.1[at].shape[0] += 1;
            let message = Architecture::Llama.validate_shapes(&source, &full).unwrap_err().to_string();
            let expected =
                format!("{:?}, but the configuration asks for {:?}", source.1[at].shape, gone.shape);
            assert!(message.contains(&gone.name) && message.contains(&expected), "{message}");
            assert!(!message.contains("transposed"), "{message}");
        }
    }
    let mut source = shapes(Naming::Hf, &full);
    source.1[0].shape.reverse();
    let message = Architecture::Llama.validate_shapes(&source, &full).unwrap_err().to_string();
    assert!(
        message.ends_with("has shape [12, 11], but the configuration asks for [11, 12]; transposed?"),
        "{message}"
    );
}
