//! The flags of `throughput`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::{EngineArgs, Format, LengthArgs, SamplingArgs};

/// Answer many prompts by several instances of one model: every answer, and tokens per second in all.
///
/// Instances take prompts from one queue. They divide the cores by NUMA node, then by L3 group, then evenly, and share one
/// copy of the packed weights on each node.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli throughput --instances 2 --prompts prompts.txt -n 64
  pace-cli throughput -m random:llama-1b --instances 2 --random --format json
  pace-cli throughput --random --cores '0-3;4-7' --processes")]
pub(crate) struct ThroughputArgs {
    /// Instances of the model [default: as many as --cores has lists, else one a NUMA node].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) instances: Option<u16>,
    #[command(flatten)]
    pub(crate) work: WorkArgs,
    /// The NUMA node for the memory of each instance, such as 0;1 [default: that of its CPUs].
    #[arg(long, value_name = "LIST", value_parser = node_list)]
    pub(crate) nodes: Option<NodeList>,
    /// Each instance is a process of its own, and the weights a file in memory that they share. One that dies is started
    /// again, and others take over its work.
    #[arg(long)]
    pub(crate) processes: bool,
    #[command(flatten)]
    pub(crate) length: LengthArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
    /// What the parent tells one of its processes.
    #[arg(long, hide = true, value_name = "JSON")]
    pub(crate) worker: Option<String>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct WorkArgs {
    /// A file with one prompt a line; - is standard input. Empty lines are left out.
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// 8 prompts of 64 random ids, with 32 new tokens each unless -n says otherwise; a shorter context clips them.
    #[arg(long)]
    pub(crate) random: bool,
}

/// `--nodes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeList(pub(crate) Vec<usize>);

fn node_list(text: &str) -> Result<NodeList> {
    let nodes = text.split(';').map(|node| node.trim().parse().ok()).collect::<Option<Vec<_>>>();
    nodes.map(NodeList).context("NUMA nodes are needed, one for each instance, such as 0;1")
}
