//! Whole models by each backend, in one run: what the choice of backends is worth.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use pace_benches::Bench;
use pace_benches::paired::median;
use pace_benches::roofline::limits::Limits;
use pace_kernels::{DType, Unit};
use pace_ops::{Backend, OperatorConfig, Plan};
use pace_runtime::plan_store::{self, PlanKey};
use pace_runtime::{EngineConfig, EngineHandle, ModelFiles, ModelRef, Request, TokenEvent};

/// Prefill and decode of one model under several configurations of backends, which take turns.
///
/// Each configuration is an engine of its own, so the model is in memory once for each. Ratios are medians, sample by
/// sample, to the first configuration and to the best one whose backends were not chosen by themselves. `imbps=N` is
/// IMBPS in N chunks; the row `imbps, best` is the fastest of those. Stop everything else first.
#[derive(Debug, Parser)]
#[command(name = "backends", version)]
struct Args {
    /// The model: a directory, a .gguf file or random:NAME.
    #[arg(short, long, default_value = "random:llama-1b")]
    model: String,
    /// Alternations.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    samples: u32,
    /// Prompts to prefill, in tokens.
    #[arg(short = 'p', long, value_delimiter = ',', default_values_t = [512, 2048])]
    n_prompt: Vec<usize>,
    /// Tokens to decode.
    #[arg(short = 'n', long, default_value_t = 32)]
    n_gen: usize,
    /// Configurations: a backend for every operator that has it, imbps=N, auto-rule for the built-in rule, or
    /// auto-plan for a measured plan.
    #[arg(long, value_delimiter = ',', default_values_t = DEFAULT.map(str::to_owned))]
    configs: Vec<String>,
    /// A folder with plans, as `pace-cli plan` keeps them; what it lacks is measured and saved there. Without it
    /// auto-plan is measured anew.
    #[arg(long)]
    plans: Option<PathBuf>,
}

const DEFAULT: [&str; 6] = ["tpp", "jit", "imbps=1", "imbps=2", "auto-rule", "auto-plan"];

fn main() -> Result<()> {
    let args = Args::parse();
    let files = Arc::new(ModelFiles::open(&ModelRef::parse(&args.model)?)?);
    let engines = args
        .configs
        .iter()
        .map(|name| start(&files, name, args.plans.as_deref()))
        .collect::<Result<Vec<_>>>()?;
    // After the engines: it pins this thread to one core, which threads that start later would inherit.
    let bench = Bench::new();
    let limits = Limits::new(&bench);
    let spec = files.spec();
    let linear =
        2 * (spec.parameters() - spec.vocab_size * spec.hidden * if spec.tied_embeddings { 1 } else { 2 });
    let gflop = linear as f64 / 1e9;
    let mut out = std::io::stdout().lock();
    let first = &args.configs[0];
    writeln!(
        out,
        "| test | backends | tokens/s | to {first} | to the best | linear layers, of the bf16 peak |"
    )?;
    writeln!(out, "|---|---|---:|---:|---:|---:|")?;
    let prefill = args.n_prompt.iter().map(|&n| (n, 1));
    for (prompt, new) in prefill.chain([(1, args.n_gen)]).filter(|&(p, n)| p + n > 1) {
        let measured = measure(&engines, &limits, args.samples, prompt, new)?;
        let test = if new == 1 { format!("prefill {prompt}") } else { format!("decode {new}") };
        let rows = || args.configs.iter().map(String::as_str).zip(&measured);
        let best = fastest(rows().filter(|(name, _)| !name.starts_with("auto"))).unwrap_or(&measured[0]);
        let chunks =
            fastest(rows().filter(|(name, _)| name.starts_with("imbps"))).map(|it| ("imbps, best", it));
        for (name, it) in rows().chain(chunks) {
            let (rate, to_first) = (median(&mut it.rates.clone()), it.ratio(&measured[0].rates));
            let (to_best, of_peak) = (it.ratio(&best.rates), gflop * it.ratio(&it.peaks));
            writeln!(out, "| {test} | {name} | {rate:.1} | {to_first:.3} | {to_best:.3} | {of_peak:.3} |")?;
        }
        out.flush()?;
    }
    Ok(())
}

/// The configuration with the highest median.
fn fastest<'a>(rows: impl Iterator<Item = (&'a str, &'a Samples)>) -> Option<&'a Samples> {
    let rate = |samples: &Samples| median(&mut samples.rates.clone());
    rows.map(|(_, samples)| samples).max_by(|a, b| rate(a).total_cmp(&rate(b)))
}

/// The samples of one configuration.
#[derive(Clone, Default)]
struct Samples {
    /// Tokens a second.
    rates: Vec<f64>,
    /// The bf16 peak around each, in GFLOP/s.
    peaks: Vec<f64>,
}

impl Samples {
    /// The median of the rates by `other`, sample by sample.
    fn ratio(&self, other: &[f64]) -> f64 {
        median(&mut self.rates.iter().zip(other).map(|(rate, other)| rate / other).collect::<Vec<_>>())
    }
}

/// Lets the engines take turns. The first round is not counted.
fn measure(
    engines: &[EngineHandle],
    limits: &Limits<'_>,
    samples: u32,
    prompt: usize,
    new: usize,
) -> Result<Vec<Samples>> {
    let mut measured = vec![Samples::default(); engines.len()];
    for round in 0..=samples {
        for (engine, measured) in engines.iter().zip(&mut measured) {
            let before = limits.peak(Unit::Bf16);
            let (first, rest) = run(engine, prompt, new)?;
            let after = limits.peak(Unit::Bf16);
            // The forward of a decode's one prompt token makes the first of its new tokens.
            let (tokens, time) = if new == 1 { (prompt, first) } else { (new, first + rest) };
            if round > 0 {
                measured.rates.push(tokens as f64 / time.as_secs_f64());
                measured.peaks.push((before + after) / 2.0);
            }
        }
    }
    Ok(measured)
}

/// Times of the prompt and of the answer.
fn run(engine: &EngineHandle, prompt: usize, new: usize) -> Result<(Duration, Duration)> {
    let vocab = engine.info().spec.vocab_size as u32;
    let prompt = (0..prompt as u32).map(|i| i * 331 % vocab).collect();
    for event in engine.submit(Request { prompt, max_new_tokens: new, ..Request::default() })? {
        match event {
            TokenEvent::Token { .. } => {}
            TokenEvent::Finished(finish) => return Ok((finish.prompt_time, finish.predicted_time)),
            TokenEvent::Failed(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("the engine stopped")
}

/// An engine of a configuration.
fn start(files: &Arc<ModelFiles>, name: &str, plans: Option<&Path>) -> Result<EngineHandle> {
    let mut config = EngineConfig::detect(DType::Bf16, None)?;
    match name.split_once('=').unwrap_or((name, "")) {
        ("auto-rule", _) => {}
        ("auto-plan", _) => config.load.plan = Some(Arc::new(plan(&config, files, plans)?)),
        (backend, chunks) => {
            config.load.operators = everywhere(backend.parse()?)?;
            if !chunks.is_empty() {
                config.load.imbps_chunks = Some(chunks.parse().context("chunks of IMBPS")?);
            }
        }
    }
    config.profile = false;
    EngineHandle::start(files, config, Box::new(|_, _| {})).with_context(|| format!("starting with {name}"))
}

/// A backend for every operator that has it.
fn everywhere(backend: Backend) -> Result<OperatorConfig> {
    let mut operators = OperatorConfig::default();
    for op in OperatorConfig::OPERATORS.into_iter().filter(|op| op.backends().contains(&backend)) {
        operators.set(op.name(), backend.name())?;
    }
    Ok(operators)
}

/// The plan of a model, as `pace-cli plan` makes it; kept in `dir`, if there is one.
fn plan(config: &EngineConfig, files: &ModelFiles, dir: Option<&Path>) -> Result<Plan> {
    let (key, shapes) = (PlanKey::detect(config)?, config.operator_shapes(files));
    let known = dir.and_then(|dir| plan_store::load(dir, &key)).unwrap_or_default();
    let missing: Vec<_> = shapes.into_iter().filter(|&shape| known.choice(shape).is_none()).collect();
    let mut plan = plan_store::measure(config, &missing, &mut |_, _| {})?;
    plan.complete(known);
    Ok(match dir {
        Some(dir) => plan_store::save(dir, &key, plan)?,
        None => plan,
    })
}
