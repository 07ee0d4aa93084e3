//! What each tensor of a decoder is for, what it is called and how it is shaped.

use crate::DecoderSpec;

/// The part that a tensor plays in a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Token embedding.
    Embedding,
    /// Norm after the last layer.
    FinalNorm,
    /// Projection to logits; absent where the embedding is tied to it.
    LmHead,
    /// A part of the layer with this index, counted from 0.
    Layer(usize, LayerRole),
}

/// The part that a tensor plays in one decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerRole {
    /// Norm before attention.
    AttnNorm,
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Bias of the query projection.
    QBias,
    /// Bias of the key projection.
    KBias,
    /// Bias of the value projection.
    VBias,
    /// Output projection of attention.
    O,
    /// Bias of the output projection.
    OBias,
    /// Norm before the feed-forward layer.
    FfnNorm,
    /// Gate projection, the one that is activated.
    Gate,
    /// Up projection.
    Up,
    /// Down projection.
    Down,
    /// Bias of the gate projection.
    GateBias,
    /// Bias of the up projection.
    UpBias,
    /// Bias of the down projection.
    DownBias,
}

impl LayerRole {
    /// Every part of a layer.
    pub const ALL: [Self; 16] = [
        Self::AttnNorm,
        Self::Q,
        Self::K,
        Self::V,
        Self::QBias,
        Self::KBias,
        Self::VBias,
        Self::O,
        Self::OBias,
        Self::FfnNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::GateBias,
        Self::UpBias,
        Self::DownBias,
    ];

    /// Whether a decoder of this shape has the tensor.
    fn exists(self, spec: &DecoderSpec) -> bool {
        match self {
            Self::QBias | Self::KBias | Self::VBias => spec.qkv_bias,
            Self::OBias => spec.out_bias,
            Self::GateBias | Self::UpBias | Self::DownBias => spec.mlp_bias,
            Self::AttnNorm | Self::Q | Self::K | Self::V | Self::O => true,
            Self::FfnNorm | Self::Gate | Self::Up | Self::Down => true,
        }
    }
}

/// The row-major shape of the tensor that plays `role`: `[out, in]` for a projection, `[n]` for a vector.
pub fn tensor_shape(spec: &DecoderSpec, role: Role) -> Vec<usize> {
    let (q, kv) = (spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim);
    match role {
        Role::Embedding | Role::LmHead => vec![spec.vocab_size, spec.hidden],
        Role::FinalNorm => vec![spec.hidden],
        Role::Layer(_, role) => match role {
            LayerRole::AttnNorm | LayerRole::FfnNorm => vec![spec.hidden],
            LayerRole::Q => vec![q, spec.hidden],
            LayerRole::K | LayerRole::V => vec![kv, spec.hidden],
            LayerRole::QBias => vec![q],
            LayerRole::KBias | LayerRole::VBias => vec![kv],
            LayerRole::O => vec![spec.hidden, q],
            LayerRole::OBias | LayerRole::DownBias => vec![spec.hidden],
            LayerRole::Gate | LayerRole::Up => vec![spec.ffn, spec.hidden],
            LayerRole::GateBias | LayerRole::UpBias => vec![spec.ffn],
            LayerRole::Down => vec![spec.hidden, spec.ffn],
        },
    }
}

/// Every role that a decoder of this shape has, in the order of a forward pass.
pub(super) fn roles(spec: &DecoderSpec) -> impl Iterator<Item = Role> {
    let in_layer = move |layer| {
        let present = LayerRole::ALL.into_iter().filter(|role| role.exists(spec));
        present.map(move |role| Role::Layer(layer, role))
    };
    let head = (!spec.tied_embeddings).then_some(Role::LmHead);
    std::iter::once(Role::Embedding)
        .chain((0..spec.n_layers).flat_map(in_layer))
        .chain([Role::FinalNorm])
        .chain(head)
}

/// The name in an HF checkpoint of the Llama family.
pub(super) fn hf(role: Role) -> String {
    let (layer, role) = match role {
        Role::Embedding => return "model.embed_tokens.weight".to_owned(),
        Role::FinalNorm => return "model.norm.weight".to_owned(),
        Role::LmHead => return "lm_head.weight".to_owned(),
        Role::Layer(layer, role) => (layer, role),
    };
    let part = match role {
        LayerRole::AttnNorm => "input_layernorm.weight",
        LayerRole::Q => "self_attn.q_proj.weight",
        LayerRole::K => "self_attn.k_proj.weight",
        LayerRole::V => "self_attn.v_proj.weight",
        LayerRole::QBias => "self_attn.q_proj.bias",
        LayerRole::KBias => "self_attn.k_proj.bias",
        LayerRole::VBias => "self_attn.v_proj.bias",
        LayerRole::O => "self_attn.o_proj.weight",
        LayerRole::OBias => "self_attn.o_proj.bias",
        LayerRole::FfnNorm => "post_attention_layernorm.weight",
        LayerRole::Gate => "mlp.gate_proj.weight",
        LayerRole::Up => "mlp.up_proj.weight",
        LayerRole::Down => "mlp.down_proj.weight",
        LayerRole::GateBias => "mlp.gate_proj.bias",
        LayerRole::UpBias => "mlp.up_proj.bias",
        LayerRole::DownBias => "mlp.down_proj.bias",
    };
    format!("model.layers.{layer}.{part}")
}

/// The name in a GGUF file.
pub(super) fn gguf(role: Role) -> String {
    let (layer, role) = match role {
        Role::Embedding => return "token_embd.weight".to_owned(),
        Role::FinalNorm => return "output_norm.weight".to_owned(),
        Role::LmHead => return "output.weight".to_owned(),
        Role::Layer(layer, role) => (layer, role),
    };
    let part = match role {
        LayerRole::AttnNorm => "attn_norm.weight",
        LayerRole::Q => "attn_q.weight",
        LayerRole::K => "attn_k.weight",
        LayerRole::V => "attn_v.weight",
        LayerRole::QBias => "attn_q.bias",
        LayerRole::KBias => "attn_k.bias",
        LayerRole::VBias => "attn_v.bias",
        LayerRole::O => "attn_output.weight",
        LayerRole::OBias => "attn_output.bias",
        LayerRole::FfnNorm => "ffn_norm.weight",
        LayerRole::Gate => "ffn_gate.weight",
        LayerRole::Up => "ffn_up.weight",
        LayerRole::Down => "ffn_down.weight",
        LayerRole::GateBias => "ffn_gate.bias",
        LayerRole::UpBias => "ffn_up.bias",
        LayerRole::DownBias => "ffn_down.bias",
    };
    format!("blk.{layer}.{part}")
}
