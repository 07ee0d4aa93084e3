//! [`Manifest`]: what `pace.json` says of a packed model.

use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use pace_kernels::{PackSpec, PackedWeights, WeightFormat, WeightLayout};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use super::{MAX_SIDE, checksum};
use crate::ModelError;
use crate::file::{clip, read_bytes};

/// Largest manifest that is read, in bytes; that of a model of 128 layers has some 300 kB.
const MAX_BYTES: u64 = 8 << 20;

/// The manifest of a packed model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// [`PackedWeights::LAYOUT_VERSION`] of the program that packed.
    pub layout: u32,
    /// The version of that program.
    pub version: String,
    /// The instruction sets that it used. For the record: layouts do not depend on them.
    pub isa: String,
    /// The model's architecture.
    pub architecture: String,
    /// What the model was packed from.
    pub origin: Origin,
    /// What kind of model that is, and so how tensors are named.
    pub kind: OriginKind,
    /// Whether the scales of integers were searched for, and not taken from the largest weight alone.
    pub search_scales: bool,
    /// The model whose inputs said how much errors count in that search; none: all the same.
    pub importance: Option<String>,
    /// Whether numbers that no model has were let pass.
    pub allow_nonfinite: bool,
    /// What weights lost when they became integers.
    pub losses: Vec<Loss>,
    /// SHA-256 of the file of the weights up to its data.
    pub header_sha256: String,
    /// SHA-256 of the vectors, in the order of the file.
    pub vectors_sha256: String,
    /// Every matrix, in the order of the file.
    pub matrices: Vec<MatrixEntry>,
}

/// What a model was packed from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Origin {
    /// What the user called it.
    pub name: String,
    /// The file or the directory; none of a model that is made, or of a name that is no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Its files of weights and its configuration, as they were.
    pub files: Vec<OriginFile>,
}

/// A file that the model came from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OriginFile {
    /// Its name without directories.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// When it was last written to, in seconds since 1970.
    pub modified: i64,
}

/// What kind of model was packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OriginKind {
    /// A directory in HF's layout: `config.json` and the tokenizer's files lie beside the weights.
    Hf,
    /// A GGUF file: its metadata lie beside the weights.
    Gguf,
    /// A random model of the built-in list, by the name of the origin.
    Random,
}

/// What weights in a format lost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Loss {
    /// The format.
    #[serde(with = "text")]
    pub format: WeightFormat,
    /// How many weights there are.
    pub weights: usize,
    /// Root of the mean squared error, by the root of the weights' mean square.
    pub relative_rms: f64,
}

/// A packed matrix.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MatrixEntry {
    /// The tensors that it is made of, one below the other.
    pub parts: Vec<PartEntry>,
    /// Outputs, the rows of all parts.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// The format.
    #[serde(with = "text")]
    pub format: WeightFormat,
    /// Outputs in a panel; none: rows.
    pub panel: Option<usize>,
    /// Whether a panel holds half a panel of each half of the outputs.
    pub paired: bool,
    /// Bytes of the matrix.
    pub bytes: u64,
    /// SHA-256 of these.
    pub sha256: String,
    /// SHA-256 of the order in which its inputs are stored, if that is not the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_order: Option<String>,
}

/// A tensor in a packed matrix.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PartEntry {
    /// Its name in the model that was packed.
    pub name: String,
    /// Its rows.
    pub rows: usize,
}

impl Manifest {
    /// Reads a manifest and checks its version.
    ///
    /// # Errors
    /// The file cannot be read, is no manifest, or one of another version.
    pub(super) fn read(path: &Path) -> Result<Self, ModelError> {
        /// What manifests of all versions have.
        #[derive(Deserialize)]
        struct Version {
            layout: u32,
            version: String,
        }
        let bytes = read_bytes(path, MAX_BYTES)?;
        let wrong = |e: serde_json::Error| {
            let what = format!("is no manifest of a packed model: {}", clip(&e.to_string()));
            ModelError::file(path, what)
        };
        let Version { layout, version } = serde_json::from_slice(&bytes).map_err(wrong)?;
        if layout != PackedWeights::LAYOUT_VERSION {
            let what = format!(
                "is {layout}, written by PACE {}, but this PACE, {}, has {}; pack the model again: `pace-cli quantize` or \
                 `pace-cli pack`, with --force",
                clip(&version),
                env!("CARGO_PKG_VERSION"),
                PackedWeights::LAYOUT_VERSION
            );
            return Err(ModelError::field(path, "layout", what));
        }
        serde_json::from_slice(&bytes).map_err(wrong)
    }

    /// A name for what is in the file of the weights, and for what it means: no other file has a header with it.
    pub(super) fn id(&self) -> String {
        let matrices = serde_json::to_vec(&self.matrices).expect("a list of numbers and texts is JSON");
        checksum::of_bytes([&matrices[..], self.vectors_sha256.as_bytes()])
    }

    /// What to do about a pack that is not right.
    pub(super) fn again(&self) -> String {
        let command = if self.matrices.iter().any(|m| m.format.is_quantised()) { "quantize" } else { "pack" };
        format!("pack {} again: `pace-cli {command}` with --force", clip(&self.origin.name))
    }
}

impl MatrixEntry {
    /// The name of the matrix in the file: those of its tensors.
    pub fn name(&self) -> String {
        let names: Vec<&str> = self.parts.iter().map(|part| part.name.as_str()).collect();
        clip(&joined(&names))
    }

    /// The name of the order of its inputs in the file.
    pub(super) fn order_name(&self) -> String {
        format!("{}.input_order", self.name())
    }

    /// How it is packed.
    pub fn spec(&self) -> PackSpec {
        let panels = |width| WeightLayout::Panels { width, paired: self.paired };
        PackSpec { format: self.format, layout: self.panel.map_or(WeightLayout::Rows, panels) }
    }

    /// Whether there can be such a matrix, and what is wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        let rows = self.parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.rows));
        if rows != Some(self.n) || self.parts.iter().any(|part| part.rows == 0) {
            return Err(format!("has {} rows, but its parts do not have them", self.n));
        }
        if !(1..MAX_SIDE).contains(&self.n) || !(1..MAX_SIDE).contains(&self.k) {
            return Err(format!("[{}, {}] is no matrix of a model", self.n, self.k));
        }
        if self.input_order.is_some() && !self.format.is_quantised() {
            return Err(format!(
                "has an order of its inputs, but is {}: integers alone have one",
                self.format
            ));
        }
        match self.panel {
            None if self.format.is_quantised() => {
                Err(format!("{} is packed in panels, not in rows", self.format))
            }
            None if self.paired => Err("is in rows, but only panels are paired".to_owned()),
            Some(width) if !matches!(width, 32 | 64) => {
                Err(format!("panels of {width}; there are those of 32 and 64"))
            }
            // Gate and up are the only matrix of two tensors, and always paired in panels.
            Some(_) if self.paired != (self.parts.len() == 2) => {
                let (right, parts) = (!self.paired, self.parts.len());
                Err(format!(
                    "has paired {}, but for a matrix of {parts} tensors {right} is right",
                    self.paired
                ))
            }
            Some(_) if self.paired && !self.n.is_multiple_of(2) => {
                Err(format!("{} rows are no pair", self.n))
            }
            _ => Ok(()),
        }
    }

    /// Whether the panels are as wide as those of another matrix, as all of a model are; and what is wrong.
    pub(super) fn check_width(&self, other: &Self) -> Result<(), String> {
        match (self.panel, other.panel) {
            (Some(own), Some(width)) if own != width => {
                Err(format!("panels of {own}, but `{}` has panels of {width}", other.name()))
            }
            _ => Ok(()),
        }
    }
}

/// What the matrix of these tensors is called.
pub(super) fn joined(tensors: &[&str]) -> String {
    tensors.join("+")
}

/// Values that are written as their text.
mod text {
    use super::{Deserialize, Deserializer, Display, FromStr, Serializer, de};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
