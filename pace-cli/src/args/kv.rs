//! `--kv-cache` and what goes with it, and `kv-plan`.

use std::num::NonZeroUsize;

use anyhow::Result;
use clap::{Args, ValueEnum};
use pace_runtime::config::{Env, MAX_BMC_SPLITS};
use pace_runtime::kv_cache::{BmcGrow, BmcGrowth, KvCacheKind, KvConfig};

use super::engine::tokens;
use super::{EngineArgs, Format};
use crate::exit::Usage;

/// Which caches keys and values are kept in.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct KvArgs {
    /// How KV caches get their memory: copied at each token, all at once, or in parts [default: bmc].
    #[arg(long, value_enum, value_name = "KIND")]
    pub(crate) kv_cache: Option<KindChoice>,
    /// Allocations of a BMC cache, each twice the one before, from 1 to the maximum length; goes before
    /// $PACE_BMC_NUM_SPLITS [default: what `kv-plan` shows].
    #[arg(long, value_name = "N", value_parser = splits, allow_negative_numbers = true)]
    pub(crate) bmc_splits: Option<usize>,
    /// How the parts of a BMC cache follow each other: each twice the one before, or all of one size.
    #[arg(long, value_enum, value_name = "GROWTH")]
    pub(crate) bmc_growth: Option<GrowthChoice>,
    /// What a BMC cache does to grow: copy into new memory, or commit more behind what there is [default: commit].
    #[arg(long, value_enum, value_name = "HOW")]
    pub(crate) bmc_grow: Option<GrowChoice>,
}

/// `--kv-cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KindChoice {
    Dynamic,
    Static,
    Bmc,
}

/// `--bmc-growth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GrowthChoice {
    Doubling,
    Linear,
}

/// `--bmc-grow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GrowChoice {
    Copy,
    Commit,
}

/// What growing a KV cache in parts would cost here, and which parts are taken unless told otherwise.
///
/// Memory is averaged over the life of a sequence that grows token by token. The choice is the least estimated time among
/// those whose memory is at most 1.25 times the bytes in use.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli kv-plan
  pace-cli kv-plan -m random:llama-1b --batch 8 --length 2048
  pace-cli kv-plan --bmc-grow copy --format json")]
pub(crate) struct KvPlanArgs {
    /// Sequences at a time, 4096 at most.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) batch: u16,
    /// Prompt and answer together, in tokens [default: the model's context].
    #[arg(long, value_name = "N", value_parser = tokens, allow_negative_numbers = true)]
    pub(crate) length: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

impl KvArgs {
    /// The caches that flags and environment ask for.
    pub(super) fn config(&self, env: &Env) -> Result<KvConfig> {
        let kind = match self.kv_cache {
            Some(KindChoice::Dynamic) => KvCacheKind::Dynamic,
            Some(KindChoice::Static) => KvCacheKind::Static,
            Some(KindChoice::Bmc) => KvCacheKind::Bmc,
            None => KvCacheKind::default(),
        };
        let given = [
            ("--bmc-splits", self.bmc_splits.is_some()),
            ("--bmc-growth", self.bmc_growth.is_some()),
            ("--bmc-grow", self.bmc_grow.is_some()),
        ];
        if let Some((flag, _)) = given.iter().find(|(_, given)| *given && kind != KvCacheKind::Bmc) {
            return Err(Usage(format!("{flag} goes with --kv-cache bmc, not with {}", kind.name())).into());
        }
        let mut config = KvConfig::from(kind);
        config.bmc.splits = self.bmc_splits.or(env.bmc_splits);
        config.bmc.growth = self.bmc_growth.map(|growth| match growth {
            GrowthChoice::Doubling => BmcGrowth::Doubling,
            GrowthChoice::Linear => BmcGrowth::Linear,
        });
        config.bmc.grow = match self.bmc_grow {
            Some(GrowChoice::Copy) => BmcGrow::Copy,
            Some(GrowChoice::Commit) | None => BmcGrow::Commit,
        };
        Ok(config)
    }
}

/// `--bmc-splits`, checked as far as it can be without a sequence.
fn splits(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(n) if (1..=MAX_BMC_SPLITS).contains(&n) => Ok(n),
        _ => anyhow::bail!("a number from 1 to the maximum length of a sequence is needed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        kv: KvArgs,
    }

    fn config(args: &[&str], splits: &str) -> Result<KvConfig> {
        let env = Env::from_lookup(&|name| (name == "PACE_BMC_NUM_SPLITS").then(|| splits.into()))?;
        Program::try_parse_from([&["x"], args].concat())?.kv.config(&env)
    }

    #[test]
    fn the_flag_goes_before_the_variable() {
        assert_eq!(config(&[], "").unwrap(), KvConfig::default());
        assert_eq!(config(&[], "4").unwrap().bmc.splits, Some(4));
        assert_eq!(config(&["--bmc-splits", "2"], "4").unwrap().bmc.splits, Some(2));
        let all = ["--kv-cache", "bmc", "--bmc-growth", "linear", "--bmc-grow", "copy"];
        assert_eq!(config(&all, "3").unwrap().to_string(), "bmc splits=3 growth=linear grow=copy");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for text in ["0", "-1", "x", "2.5", "99999999999999999999", "1048577"] {
            let flag = config(&["--bmc-splits", text], "").unwrap_err().to_string();
            assert!(flag.contains("--bmc-splits") && flag.contains(text), "{flag}");
            let variable = config(&[], text).unwrap_err().to_string();
            assert!(variable.contains("PACE_BMC_NUM_SPLITS") && variable.contains(text), "{variable}");
        }
        let mixed = config(&["--kv-cache", "static", "--bmc-grow", "copy"], "").unwrap_err().to_string();
        assert!(mixed.contains("--bmc-grow") && mixed.contains("static"), "{mixed}");
        assert!(config(&["--kv-cache", "static"], "4").is_ok(), "a variable is a default");
    }
}
