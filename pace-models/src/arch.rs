//! Architectures: from a configuration to a [`DecoderSpec`], and from a tensor's part in the decoder to its name
//! and shape in a checkpoint.
//!
//! A new architecture is a file beside `arch/llama.rs` and an arm in each `match` here.

mod llama;
mod names;
mod rope;

use crate::config::HfConfig;
use crate::weights::gguf::Metadata;
use crate::weights::{Naming, WeightSource};
use crate::{DecoderSpec, ModelError};

pub use names::{LayerRole, Role, tensor_shape};

/// A family of decoders that this crate can build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 1 to 3.2 and what is built the same way (SmolLM, TinyLlama, Yi).
    Llama,
}

impl Architecture {
    /// Every architecture.
    pub const ALL: [Self; 1] = [Self::Llama];

    /// The name in `model_type` (HF) and in `general.architecture` (GGUF).
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
        }
    }

    /// The architecture that `config.json` names in `model_type`.
    ///
    /// # Errors
    /// The field is missing, not a string, or names an architecture that is not in [`ALL`](Self::ALL).
    pub fn from_hf(config: &HfConfig) -> Result<Self, ModelError> {
        Self::find(config.path(), config.root().require_str("model_type")?)
    }

    /// The architecture that GGUF metadata names in `general.architecture`.
    ///
    /// # Errors
    /// The key is missing, not a string, or names an architecture that is not in [`ALL`](Self::ALL).
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, ModelError> {
        Self::find(metadata.path(), metadata.require_str("general.architecture")?)
    }

    /// Reads the shape of the decoder from `config.json`.
    ///
    /// # Errors
    /// A field is missing, out of range, contradicts another, or asks for something that is not supported.
    pub fn spec_from_hf(self, config: &HfConfig) -> Result<DecoderSpec, ModelError> {
        match self {
            Self::Llama => llama::spec_from_hf(config),
        }
    }

    /// Reads the shape of the decoder from GGUF metadata, and what GGUF leaves to the tensors from `source`:
    /// the size of the vocabulary, which biases exist, whether the LM head is tied, and RoPE factors.
    ///
    /// # Errors
    /// A key is missing, out of range, contradicts another, or asks for something that is not supported.
    pub fn spec_from_gguf(
        self,
        metadata: &Metadata,
        source: &dyn WeightSource,
    ) -> Result<DecoderSpec, ModelError> {
        match self {
            Self::Llama => llama::spec_from_gguf(metadata, source),
        }
    }

    /// The name of the tensor that plays `role`.
    pub fn tensor_name(self, naming: Naming, role: Role) -> String {
        match (self, naming) {
            (Self::Llama, Naming::Hf) => names::hf(role),
            (Self::Llama, Naming::Gguf) => names::gguf(role),
        }
    }

    /// Whether the rows of the query and key projections (weights and biases) are permuted, so that RoPE's pairs
    /// are neighbours: llama.cpp's converter does that to Llama models. [`unpermute_row`] puts them back.
    pub fn permuted_qk(self, naming: Naming) -> bool {
        match self {
            Self::Llama => naming == Naming::Gguf,
        }
    }

    /// Every tensor that a decoder of this shape reads, by name and row-major shape.
    pub fn expected_tensors(
        self,
        naming: Naming,
        spec: &DecoderSpec,
    ) -> impl Iterator<Item = (String, Vec<usize>)> {
        names::roles(spec).map(move |role| (self.tensor_name(naming, role), tensor_shape(spec, role)))
    }

    /// Tensors beside the [expected](Self::expected_tensors) ones that [`spec_from_gguf`](Self::spec_from_gguf) reads,
    /// where there are any: a model that is stored elsewhere needs them, too.
    pub const fn spec_tensors(self, naming: Naming) -> &'static [&'static str] {
        match (self, naming) {
            (Self::Llama, Naming::Gguf) => &[rope::FACTORS],
            (Self::Llama, Naming::Hf) => &[],
        }
    }

    /// Checks, before anything is read, that `source` holds every expected tensor in its shape. Tensors that the
    /// decoder does not read are allowed, as in transformers.
    ///
    /// # Errors
    /// The first tensor that is missing or has another shape.
    pub fn validate_shapes(self, source: &dyn WeightSource, spec: &DecoderSpec) -> Result<(), ModelError> {
        for (name, shape) in self.expected_tensors(source.naming(), spec) {
            let fail = |what| Err(ModelError::tensor(source.path(&name), name.as_str(), what));
            let Some(info) = source.info(&name) else {
                return fail(format!("is missing; the configuration asks for it with shape {shape:?}"));
            };
            if info.shape == shape {
                continue;
            }
            let transposed = info.shape.iter().eq(shape.iter().rev());
            let hint = if transposed { "; transposed?" } else { "" };
            return fail(format!(
                "has shape {:?}, but the configuration asks for {shape:?}{hint}",
                info.shape
            ));
        }
        Ok(())
    }

    fn find(path: &std::path::Path, name: &str) -> Result<Self, ModelError> {
        Self::ALL.into_iter().find(|arch| arch.name() == name).ok_or_else(|| {
            ModelError::UnknownArchitecture {
                path: path.to_path_buf(),
                found: crate::file::clip(name),
                known: Self::ALL.map(Self::name).join(", "),
            }
        })
    }
}

/// Where row `row` of a query or key projection (in the order of HF checkpoints) lies in a GGUF file whose rows
/// are [permuted](Architecture::permuted_qk). Row p + s * d/2 of a head, half s, is stored as row 2p + s, so that
/// the two members of a RoPE pair are neighbours. `head_dim` d is even.
pub fn unpermute_row(row: usize, head_dim: usize) -> usize {
    let half = head_dim / 2;
    let (head, within) = (row / head_dim, row % head_dim);
    head * head_dim + 2 * (within % half) + within / half
}

#[cfg(test)]
mod tests;
