//! `ops` and `jit`.

use clap::{Args, Subcommand};

use super::{EngineArgs, Format};

/// Which operators have which backends, for which types, and what is missing on this machine and why.
///
/// $PACE_ISA caps the instruction sets, as for every command.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli ops
  pace-cli ops --format json
  PACE_ISA=avx2 pace-cli ops")]
pub(crate) struct OpsArgs {
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// Kernels that are generated at run time.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli jit dump -m random:llama-1b
  pace-cli jit dump bf16:6x64:k2048")]
pub(crate) struct JitArgs {
    #[command(subcommand)]
    pub(crate) command: JitCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JitCommand {
    Dump(JitDumpArgs),
}

/// The kernels that a model is run with, or the instructions of one.
///
/// Without KEY: every operator that has the backend jit and is not set otherwise gets it, a prompt and a token are
/// computed, and what was generated for that is listed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli jit dump
  pace-cli jit dump -m random:llama-1b --op attention=flash --format json
  pace-cli jit dump bf16:6x64:k2048:32:silu+up:bf16")]
pub(crate) struct JitDumpArgs {
    /// The name of a kernel, as the list has it; no model is needed for it.
    #[arg(value_name = "KEY")]
    pub(crate) key: Option<String>,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// Measure which backends are the fastest for a model on this machine, and keep that for later runs.
///
/// What was measured before, for this CPU, number of threads and version, is not measured again. Commands that run a
/// model take the backends of the plan for operators that are left to auto.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli plan
  pace-cli plan random:llama-1b --threads 2
  pace-cli plan ./SmolLM2 --force --format json")]
pub(crate) struct PlanArgs {
    /// The model, in place of --model.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub(crate) name: Option<String>,
    /// Measure again what was measured before.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}
