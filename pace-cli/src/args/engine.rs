//! The flags of every command that runs a model.

use clap::{Args, ValueEnum};
use pace_kernels::DType;
use pace_runtime::{EngineConfig, RuntimeError};

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// The model: a directory, a .gguf file, random:NAME, or a name that `pull` takes [default: smollm2-135m].
    #[arg(short, long)]
    pub(crate) model: Option<String>,
    /// Weights and activations: f32 computes in f32 throughout, bf16 sums in f32; auto is bf16.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: WeightChoice,
    /// Cached keys and values [default: as --dtype].
    #[arg(long, value_enum)]
    pub(crate) kv_dtype: Option<KvChoice>,
    /// Threads [default: one a core, within affinity mask and CPU quota].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) threads: Option<u16>,
    /// Load weights that are NaN, infinite, absurdly large or nothing but zeros; by default the file counts as damaged.
    #[arg(long)]
    pub(crate) allow_nonfinite: bool,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightChoice {
    #[default]
    Auto,
    F32,
    Bf16,
}

/// `--kv-dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvChoice {
    F32,
    Bf16,
}

impl EngineArgs {
    /// What the flags mean on this machine.
    pub(crate) fn config(&self) -> Result<EngineConfig, RuntimeError> {
        let dtype = match self.dtype {
            WeightChoice::F32 => DType::F32,
            WeightChoice::Auto | WeightChoice::Bf16 => DType::Bf16,
        };
        let mut config = EngineConfig::detect(dtype, self.threads.map(usize::from))?;
        config.load.allow_nonfinite = self.allow_nonfinite;
        match self.kv_dtype {
            Some(KvChoice::F32) => config.load.kv = DType::F32,
            Some(KvChoice::Bf16) => config.load.kv = DType::Bf16,
            None => {}
        }
        Ok(config)
    }
}
