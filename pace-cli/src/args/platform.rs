//! The flags for threads and memory of every command that runs a model.

use std::ffi::OsString;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use pace_kernels::HugePages;
use pace_runtime::config::Env;
use pace_runtime::platform::cores::CoreRequest;
use pace_runtime::platform::numa::NumaMemory;
use pace_runtime::platform::topology::parse_cpu_list;

use super::{EngineArgs, Format};
use crate::exit::Usage;

/// On which CPUs, and in which memory.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Platform")]
pub(crate) struct PlatformArgs {
    /// Threads [default: $OMP_NUM_THREADS, else one a core, within --cores, affinity mask and CPU quota]. Not with several
    /// lists of --cores: each instance has one on each of its CPUs then.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) threads: Option<u16>,
    /// Threads while prompts are read, of all those there are [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) prefill_threads: Option<u16>,
    /// Threads while answers are made, of all those there are [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) decode_threads: Option<u16>,
    /// The CPUs to run on, such as 0-3,8; threads are pinned there, one a core [default: $GOMP_CPU_AFFINITY]. For several
    /// instances one list each, such as 0-3;4-7.
    #[arg(long, value_name = "LIST", value_parser = cpu_lists, conflicts_with = "numa_node")]
    pub(crate) cores: Option<CpuLists>,
    /// Run on the CPUs of this NUMA node; threads are pinned there, one a core.
    #[arg(long, value_name = "K")]
    pub(crate) numa_node: Option<usize>,
    /// Let the system move threads among the chosen CPUs.
    #[arg(long)]
    pub(crate) no_pin: bool,
    /// Memory on machines with several NUMA nodes: on those of the threads, spread over all, or as the kernel does.
    #[arg(long, value_enum, value_name = "POLICY", default_value_t)]
    pub(crate) numa_memory: NumaChoice,
    /// Huge pages for weights and KV caches: from 2 MiB on (caches that grow: from 16 MiB on), always, or never.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub(crate) hugepages: HugePageChoice,
}

/// `--numa-memory`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum NumaChoice {
    #[default]
    Bind,
    Interleave,
    Default,
}

/// `--hugepages`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum HugePageChoice {
    #[default]
    Auto,
    Always,
    Never,
}

/// Check this machine and these settings for what costs speed, and say what to do about it.
///
/// Measures memory bandwidth and peak for about a second.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli doctor
  pace-cli doctor --threads 8 --format json
  pace-cli doctor -m ./SmolLM2 --strict")]
pub(crate) struct DoctorArgs {
    /// Fail where anything costs speed.
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// Every environment variable that means something to PACE: its meaning, value and default.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli env
  pace-cli env --format json")]
pub(crate) struct EnvArgs {
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// Run a program with another memory allocator.
///
/// Finds the allocator's library, puts it into LD_PRELOAD and becomes the program.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli launch --allocator tcmalloc -- pace-cli bench
  pace-cli launch --allocator jemalloc -- python script.py")]
pub(crate) struct LaunchArgs {
    /// The allocator.
    #[arg(long, value_enum)]
    pub(crate) allocator: Allocator,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// `--allocator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Allocator {
    /// Google's, which AMD PACE recommends.
    Tcmalloc,
    /// FreeBSD's.
    Jemalloc,
    /// Microsoft's.
    Mimalloc,
}

/// `--cores`: the CPUs of each instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CpuLists(pub(crate) Vec<Vec<usize>>);

impl PlatformArgs {
    /// What the flags ask for, and the environment where they are silent.
    pub(crate) fn cores(&self, env: &Env) -> CoreRequest {
        CoreRequest {
            threads: self.threads.map(usize::from),
            cores: self.cores.as_ref().map(|lists| lists.0.concat()),
            numa_node: self.numa_node,
            no_pin: self.no_pin,
            omp_num_threads: env.omp_num_threads,
            gomp_cpu_affinity: env.gomp_cpu_affinity.clone(),
        }
    }

    /// The CPUs of each instance, if they are given for several.
    pub(crate) fn lists(&self) -> Option<&[Vec<usize>]> {
        self.cores.as_ref().map(|lists| &*lists.0).filter(|lists| lists.len() > 1)
    }

    /// An error if CPUs are given for several instances.
    pub(crate) fn expect_one_instance(&self) -> Result<()> {
        if self.lists().is_some() {
            let what =
                "--cores: one list of CPUs is needed here; several are for `throughput` and its instances";
            return Err(Usage(what.to_owned()).into());
        }
        Ok(())
    }

    /// Warns of flags that ask for a part of more threads than `threads`, with `why` that cannot be had.
    pub(crate) fn warn_of_more_than(&self, threads: usize, why: &str) {
        for (flag, asked) in [("prefill", self.prefill_threads), ("decode", self.decode_threads)] {
            if let Some(asked) = asked.filter(|&asked| usize::from(asked) > threads) {
                tracing::warn!("--{flag}-threads {asked}: {why}");
            }
        }
    }
}

impl From<NumaChoice> for NumaMemory {
    fn from(choice: NumaChoice) -> Self {
        match choice {
            NumaChoice::Bind => Self::Bind,
            NumaChoice::Interleave => Self::Interleave,
            NumaChoice::Default => Self::Default,
        }
    }
}

impl From<HugePageChoice> for HugePages {
    fn from(choice: HugePageChoice) -> Self {
        match choice {
            HugePageChoice::Auto => Self::Auto,
            HugePageChoice::Always => Self::Always,
            HugePageChoice::Never => Self::Never,
        }
    }
}

fn cpu_lists(text: &str) -> Result<CpuLists> {
    let list = |part| parse_cpu_list(part).filter(|cpus| !cpus.is_empty());
    let lists = text.split(';').map(list).collect::<Option<Vec<_>>>();
    lists.map(CpuLists).context("a list of CPUs is needed, such as 0-3,8")
}
