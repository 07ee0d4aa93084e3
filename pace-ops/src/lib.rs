#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod attention;
mod backend;
mod config;
mod cx;
mod embedding;
mod error;
mod kv;
mod linear;
mod lm_head;
mod mlp;
mod norm;
mod rope;

pub use attention::{Attention, AttentionPlan, AttentionShape};
pub use backend::{Backend, Operator, UnknownName};
pub use config::OperatorConfig;
pub use cx::{OpCx, ScratchAct};
pub use embedding::Embedding;
pub use error::{ConfigError, OpError};
pub use kv::{KvBatch, KvCache, KvError, KvUsage};
pub use linear::{Linear, OutProjection, QkvProjection};
pub use lm_head::LmHead;
pub use mlp::{Mlp, MlpWeights};
pub use norm::Norm;
pub use rope::{Rope, RopeAngles};
