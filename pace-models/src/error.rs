//! What can go wrong between a model on disk and a [`Decoder`](crate::Decoder).

use std::path::{Path, PathBuf};

/// A model that cannot be loaded. Every variant names what is at fault: the file and the tensor or field.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The operating system refused.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The container itself is malformed: header, lengths, magic, encoding.
    #[error("{path}: {what}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        what: String,
    },
    /// One tensor is missing, misshapen, of an unsupported type, or holds bad numbers.
    #[error("{path}: tensor `{tensor}`: {what}", path = .path.display())]
    Tensor {
        /// The file that should hold the tensor.
        path: PathBuf,
        /// The tensor's name in that file.
        tensor: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// One field of a configuration or of the metadata is missing or wrong.
    #[error("{path}: field `{field}`: {what}", path = .path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's name, dotted where nested.
        field: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// The inputs of a matrix product, as they were seen while a model was computed, are no importance of its weights.
    #[error("inputs of `{name}`: {what}")]
    Inputs {
        /// The product.
        name: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// The model's architecture is none that this crate knows.
    #[error("{path}: unknown architecture `{found}`; known: {known}", path = .path.display())]
    UnknownArchitecture {
        /// The file that names the architecture.
        path: PathBuf,
        /// The name found.
        found: String,
        /// The names that would be right.
        known: String,
    },
    /// `random:NAME` with a name that is not in the list.
    #[error("no random model is called `{found}`; known: {known}")]
    UnknownRandomModel {
        /// The name found.
        found: String,
        /// The names that would be right.
        known: String,
    },
    /// There is no memory for the packed weights.
    #[error("no memory for {bytes} bytes of packed weights of `{tensor}`")]
    OutOfMemory {
        /// The tensor being packed.
        tensor: String,
        /// Bytes asked for.
        bytes: usize,
    },
    /// A packed model was asked for in another way than it is packed.
    #[error("{path}: {what}", path = .path.display())]
    PackedOtherwise {
        /// The manifest.
        path: PathBuf,
        /// How it is packed, what was asked for, and what to do.
        what: String,
    },
    /// A packed model cannot be written.
    #[error("cannot write {path}: {source}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An operator cannot be built.
    #[error(transparent)]
    Op(#[from] pace_ops::OpError),
}

impl ModelError {
    /// An [`ModelError::Io`] for `path`.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    /// An [`ModelError::Write`] for `path`.
    pub fn write(path: &Path, source: std::io::Error) -> Self {
        Self::Write { path: path.to_path_buf(), source }
    }

    /// A [`ModelError::File`] for `path`.
    pub fn file(path: &Path, what: impl Into<String>) -> Self {
        Self::File { path: path.to_path_buf(), what: what.into() }
    }

    /// A [`ModelError::Tensor`] for `tensor` in `path`.
    pub fn tensor(path: &Path, tensor: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_path_buf(), tensor: tensor.into(), what: what.into() }
    }

    /// A [`ModelError::Field`] for `field` in `path`.
    pub fn field(path: &Path, field: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Field { path: path.to_path_buf(), field: field.into(), what: what.into() }
    }
}
