//! `pace-cli bench`: prefill and decode, tokens per second, in llama-bench's habits.

use std::io::IsTerminal;

use anyhow::Result;
use indicatif::ProgressBar;
use pace_runtime::config::Env;
use pace_runtime::{ModelFiles, Request};
use serde_json::{Value, json};

use super::answer;
use crate::args::{BenchArgs, BenchFormat, WeightChoice};
use crate::exit::Usage;
use crate::output::{self, bytes, count};
use crate::session::Session;

/// One row: a test and its samples.
struct TestResult {
    name: String,
    n_prompt: usize,
    n_gen: usize,
    /// Tokens per second of each counted run.
    samples: Vec<f64>,
    /// Seconds to the first token, median.
    ttft: f64,
}

pub(crate) fn run(env: &Env, args: BenchArgs) -> Result<()> {
    let (session, ()) = Session::start(env, &args.engine, |files| check(files, &args))?;
    let runs = args.repetitions as usize;
    let tests = [(args.n_prompt, 0), (0, args.n_gen)].into_iter().filter(|&(p, n)| p + n > 0);
    let bar = progress(tests.clone().count() * (runs + 1));
    let results: Vec<TestResult> =
        tests.map(|(p, n)| measure(&session, p, n, runs, &bar)).collect::<Result<_>>()?;
    bar.finish_and_clear();
    match args.output {
        BenchFormat::Json => output::json(&results.iter().map(|r| to_json(&session, &args, r)).collect())?,
        BenchFormat::Md => output::stream(&to_markdown(&session, &args, &results))?,
    }
    Ok(())
}

fn check(files: &ModelFiles, args: &BenchArgs) -> Result<()> {
    let max = files.spec().max_positions;
    if (args.n_prompt, args.n_gen) == (0, 0) {
        return Err(Usage("nothing to measure: both -p and -n are 0".to_owned()).into());
    }
    match [("-p", args.n_prompt), ("-n", args.n_gen)].into_iter().find(|&(_, n)| n >= max) {
        Some((flag, n)) => Err(Usage(format!("{flag} {n}: the model's context holds {max} tokens")).into()),
        None => Ok(()),
    }
}

/// One test: `n_prompt` tokens of prefill, or `n_gen` forwards of one token each. The first run is not counted.
fn measure(
    session: &Session,
    n_prompt: usize,
    n_gen: usize,
    runs: usize,
    bar: &ProgressBar,
) -> Result<TestResult> {
    let vocab = session.files.spec().vocab_size as u64;
    let (mut samples, mut ttft) = (Vec::new(), Vec::new());
    for run in 0..=runs as u64 {
        // Fixed ids, spread over the vocabulary; the numbers do not depend on which.
        let id = |i: u64| u32::try_from((i * 7919 + run * 104_729) % vocab).unwrap_or(0);
        let prompt: Vec<u32> = (0..n_prompt.max(1) as u64).map(id).collect();
        let request = Request { prompt, max_new_tokens: n_gen.max(1), ..Request::default() };
        let finish = answer::run(&session.engine, request, |_, _| Ok(()))?.finish;
        bar.inc(1);
        let prompt_s = finish.prompt_time.as_secs_f64();
        let (tokens, seconds) = if n_gen == 0 {
            (n_prompt, prompt_s)
        } else {
            // The one prompt token's forward made the first of the new tokens.
            (n_gen, prompt_s + finish.predicted_time.as_secs_f64())
        };
        if run > 0 {
            samples.push(tokens as f64 / seconds);
            ttft.push(prompt_s);
        }
    }
    let name = if n_gen == 0 { format!("pp{n_prompt}") } else { format!("tg{n_gen}") };
    ttft.sort_by(f64::total_cmp);
    Ok(TestResult { name, n_prompt, n_gen, samples, ttft: ttft[ttft.len() / 2] })
}

fn to_json(session: &Session, args: &BenchArgs, result: &TestResult) -> Value {
    let info = session.engine.info();
    let (mean, sd) = mean_and_sd(&result.samples);
    json!({
        "model": session.files.name(),
        "size_bytes": info.weight_bytes,
        "params": info.spec.parameters(),
        "dtype": dtype(args),
        "isa": info.isa.to_string(),
        "op_config": "native",
        "kv_cache": pace_runtime::kv_cache::KvCacheKind::default().name(),
        "threads": info.threads,
        "test": result.name,
        "n_prompt": result.n_prompt,
        "n_gen": result.n_gen,
        "avg_ts": mean,
        "stddev_ts": sd,
        "samples_ts": result.samples,
        "ttft_ms": result.ttft * 1e3,
    })
}

fn to_markdown(session: &Session, args: &BenchArgs, results: &[TestResult]) -> String {
    let info = session.engine.info();
    let mut out = String::from(
        "| model | size | params | dtype | isa | threads | test | t/s |\n|---|---:|---:|---|---|---:|---|---:|\n",
    );
    for result in results {
        let (mean, sd) = mean_and_sd(&result.samples);
        out += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {mean:.2} ± {sd:.2} |\n",
            session.files.name(),
            bytes(info.weight_bytes),
            count(info.spec.parameters()),
            dtype(args),
            info.isa,
            info.threads,
            result.name
        );
    }
    out
}

fn dtype(args: &BenchArgs) -> &'static str {
    match args.engine.dtype {
        WeightChoice::F32 => "f32",
        WeightChoice::Auto | WeightChoice::Bf16 => "bf16",
    }
}

/// Mean and sample standard deviation (0 for a single sample).
fn mean_and_sd(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let squares: f64 = samples.iter().map(|s| (s - mean).powi(2)).sum();
    (mean, if samples.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

fn progress(steps: usize) -> ProgressBar {
    if std::io::stderr().is_terminal() { ProgressBar::new(steps as u64) } else { ProgressBar::hidden() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_the_sample_deviation() {
        assert_eq!(mean_and_sd(&[2.0]), (2.0, 0.0));
        let (mean, sd) = mean_and_sd(&[1.0, 3.0]);
        assert!((mean - 2.0).abs() < 1e-12 && (sd - 2f64.sqrt()).abs() < 1e-12);
    }
}
