//! The words for *what* is computed ([`Operator`]) and *how* ([`Backend`]), shared by configuration, command
//! line, logs and benches.

use std::fmt;
use std::str::FromStr;

use pace_kernels::{DType, KvDType, WeightFormat};
use serde::{Deserialize, Serialize};

use crate::OpError;

/// How an operator is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// The best backend that the operator has.
    #[default]
    Auto,
    /// The plain reference path on well-kept libraries; always available, on any CPU.
    Native,
    /// Blocked weights and hand-written BRGEMM tiles with fused epilogues.
    Tpp,
    /// Microkernels generated at run time for the exact shape.
    Jit,
    /// The MLP chunk by chunk of its intermediate dimension.
    Imbps,
    /// Tiled online-softmax attention.
    Flash,
}

impl Backend {
    /// Every backend, `Auto` first.
    pub const ALL: [Self; 6] = [Self::Auto, Self::Native, Self::Tpp, Self::Jit, Self::Imbps, Self::Flash];

    /// The name used everywhere: lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Tpp => "tpp",
            Self::Jit => "jit",
            Self::Imbps => "imbps",
            Self::Flash => "flash",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Backend {
    type Err = UnknownName;

    /// A name in any case, alone or as AMD PACE's `LLMBackendType.TPP`.
    fn from_str(s: &str) -> Result<Self, UnknownName> {
        let lower = s.to_ascii_lowercase();
        let name = lower.strip_prefix("llmbackendtype.").unwrap_or(&lower);
        Self::ALL
            .into_iter()
            .find(|b| b.name() == name)
            .ok_or_else(|| UnknownName::new(s, &Self::ALL.map(Self::name)))
    }
}

/// A backend or operator name that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is none of: {known}{}", .nearest.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
pub struct UnknownName {
    /// What was given.
    pub found: String,
    /// What would be right.
    pub known: String,
    /// The one of them that looks most like what was given.
    pub nearest: Option<&'static str>,
}

impl UnknownName {
    pub(crate) fn new(found: &str, known: &[&'static str]) -> Self {
        let lower = found.to_ascii_lowercase();
        // AMD PACE's prefixes are no part of the name.
        let lower = lower.rsplit_once('.').map_or(lower.as_str(), |(_, name)| name);
        // The first knows abbreviations (attn), the second letters that changed places in short names (mpl).
        let likeness = |name: &str| {
            strsim::jaro_winkler(lower, name).max(strsim::normalized_damerau_levenshtein(lower, name))
        };
        let nearest = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        Self {
            found: found.to_owned(),
            known: known.join(", "),
            nearest: nearest.filter(|name| likeness(name) > 0.65),
        }
    }
}

/// What is computed: the operators that a decoder runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operator {
    /// RMSNorm or LayerNorm.
    Norm,
    /// Query, key and value projection in one, RoPE applied on the way.
    QkvProjection,
    /// Rotary position embedding.
    Rope,
    /// Softmax attention over the KV cache.
    Attention,
    /// The attention's output projection with the residual added.
    OutProjection,
    /// The feed-forward layer.
    Mlp,
    /// The projection to logits.
    LmHead,
    /// A projection by itself.
    Linear,
}

impl Operator {
    /// Every operator.
    pub const ALL: [Self; 8] = [
        Self::Norm,
        Self::QkvProjection,
        Self::Rope,
        Self::Attention,
        Self::OutProjection,
        Self::Mlp,
        Self::LmHead,
        Self::Linear,
    ];

    /// The name used everywhere: lower case with underscores.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Norm => "norm",
            Self::QkvProjection => "qkv_projection",
            Self::Rope => "rope",
            Self::Attention => "attention",
            Self::OutProjection => "out_projection",
            Self::Mlp => "mlp",
            Self::LmHead => "lm_head",
            Self::Linear => "linear",
        }
    }

    /// The backends that exist for this operator, whatever the type: the reference first.
    pub const fn backends(self) -> &'static [Backend] {
        match self {
            Self::Norm | Self::Rope => &[Backend::Native, Backend::Tpp],
            Self::QkvProjection | Self::OutProjection | Self::LmHead | Self::Linear => {
                &[Backend::Native, Backend::Tpp, Backend::Jit]
            }
            Self::Mlp => &[Backend::Native, Backend::Tpp, Backend::Jit, Backend::Imbps],
            Self::Attention => &[Backend::Native, Backend::Jit, Backend::Flash],
        }
    }

    /// Whether this operator has a backend at all, for some type and CPU; `Auto` always is one.
    ///
    /// # Errors
    /// [`OpError::Unsupported`], which lists what exists: nothing falls back in silence.
    pub fn require(self, backend: Backend) -> Result<(), OpError> {
        if backend == Backend::Auto || self.backends().contains(&backend) {
            return Ok(());
        }
        Err(OpError::Unsupported { op: self, backend, available: self.backends() })
    }

    /// The types that a backend of this operator computes; none if there is no such backend.
    pub const fn dtypes(self, backend: Backend) -> &'static [OpDType] {
        match (self, backend) {
            (Self::Norm | Self::Rope, Backend::Native | Backend::Tpp) => &[OpDType::F32, OpDType::Bf16],
            (Self::Attention, Backend::Native | Backend::Flash) => {
                &[OpDType::F32, OpDType::Bf16, OpDType::Int8]
            }
            (Self::Attention, Backend::Jit) => &[OpDType::Bf16, OpDType::Int8],
            (Self::Attention | Self::Norm | Self::Rope, _) => &[],
            (_, Backend::Native | Backend::Tpp) | (Self::Mlp, Backend::Imbps) => &OpDType::ALL,
            (_, Backend::Jit) => &[OpDType::Bf16, OpDType::Int8],
            (_, Backend::Auto | Backend::Imbps | Backend::Flash) => &[],
        }
    }
}

/// The type that decides which backends an operator has: that of its weights; for attention that of the cached keys
/// and values, for norms and RoPE that of the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpDType {
    /// f32 throughout.
    F32,
    /// Stored as bf16, summed in f32.
    Bf16,
    /// Int8 weights, activations rounded to int8 on the way, exact sums in i32; int8 keys and values, computed as bf16.
    Int8,
    /// As `Int8`, with weights of 4 bits, or of 8 bits with a minimum for each group, or a feed-forward layer of two types.
    Int4,
}

impl OpDType {
    /// Every type.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Int4];

    /// The name used everywhere: lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// What weights of the type are called where their format is chosen, or the type itself.
    pub const fn weights(self) -> &'static str {
        match self {
            Self::F32 | Self::Bf16 | Self::Int8 => self.name(),
            Self::Int4 => "int4, int8m, mxfp4 or mixed weights",
        }
    }
}

impl OpDType {
    /// The type of a feed-forward layer whose matrices may differ in format: one that has no more backends than either.
    pub fn of_mlp(up: WeightFormat, down: WeightFormat) -> Self {
        let (up, down) = (Self::from(up), Self::from(down));
        if up == down { up } else { Self::Int4 }
    }

    /// Whether weights are integers.
    pub const fn is_quantised(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }

    /// The type of the activations that go with it.
    pub const fn activations(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 | Self::Int8 | Self::Int4 => DType::Bf16,
        }
    }

    /// The type of cached keys and values that it stands for in an attention's shape, which has none of 4 bits.
    pub(crate) const fn kv(self) -> KvDType {
        match self {
            Self::F32 => KvDType::F32,
            Self::Bf16 => KvDType::Bf16,
            Self::Int8 | Self::Int4 => KvDType::Int8,
        }
    }
}

impl fmt::Display for OpDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl From<WeightFormat> for OpDType {
    fn from(format: WeightFormat) -> Self {
        match format {
            // Widened before use.
            WeightFormat::F32 | WeightFormat::F16 => Self::F32,
            WeightFormat::Bf16 => Self::Bf16,
            WeightFormat::Int8
            | WeightFormat::Int8Rotated
            | WeightFormat::Int8RotatedGroup
            | WeightFormat::Int8Group(_) => Self::Int8,
            WeightFormat::Int8Min(_)
            | WeightFormat::Int4(_)
            | WeightFormat::Int4Min(_)
            | WeightFormat::Mxfp4 => Self::Int4,
        }
    }
}

impl From<DType> for OpDType {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::F32,
            DType::F16 | DType::Bf16 => Self::Bf16,
        }
    }
}

impl From<KvDType> for OpDType {
    fn from(dtype: KvDType) -> Self {
        match dtype {
            KvDType::F32 => Self::F32,
            KvDType::Bf16 => Self::Bf16,
            KvDType::Int8 => Self::Int8,
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_in_any_case() {
        for b in Backend::ALL {
            assert_eq!(b.name().parse::<Backend>().unwrap(), b);
            assert_eq!(b.name().to_uppercase().parse::<Backend>().unwrap(), b);
        }
        assert_eq!("LLMBackendType.TPP".parse::<Backend>().unwrap(), Backend::Tpp);
        let err = "tp".parse::<Backend>().unwrap_err();
        assert!(err.to_string().contains("native") && err.nearest == Some("tpp"), "{err}");
        assert_eq!("LLMBackendType.TTP".parse::<Backend>().unwrap_err().nearest, Some("tpp"));
        assert_eq!("zz".parse::<Backend>().unwrap_err().nearest, None);
    }

    #[test]
    fn a_backend_exists_where_it_has_types() {
        for op in Operator::ALL {
            for backend in Backend::ALL {
                assert_eq!(
                    op.backends().contains(&backend),
                    !op.dtypes(backend).is_empty(),
                    "{op} {backend}"
                );
            }
        }
    }
}
