#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod chat;
pub mod config;
mod divergence;
pub mod doctor;
mod engine;
mod error;
pub mod generation_config;
mod importance;
mod instance;
pub mod kv_cache;
mod loader;
mod metrics;
pub mod plan_store;
pub mod platform;
mod profile;
mod request;
pub mod sampler;
mod scheduler;
pub mod tokenizer;

pub use pace_kernels::{DType, KvDType};
pub use pace_ops::{
    Chosen, Demotion, Limits, OperatorConfig, Plan, ProfileReport, ProfileRow, Trace, write_traces,
};

pub use divergence::{Divergence, DivergenceError, DivergenceSummary};
pub use engine::{EngineConfig, EngineHandle, EngineInfo, LoadProgress, Sharing};
pub use error::{ErrorKind, RuntimeError};
pub use instance::{Answers, Completion, Instances, Part, PartitionError, WorkQueue, partition};
pub use loader::{FormatShare, ModelFiles, ModelRef, PackReport, PackTarget};
pub use metrics::EngineMetrics;
pub use request::{
    Canceller, Finish, FinishReason, Request, Score, ScoreRequest, ScoreStream, ScoreUpdate, SequenceCache,
    TokenEvent, TokenStream,
};
pub use scheduler::{Batching, check_memory};
