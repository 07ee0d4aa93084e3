#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod attention;
mod backend;
mod config;
mod cx;
mod embedding;
mod error;
mod kv;
mod limits;
mod linear;
mod lm_head;
mod m_class;
mod mlp;
mod norm;
mod profile;
mod rope;

pub use attention::{Attention, AttentionPlan, AttentionShape};
pub use backend::{Backend, Operator, UnknownName};
pub use config::OperatorConfig;
pub use cx::{OpCx, ScratchAct};
pub use embedding::Embedding;
pub use error::OpError;
pub use kv::{KvBatch, KvCache, KvError, KvUsage};
pub use limits::Limits;
pub use linear::{Linear, OutProjection, QkvProjection};
pub use lm_head::LmHead;
pub use m_class::MClass;
pub use mlp::{Mlp, MlpWeights};
pub use norm::Norm;
pub use profile::{LayerKind, Profile, ProfileReport, ProfileRow, Span, StepSpan, Trace, Work, write_traces};
pub use rope::{Rope, RopeAngles};
