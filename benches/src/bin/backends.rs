//! Whole models by each backend, in one run: what the choice of backends is worth.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use pace_benches::Bench;
use pace_benches::paired::median;
use pace_benches::roofline::limits::Limits;
use pace_kernels::{DType, Unit};
use pace_ops::{Backend, OperatorConfig};
use pace_runtime::{EngineConfig, EngineHandle, ModelFiles, ModelRef, Request, TokenEvent};

/// Prefill and decode of one model under several configurations of backends, which take turns.
///
/// Each configuration is an engine of its own, so the model is in memory once for each. Ratios are medians, sample by
/// sample, to the first configuration. Stop everything else first.
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
    /// Configurations: a backend for every operator that has it, or `auto`.
    #[arg(long, value_delimiter = ',', default_values_t = ["tpp".to_owned(), "jit".to_owned(), "imbps".to_owned(), "auto".to_owned()])]
    configs: Vec<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let files = Arc::new(ModelFiles::open(&ModelRef::parse(&args.model)?)?);
    let engines = args.configs.iter().map(|name| start(&files, name)).collect::<Result<Vec<_>>>()?;
    // After the engines: it pins this thread to one core, which threads that start later would inherit.
    let bench = Bench::new();
    let limits = Limits::new(&bench);
    let spec = files.spec();
    let linear =
        2 * (spec.parameters() - spec.vocab_size * spec.hidden * if spec.tied_embeddings { 1 } else { 2 });
    let gflop = linear as f64 / 1e9;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "| test | backends | tokens/s | to {} | linear layers, of the bf16 peak |",
        args.configs[0]
    )?;
    writeln!(out, "|---|---|---:|---:|---:|")?;
    let prefill = args.n_prompt.iter().map(|&n| (n, 1));
    for (prompt, new) in prefill.chain([(1, args.n_gen)]).filter(|&(p, n)| p + n > 1) {
        let measured = measure(&engines, &limits, args.samples, prompt, new)?;
        let test = if new == 1 { format!("prefill {prompt}") } else { format!("decode {new}") };
        for (name, engine) in args.configs.iter().zip(&measured) {
            let rate = median(&mut engine.rates.clone());
            let (to_first, of_peak) = (engine.ratio(&measured[0].rates), gflop * engine.ratio(&engine.peaks));
            writeln!(out, "| {test} | {name} | {rate:.1} | {to_first:.3} | {of_peak:.3} |")?;
        }
        out.flush()?;
    }
    Ok(())
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

/// An engine with a backend for every operator that has it.
fn start(files: &Arc<ModelFiles>, name: &str) -> Result<EngineHandle> {
    let backend: Backend = name.parse()?;
    let mut config = EngineConfig::detect(DType::Bf16, None)?;
    let mut operators = OperatorConfig::default();
    for op in OperatorConfig::OPERATORS.into_iter().filter(|op| op.backends().contains(&backend)) {
        operators.set(op.name(), backend.name())?;
    }
    config.load.operators = operators;
    config.profile = false;
    EngineHandle::start(files, config, Box::new(|_, _| {})).with_context(|| format!("starting with {name}"))
}
