//! `pace-cli throughput`: many prompts, several instances.

mod processes;
mod report;
mod worker;

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use pace_runtime::config::Env;
use pace_runtime::platform::topology::{Topology, format_cpu_list};
use pace_runtime::{EngineConfig, Instances, ModelFiles, Part, Request, partition};

use self::report::{Done, InstanceReport, Report};
use super::answer::Options;
use crate::args::{PlatformArgs, ThroughputArgs};
use crate::exit::Usage;
use crate::session::{encode, load_progress, open, read_text};

/// What `--random` asks for.
const RANDOM: (usize, usize, usize) = (8, 64, 32);
const DEFAULT_NEW_TOKENS: usize = 128;

pub(crate) fn run(env: &Env, args: &ThroughputArgs) -> Result<()> {
    let mut config = args.engine.config_to_divide(env)?;
    if args.nodes.is_some() && config.within.is_empty() {
        // Memory that belongs to one node is of use to threads that stay there.
        config.within.clone_from(&config.cpus);
    }
    let files = Arc::new(open(env, args.engine.model.as_deref())?);
    if let Some(orders) = &args.worker {
        return worker::run(&files, config, args, orders);
    }
    let parts = parts(args, &config)?;
    warn_of_few_cpus(&args.engine.platform, &parts);
    let prompts = prompts(&files, args)?;
    let bar = progress(prompts.len());
    let report = if args.processes {
        processes::run(&files, &config, args, &parts, prompts, &bar)?
    } else {
        threads(&files, &config, args, &parts, prompts, &bar)?
    };
    bar.finish_and_clear();
    report.write(args.format)
}

/// Instances as threads of this process.
fn threads(
    files: &Arc<ModelFiles>,
    config: &EngineConfig,
    args: &ThroughputArgs,
    parts: &[Part],
    prompts: Vec<Vec<u32>>,
    bar: &ProgressBar,
) -> Result<Report> {
    let running = Instances::start(files, config, parts, load_progress)?;
    let engines = running.engines();
    let requests = prompts.into_iter().map(|ids| request(files, args, ids)).collect::<Result<_>>()?;
    let start = Instant::now();
    let mut done = Vec::new();
    running.run(requests, |completion| {
        bar.inc(1);
        done.push(Done::from(completion));
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let own = std::process::id();
    let instances =
        parts.iter().map(|part| InstanceReport { pid: own, restarts: 0, ..InstanceReport::of(part) });
    let copies: BTreeSet<_> = parts.iter().map(|part| &part.nodes).collect();
    let weight_bytes = engines.first().map_or(0, |engine| engine.info().weight_bytes);
    Ok(Report {
        model: files.name().to_owned(),
        instances: instances.collect(),
        done,
        seconds,
        weight_bytes,
        weight_copies: copies.len(),
        pss_bytes: report::pss(),
        processes: false,
    })
}

/// What each instance has of the machine.
fn parts(args: &ThroughputArgs, config: &EngineConfig) -> Result<Vec<Part>> {
    let topology = Topology::detect();
    let lists = lists(&args.engine.platform)?;
    let asked = args.instances.map(usize::from);
    let mut parts = match (lists, asked) {
        (Some(lists), Some(n)) if n != lists.len() => {
            let what =
                format!("--cores has {} lists of CPUs, --instances asks for {n} instances", lists.len());
            return Err(Usage(what).into());
        }
        (Some(lists), _) => lists.iter().map(|cpus| Part::of_cpus(&topology, cpus.clone())).collect(),
        (None, asked) => {
            let node = |id: &usize| topology.cpu(*id).map_or(0, |cpu| cpu.node);
            let nodes: BTreeSet<usize> = config.cpus.iter().map(node).collect();
            let n = asked.unwrap_or_else(|| nodes.len().max(1));
            partition(&topology, &config.cpus, n).map_err(|error| Usage(format!("--instances: {error}")))?
        }
    };
    if let Some(nodes) = args.nodes.as_ref().map(|list| &list.0) {
        if nodes.len() != parts.len() {
            let what =
                format!("--nodes names {} nodes, and there are {} instances", nodes.len(), parts.len());
            return Err(Usage(what).into());
        }
        let known: Vec<usize> = topology.nodes().iter().map(|node| node.id).collect();
        for (part, &node) in parts.iter_mut().zip(nodes) {
            if !known.contains(&node) {
                return Err(Usage(format!("--nodes: there is no node {node}; there are: {known:?}")).into());
            }
            part.nodes = vec![node];
        }
    }
    Ok(parts)
}

/// The CPUs of each instance, if they are named; then they say how many threads there are, too.
fn lists(platform: &PlatformArgs) -> Result<Option<&[Vec<usize>]>> {
    match (platform.lists(), platform.threads) {
        (Some(_), Some(threads)) => {
            let what = format!(
                "--threads {threads}: with several lists of --cores, each instance has a thread on each of its CPUs; \
                 leave --threads out, or CPUs"
            );
            Err(Usage(what).into())
        }
        (lists, _) => Ok(lists),
    }
}

/// Warns of CPUs that several instances were given, and of more threads than any instance has.
fn warn_of_few_cpus(platform: &PlatformArgs, parts: &[Part]) {
    let shared = shared_cpus(parts);
    if platform.lists().is_some() && !shared.is_empty() {
        tracing::warn!("--cores: several instances wait for each other on CPUs {}", format_cpu_list(&shared));
    }
    let most = parts.iter().map(|part| part.cpus.len()).max().unwrap_or(0);
    platform.warn_of_more_than(most, &format!("no instance has more threads than {most}"));
}

/// The CPUs that belong to more than one part.
fn shared_cpus(parts: &[Part]) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    parts.iter().flat_map(|part| &part.cpus).copied().filter(|&cpu| !seen.insert(cpu)).collect()
}

fn prompts(files: &ModelFiles, args: &ThroughputArgs) -> Result<Vec<Vec<u32>>> {
    let prompts: Vec<Vec<u32>> = match &args.work.prompts {
        Some(path) => {
            let text = read_text(path)?;
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            lines.map(|line| encode(files, line, "--random")).collect::<Result<_>>()?
        }
        None => (0..RANDOM.0 as u64).map(|i| random_prompt(files, args, i)).collect(),
    };
    if prompts.is_empty() {
        return Err(Usage("--prompts: the file holds no prompt".to_owned()).into());
    }
    for ids in &prompts {
        request(files, args, ids.clone())?;
    }
    Ok(prompts)
}

/// The ids of prompt `number`, the same in every run; what the context leaves for them after the new tokens.
fn random_prompt(files: &ModelFiles, args: &ThroughputArgs, number: u64) -> Vec<u32> {
    let spec = files.spec();
    let new = args.length.max_new_tokens.unwrap_or(RANDOM.2);
    let n = RANDOM.1.min(spec.max_positions.saturating_sub(new)).max(1);
    // Multiplying by an odd number and taking the upper half spreads consecutive numbers over the vocabulary.
    let id = |i: u64| (number * 0x1000 + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (0..n as u64).map(|i| (id(i) % spec.vocab_size as u64) as u32).collect()
}

/// The request for one prompt, checked against the model.
fn request(files: &ModelFiles, args: &ThroughputArgs, ids: Vec<u32>) -> Result<Request> {
    let default = if args.work.random { RANDOM.2 } else { DEFAULT_NEW_TOKENS };
    let mut request = Options::new(&args.length, &args.sampling, default).request(files, ids)?;
    if args.work.random {
        request.eos.clear();
    }
    Ok(request)
}

/// A bar over the prompts, if somebody sees it.
fn progress(prompts: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("answering {bar:30} {pos}/{len}  {eta}");
    ProgressBar::new(prompts as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
