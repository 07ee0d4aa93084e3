//! [`OperatorConfig`]: which backend computes which operator.

use crate::{Backend, Operator};

/// One backend per operator of a decoder. The default is [`Backend::Auto`] everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperatorConfig {
    /// RMSNorm and LayerNorm.
    pub norm: Backend,
    /// Fused query, key and value projection.
    pub qkv_projection: Backend,
    /// Rotary position embedding.
    pub rope: Backend,
    /// Attention over the KV cache.
    pub attention: Backend,
    /// The attention's output projection.
    pub out_projection: Backend,
    /// The feed-forward layer.
    pub mlp: Backend,
    /// The projection to logits.
    pub lm_head: Backend,
}

impl OperatorConfig {
    /// `backend` for every operator.
    pub const fn all(backend: Backend) -> Self {
        Self {
            norm: backend,
            qkv_projection: backend,
            rope: backend,
            attention: backend,
            out_projection: backend,
            mlp: backend,
            lm_head: backend,
        }
    }

    /// The reference path for every operator: the default of AMD PACE.
    pub const fn native() -> Self {
        Self::all(Backend::Native)
    }

    /// The backend of an operator; `Auto` for those that have no key of their own.
    pub const fn get(&self, op: Operator) -> Backend {
        match op {
            Operator::Norm => self.norm,
            Operator::QkvProjection => self.qkv_projection,
            Operator::Rope => self.rope,
            Operator::Attention => self.attention,
            Operator::OutProjection => self.out_projection,
            Operator::Mlp => self.mlp,
            Operator::LmHead => self.lm_head,
            Operator::Linear => Backend::Auto,
        }
    }
}
