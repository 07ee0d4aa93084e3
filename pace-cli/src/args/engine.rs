//! The flags of every command that runs a model.

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use pace_kernels::{DType, KvDType};
use pace_ops::{ConfigError, OperatorConfig};
use pace_runtime::EngineConfig;
use pace_runtime::config::Env;
use pace_runtime::kv_cache::KvConfig;
use pace_runtime::plan_store::{self, PlanKey};

use super::KvArgs;
use super::{PlatformArgs, QuantArgs};
use crate::exit::Usage;
use crate::session::plan_dir;

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// The model: a directory, a .gguf file, random:NAME, or a name that `pull` takes [default: smollm2-135m].
    #[arg(short, long)]
    pub(crate) model: Option<String>,
    /// Weights and activations: f32 computes in f32 throughout, bf16 sums in f32. auto is bf16, with weights that the files
    /// hold as integers computed as they are; the others dequantise them [default: auto, of the default model bf16].
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<WeightChoice>,
    /// Cached keys and values [default: as --dtype]. int8 has a scale for each token and head, and is computed as bf16 is.
    #[arg(long, value_enum)]
    pub(crate) kv_dtype: Option<KvChoice>,
    /// Prompt tokens that one forward computes at most, over all sequences [default: 512]. Results do not depend on it.
    #[arg(long, value_name = "N", value_parser = tokens, allow_negative_numbers = true)]
    pub(crate) prefill_chunk: Option<NonZeroUsize>,
    /// Memory of all KV caches, such as 4GiB or 500MB [default: what is available once the model is loaded].
    #[arg(long, value_name = "BYTES", value_parser = byte_size)]
    pub(crate) kv_memory: Option<u64>,
    /// Map the model's files while they are read, instead of reading them. It is no faster, the files count as the process's
    /// memory meanwhile, and one that is shortened meanwhile ends the process. Packed weights are the same, in huge pages.
    /// A model of `quantize` or `pack` is computed from the mapping: it starts at once and processes share it, in small pages.
    #[arg(long)]
    pub(crate) mmap: bool,
    /// Load weights that are NaN, infinite, absurdly large or nothing but zeros; by default the file counts as damaged.
    #[arg(long)]
    pub(crate) allow_nonfinite: bool,
    #[command(flatten)]
    pub(crate) quant: QuantArgs,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightChoice {
    Auto,
    F32,
    Bf16,
}

/// `--kv-dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvChoice {
    F32,
    Bf16,
    Int8,
}

impl From<KvChoice> for KvDType {
    fn from(choice: KvChoice) -> Self {
        match choice {
            KvChoice::F32 => Self::F32,
            KvChoice::Bf16 => Self::Bf16,
            KvChoice::Int8 => Self::Int8,
        }
    }
}

impl EngineArgs {
    /// What the flags mean on this machine.
    pub(crate) fn config(&self, env: &Env) -> Result<EngineConfig> {
        let config = self.config_to_divide(env)?;
        let threads = config.cpus.len();
        self.platform.warn_of_more_than(threads, &format!("there are {threads} threads in all"));
        Ok(config)
    }

    /// The same for engines that are going to divide the CPUs, so that how many threads each has is not known yet.
    pub(crate) fn config_to_divide(&self, env: &Env) -> Result<EngineConfig> {
        let dtype = match self.dtype {
            Some(WeightChoice::F32) => DType::F32,
            Some(WeightChoice::Auto | WeightChoice::Bf16) | None => DType::Bf16,
        };
        let mut config = EngineConfig::on_cores(dtype, &self.platform.cores(env))?;
        config.prefill_threads = self.platform.prefill_threads.map(usize::from);
        config.decode_threads = self.platform.decode_threads.map(usize::from).or(config.decode_threads);
        config.numa_memory = self.platform.numa_memory.into();
        config.load.placement.hugepages = self.platform.hugepages.into();
        // The default model is so small that its 4 bits gain little, and an answer shows what they lose.
        let own_formats =
            self.dtype.map_or_else(|| self.model.is_some(), |dtype| dtype == WeightChoice::Auto);
        self.quant.apply(&mut config.load, own_formats)?;
        config.load.mmap = self.mmap;
        config.load.allow_nonfinite = self.allow_nonfinite;
        config.batching.prefill_chunk = self.prefill_chunk.unwrap_or(config.batching.prefill_chunk);
        config.batching.kv_memory = self.kv_memory;
        config.kv_cache = KvConfig { placement: config.load.placement, ..self.kv.config(env)? };
        config.load.operators = self.operators.apply(env.operators).map_err(|e| Usage(e.to_string()))?;
        config.load.panel_width = env.panel_width;
        config.load.imbps_chunks = env.imbps_chunks;
        config.load.kv = self.kv_dtype.map_or(config.load.kv, KvDType::from);
        if let Some(dir) = plan_dir(env) {
            config.load.plan = plan_store::load(&dir, &PlanKey::detect(&config)?).map(Arc::new);
        }
        Ok(config)
    }
}

impl OperatorArgs {
    /// Whether a flag names a backend.
    pub(crate) const fn is_given(&self) -> bool {
        self.op_config.is_some() || !self.op.is_empty()
    }

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

/// A number of tokens where none would be no work at all.
pub(super) fn tokens(text: &str) -> Result<NonZeroUsize> {
    text.parse().context("a whole number of tokens is needed, at least 1")
}

/// A number of bytes with or without a unit: B, K, KB, M, MB, G, GB, T, TB in powers of 1000, KiB to TiB of 1024.
fn byte_size(text: &str) -> Result<u64> {
    let digits = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let (number, unit) = (&text[..text.len() - digits.len()], digits.trim().to_ascii_lowercase());
    let (letter, base) = match unit.strip_suffix("ib") {
        Some(letter) => (letter, 1024f64),
        None => (unit.strip_suffix('b').unwrap_or(&unit), 1000.0),
    };
    let power = ["", "k", "m", "g", "t"].iter().position(|&known| known == letter);
    let bytes = number.parse::<f64>().ok().zip(power).map(|(n, power)| n * base.powi(power as i32));
    match bytes {
        Some(bytes) if bytes >= 1.0 && bytes < u64::MAX as f64 && unit != "ib" => Ok(bytes as u64),
        _ => anyhow::bail!("a number of bytes above 0 is needed, such as 4GiB, 500MB or 1000000"),
    }
}

/// `--op-config`, checked.
pub(super) fn operator_json(json: &str) -> Result<String, ConfigError> {
    OperatorConfig::from_json(json).map(|_| json.to_owned())
}

/// `--op`, checked.
pub(super) fn operator_entry(entry: &str) -> Result<(String, String)> {
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
    fn sizes_have_units_or_none() {
        for (text, bytes) in [
            ("1000", 1000),
            ("4GiB", 4 << 30),
            ("500MB", 500_000_000),
            ("1.5 kib", 1536),
            ("2g", 2_000_000_000),
        ] {
            assert_eq!(byte_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "0", "-1", "GiB", "1e3", "12 parsecs", "1.2.3", "5ib", "999999999999TB", "nan"] {
            assert!(byte_size(text).is_err(), "{text}");
        }
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
