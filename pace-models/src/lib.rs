#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod arch;
mod batch;
pub mod config;
mod decoder;
mod error;
mod feed_forward;
pub mod file;
mod formats;
mod importance;
mod layer;
mod model;
mod packing;
mod rope;
mod self_attention;
mod spec;
mod tensor_loader;
pub mod weights;

pub use arch::Architecture;
pub use batch::{Sequence, Workspace};
pub use decoder::Decoder;
pub use error::ModelError;
pub use formats::{LayerFormats, ModelFormats};
pub use importance::Importance;
pub use model::{Model, WeightMemory};
pub use spec::{DecoderSpec, RopeScaling, RopeSpec};
pub use tensor_loader::{LoadOptions, QuantLoss};
