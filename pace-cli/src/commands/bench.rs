//! `pace-cli bench`: prefill and decode, tokens per second, in llama-bench's habits.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use pace_ops::{Backend, Operator, OperatorConfig};
use pace_runtime::config::Env;
use pace_runtime::{Finish, ModelFiles, ProfileReport, Request, Trace, write_traces};
use serde_json::{Value, json};

use super::answer;
use crate::args::{BenchArgs, BenchFormat, WeightChoice};
use crate::exit::Usage;
use crate::operators;
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
    /// Where the time of the counted runs went.
    profile: Option<ProfileReport>,
    /// The calls of the last run.
    trace: Option<Trace>,
}

pub(crate) fn run(env: &Env, args: BenchArgs) -> Result<()> {
    let shown = args.profile || args.trace.is_some();
    let profile = shown || env.log_level.profiles();
    let (session, trace) = Session::start_profiled(env, &args.engine, profile, |files| {
        check(files, &args)?;
        args.trace.as_deref().map(create).transpose()
    })?;
    let runs = args.repetitions as usize;
    let tests = [(args.n_prompt, 0), (0, args.n_gen)].into_iter().filter(|&(p, n)| p + n > 0);
    let bar = progress(tests.clone().count() * (runs + 1));
    let mut results: Vec<TestResult> =
        tests.map(|(p, n)| measure(&session, p, n, runs, &bar)).collect::<Result<_>>()?;
    bar.finish_and_clear();
    if let Some((path, file)) = args.trace.as_deref().zip(trace) {
        write_trace(&results, file).with_context(|| format!("cannot write to {}", path.display()))?;
    }
    if !shown {
        log_profiles(&mut results);
    }
    match args.output {
        BenchFormat::Json => output::json(&results.iter().map(|r| to_json(&session, &args, r)).collect())?,
        BenchFormat::Md => output::stream(&to_markdown(&session, &args, &results))?,
    }
    Ok(())
}

/// The file for a trace; a path that cannot be written to is found out before anything runs.
fn create(path: &Path) -> Result<File> {
    File::create(path).map_err(|e| Usage(format!("--trace {}: {e}", path.display())).into())
}

fn write_trace(results: &[TestResult], file: File) -> std::io::Result<()> {
    let traces: Vec<_> = results.iter().filter_map(|r| Some((r.name.as_str(), r.trace.as_ref()?))).collect();
    write_traces(&traces, &mut BufWriter::new(file))
}

/// Moves the profiles, which only the log level asked for, to stderr.
fn log_profiles(results: &mut [TestResult]) {
    for result in results {
        if let Some(report) = result.profile.take() {
            // Nobody may be there to read it.
            let _ = write!(std::io::stderr(), "{}\n{report}", result.name);
        }
    }
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
    let engine = &session.engine;
    let (mut samples, mut ttft) = (Vec::new(), Vec::new());
    for run in 0..=runs {
        match run {
            1 => engine.reset_profile()?,
            _ if run == runs => engine.reset_trace()?,
            _ => {}
        }
        let finish =
            answer::run(engine, request(session, n_prompt, n_gen, run as u64), |_, _| Ok(()))?.finish;
        bar.inc(1);
        if run > 0 {
            samples.push(tokens_per_second(&finish, n_prompt, n_gen));
            ttft.push(finish.prompt_time.as_secs_f64());
        }
    }
    let name = if n_gen == 0 { format!("pp{n_prompt}") } else { format!("tg{n_gen}") };
    ttft.sort_by(f64::total_cmp);
    let (profile, trace) = (engine.profile()?, engine.trace()?);
    Ok(TestResult { name, n_prompt, n_gen, samples, ttft: ttft[ttft.len() / 2], profile, trace })
}

/// Fixed ids, spread over the vocabulary; the numbers do not depend on which.
fn request(session: &Session, n_prompt: usize, n_gen: usize, run: u64) -> Request {
    let vocab = session.files.spec().vocab_size as u64;
    let id = |i: u64| u32::try_from((i * 7919 + run * 104_729) % vocab).unwrap_or(0);
    let prompt = (0..n_prompt.max(1) as u64).map(id).collect();
    Request { prompt, max_new_tokens: n_gen.max(1), ..Request::default() }
}

fn tokens_per_second(finish: &Finish, n_prompt: usize, n_gen: usize) -> f64 {
    let prompt_s = finish.prompt_time.as_secs_f64();
    if n_gen == 0 {
        return n_prompt as f64 / prompt_s;
    }
    // The one prompt token's forward made the first of the new tokens.
    n_gen as f64 / (prompt_s + finish.predicted_time.as_secs_f64())
}

fn to_json(session: &Session, args: &BenchArgs, result: &TestResult) -> Value {
    let info = session.engine.info();
    let (mean, sd) = mean_and_sd(&result.samples);
    let mut out = json!({
        "model": session.files.name(),
        "size_bytes": info.weight_bytes,
        "params": info.spec.parameters(),
        "dtype": dtype(args),
        "isa": info.isa.to_string(),
        "op_config": op_config(&session.operators),
        "kv_cache": session.engine.kv_cache().to_string(),
        "threads": info.threads,
        "operators": operators::to_json(&info.operators),
        "huge_page_share": info.huge_share,
        "test": result.name,
        "n_prompt": result.n_prompt,
        "n_gen": result.n_gen,
        "avg_ts": mean,
        "stddev_ts": sd,
        "samples_ts": result.samples,
        "ttft_ms": result.ttft * 1e3,
    });
    if let Some(profile) = &result.profile {
        out["profile"] = json!(profile);
    }
    out
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
    out +=
        &format!("\n{}\noperators by {}\n", operators::huge_pages(info), operators::to_text(&info.operators));
    for (name, profile) in results.iter().filter_map(|r| Some((&r.name, r.profile.as_ref()?))) {
        out += &format!("\n{name}:\n```text\n{profile}```\n");
    }
    out
}

/// What was asked for: one backend for all, or those that are not left to `auto`.
fn op_config(operators: &OperatorConfig) -> String {
    let (_, first) = operators.iter().next().unwrap_or((Operator::Norm, Backend::Auto));
    if operators.iter().all(|(_, backend)| backend == first) {
        return first.to_string();
    }
    let named = operators.iter().filter(|(_, backend)| *backend != Backend::Auto);
    let entries: Vec<_> = named.map(|(op, backend)| format!("{op}={backend}")).collect();
    entries.join(",")
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
