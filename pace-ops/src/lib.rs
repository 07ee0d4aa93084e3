#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod attention;
mod backend;
mod build_cx;
mod choice;
mod config;
mod cx;
mod embedding;
mod error;
mod input_squares;
mod kv;
mod limits;
mod linear;
mod lm_head;
mod m_class;
mod mlp;
mod norm;
mod panels;
mod plan;
mod profile;
mod rope;
mod selection;
mod self_test;
mod shape;

pub use attention::{Attention, AttentionPlan, AttentionShape};
pub use backend::{Backend, OpDType, Operator, UnknownName};
pub use build_cx::BuildCx;
pub use choice::Choice;
pub use config::OperatorConfig;
pub use cx::{OpCx, ScratchAct};
pub use embedding::Embedding;
pub use error::{ConfigError, OpError};
pub use input_squares::{InputMeans, InputSquares, Product};
pub use kv::{KvBatch, KvCache, KvError, KvRows, KvUsage};
pub use limits::Limits;
pub use linear::{Linear, OutProjection, QkvProjection};
pub use lm_head::LmHead;
pub use m_class::MClass;
pub use mlp::{Mlp, MlpWeights};
pub use norm::Norm;
pub use plan::{Candidate, Plan, PlanEntry, WrongBackend};
pub use profile::{LayerKind, Profile, ProfileReport, ProfileRow, Span, StepSpan, Trace, Work, write_traces};
pub use rope::{Rope, RopeAngles};
pub use selection::{Chosen, ChosenBy, Demotion, Selection};
pub use self_test::{Mismatch, SelfTest};
pub use shape::{OpShape, OpSize};
