//! The flags of every command that runs a model.

use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use pace_kernels::DType;
use pace_ops::{ConfigError, OperatorConfig};
use pace_runtime::EngineConfig;
use pace_runtime::config::Env;
use pace_runtime::plan_store::{self, PlanKey};

use super::PlatformArgs;
use crate::exit::Usage;
use crate::session::plan_dir;

#[derive(Clone, Debug, Default, Args)]
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
    /// Load weights that are NaN, infinite, absurdly large or nothing but zeros; by default the file counts as damaged.
    #[arg(long)]
    pub(crate) allow_nonfinite: bool,
    #[command(flatten)]
    pub(crate) operators: OperatorArgs,
    #[command(flatten)]
    pub(crate) platform: PlatformArgs,
}

/// Which backends compute the operators.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct OperatorArgs {
    /// Backends by operator, such as '{"attention": "native", "mlp": "auto"}'; goes before $PACE_OP_CONFIG, which counts
    /// for keys left out. What neither names is auto.
    #[arg(long, value_name = "JSON", value_parser = operator_json)]
    pub(crate) op_config: Option<String>,
    /// One operator's backend, such as mlp=native; may be given more than once and goes before --op-config.
    #[arg(long, value_name = "KEY=BACKEND", value_parser = operator_entry)]
    pub(crate) op: Vec<(String, String)>,
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
    pub(crate) fn config(&self, env: &Env) -> Result<EngineConfig> {
        let dtype = match self.dtype {
            WeightChoice::F32 => DType::F32,
            WeightChoice::Auto | WeightChoice::Bf16 => DType::Bf16,
        };
        let mut config = EngineConfig::on_cores(dtype, &self.platform.cores(env))?;
        config.prefill_threads = self.platform.prefill_threads.map(usize::from);
        config.decode_threads = self.platform.decode_threads.map(usize::from);
        config.load.allow_nonfinite = self.allow_nonfinite;
        config.load.operators = self.operators.apply(env.operators).map_err(|e| Usage(e.to_string()))?;
        config.load.panel_width = env.panel_width;
        config.load.imbps_chunks = env.imbps_chunks;
        match self.kv_dtype {
            Some(KvChoice::F32) => config.load.kv = DType::F32,
            Some(KvChoice::Bf16) => config.load.kv = DType::Bf16,
            None => {}
        }
        if let Some(dir) = plan_dir(env) {
            config.load.plan = plan_store::load(&dir, &PlanKey::detect(&config)?).map(Arc::new);
        }
        Ok(config)
    }
}

impl OperatorArgs {
    /// The backends of the environment, with those of the flags in their place.
    fn apply(&self, mut operators: OperatorConfig) -> Result<OperatorConfig, ConfigError> {
        if let Some(json) = &self.op_config {
            operators.apply_json(json)?;
        }
        for (key, backend) in &self.op {
            operators.set(key, backend)?;
        }
        Ok(operators)
    }
}

/// `--op-config`, checked.
fn operator_json(json: &str) -> Result<String, ConfigError> {
    OperatorConfig::from_json(json).map(|_| json.to_owned())
}

/// `--op`, checked.
fn operator_entry(entry: &str) -> Result<(String, String)> {
    let Some((key, backend)) = entry.split_once('=') else {
        anyhow::bail!("an operator and its backend are needed, such as mlp=native");
    };
    OperatorConfig::default().set(key, backend)?;
    Ok((key.to_owned(), backend.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use pace_ops::Backend;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        engine: EngineArgs,
    }

    #[test]
    fn an_operator_s_flag_goes_before_the_json_and_that_before_the_environment() {
        let json = r#"{"norm": "auto", "rope_backend": "AUTO"}"#;
        let flags =
            ["x", "--op", "norm=native", "--op-config", json, "--op", "mlp=native", "--op", "MLP=auto"];
        let args = Program::try_parse_from(flags).unwrap().engine;
        let want = OperatorConfig { rope: Backend::Auto, mlp: Backend::Auto, ..OperatorConfig::native() };
        assert_eq!(args.operators.apply(OperatorConfig::native()), Ok(want));
    }
}
