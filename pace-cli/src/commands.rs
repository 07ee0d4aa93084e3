//! One module a command.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod detokenize;
pub(crate) mod doctor;
pub(crate) mod env;
pub(crate) mod generate;
pub(crate) mod imatrix;
pub(crate) mod info;
pub(crate) mod jit;
pub(crate) mod kv_plan;
pub(crate) mod launch;
pub(crate) mod list;
pub(crate) mod man;
pub(crate) mod ops;
pub(crate) mod pack;
pub(crate) mod plan;
pub(crate) mod pull;
pub(crate) mod rm;
pub(crate) mod score;
pub(crate) mod show;
pub(crate) mod throughput;
pub(crate) mod tokenize;

mod answer;
