//! [`RuntimeError`]: what can go wrong between a request and its answer.

use std::path::PathBuf;

use pace_kernels::{IsaError, JitError, PoolError};
use pace_models::ModelError;
use pace_ops::KvError;

use crate::chat::ChatError;
use crate::config::EnvError;
use crate::divergence::DivergenceError;
use crate::generation_config::GenerationConfigError;
use crate::instance::PartitionError;
use crate::platform::cores::CoreError;
use crate::sampler::{ParamError, SampleError};
use crate::tokenizer::TokenizerError;

/// An engine, a model or a request that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer cannot be loaded, or refused its input.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template cannot be compiled or rendered.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// `generation_config.json` is malformed.
    #[error(transparent)]
    GenerationConfig(#[from] GenerationConfigError),
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// The model produced logits that no token can be drawn from.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// A model that is compared produced logits that predict nothing.
    #[error(transparent)]
    Divergence(#[from] DivergenceError),
    /// An environment variable has a value that means nothing.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// Threads were asked for on CPUs or a node that there are not.
    #[error(transparent)]
    Cores(#[from] CoreError),
    /// The CPU cannot run the tier asked for.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// There is no generated code.
    #[error(transparent)]
    Jit(#[from] JitError),
    /// A plan of operators cannot be saved.
    #[error("{}: {source}", .path.display())]
    PlanFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A packed model has no place to go to.
    #[error("{}: {what}", .path.display())]
    PackTarget {
        /// Where it was to go.
        path: PathBuf,
        /// What is wrong with that, and what would be right.
        what: String,
    },
    /// The thread pool cannot be built.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The KV cache cannot grow.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The prompt holds no token.
    #[error("the prompt is empty: at least one token is needed")]
    EmptyPrompt,
    /// Prompt and answer do not fit the model's context.
    #[error("the prompt has {prompt} tokens and {new} more were asked for, the context holds {max}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// New tokens asked for at the least.
        new: usize,
        /// The longest sequence.
        max: usize,
    },
    /// `--ctx-size` beyond what the model was made for.
    #[error("a context of {asked} tokens was asked for, the model was made for {max} at most")]
    ContextTooLong {
        /// Tokens asked for.
        asked: usize,
        /// The model's own maximum.
        max: usize,
    },
    /// A token id that the model has no embedding for.
    #[error("token {id} (position {position}) is beyond the vocabulary of {vocab} tokens")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Its index in the prompt.
        position: usize,
        /// Tokens that the model has.
        vocab: usize,
    },
    /// Text was given, or asked for, and the model has no tokenizer.
    #[error("{model} has no tokenizer")]
    NoTokenizer {
        /// The model.
        model: String,
    },
    /// A chat was asked for and the model has no template.
    #[error("{model} has no chat template: use plain completion")]
    NoChatTemplate {
        /// The model.
        model: String,
    },
    /// Weights and caches do not fit the memory that this process may use.
    #[error("{need} bytes are needed ({terms}), {available} are available ({source_of_limit})")]
    OutOfMemory {
        /// Bytes needed.
        need: u64,
        /// What they are for.
        terms: String,
        /// Bytes available.
        available: u64,
        /// Where the limit comes from.
        source_of_limit: String,
    },
    /// The machine cannot be divided so.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// A KV cache would exceed the memory of all caches.
    #[error(
        "a KV cache for {tokens} tokens takes {need} bytes, all caches may hold {limit} (--kv-memory) and {held} are \
         taken: ask for a shorter prompt and answer, or allow more"
    )]
    KvMemory {
        /// Bytes that the sequence may come to need.
        need: u64,
        /// Its prompt and answer, in tokens.
        tokens: usize,
        /// Bytes that other caches hold.
        held: u64,
        /// Bytes that all caches may hold.
        limit: u64,
    },
    /// Too many requests wait already.
    #[error("{max} requests are waiting, and no more are taken: try again later")]
    QueueFull {
        /// Requests that may wait.
        max: usize,
    },
    /// The engine has been stopped, or its thread died.
    #[error("the engine has stopped")]
    Stopped,
    /// A defect: a forward panicked. Other requests are not affected beyond the step.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Whose fault an error is; decides a program's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request or the command line.
    Usage,
    /// The model's files.
    Model,
    /// Not enough memory or threads.
    Resources,
    /// The CPU lacks an instruction set.
    Cpu,
    /// A defect.
    Internal,
}

impl RuntimeError {
    /// Whether the same request may succeed once others are done.
    pub(crate) const fn may_pass(&self) -> bool {
        match self {
            Self::KvMemory { need, limit, .. } => *need <= *limit,
            Self::OutOfMemory { .. } | Self::Kv(KvError::OutOfMemory { .. }) => true,
            _ => false,
        }
    }

    /// Whose fault this is.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Kv(KvError::Splits { .. }) => ErrorKind::Usage,
            Self::Model(ModelError::OutOfMemory { .. } | ModelError::Write { .. })
            | Self::Pool(_)
            | Self::Kv(_)
            | Self::PlanFile { .. }
            | Self::KvMemory { .. }
            | Self::QueueFull { .. }
            | Self::OutOfMemory { .. } => ErrorKind::Resources,
            Self::Model(
                ModelError::Op(_)
                | ModelError::UnknownRandomModel { .. }
                | ModelError::PackedOtherwise { .. },
            ) => ErrorKind::Usage,
            Self::Tokenizer(
                TokenizerError::TextTooLong { .. }
                | TokenizerError::Encode { .. }
                | TokenizerError::Decode { .. }
                | TokenizerError::EmptyStop,
            )
            | Self::Param(_)
            | Self::Env(_)
            | Self::Partition(_)
            | Self::PackTarget { .. }
            | Self::Cores(_)
            | Self::EmptyPrompt
            | Self::PromptTooLong { .. }
            | Self::ContextTooLong { .. }
            | Self::UnknownToken { .. }
            | Self::NoTokenizer { .. }
            | Self::NoChatTemplate { .. } => ErrorKind::Usage,
            Self::Model(_)
            | Self::Tokenizer(_)
            | Self::GenerationConfig(_)
            | Self::Chat(_)
            | Self::Sample(_)
            | Self::Divergence(_) => ErrorKind::Model,
            Self::Isa(IsaError::Unknown(_)) => ErrorKind::Usage,
            Self::Jit(JitError::Unknown(_)) => ErrorKind::Usage,
            Self::Jit(JitError::Memory(_)) => ErrorKind::Resources,
            Self::Isa(_) | Self::Jit(JitError::Isa { .. }) => ErrorKind::Cpu,
            Self::Stopped | Self::Internal(_) | Self::Jit(_) => ErrorKind::Internal,
        }
    }
}
