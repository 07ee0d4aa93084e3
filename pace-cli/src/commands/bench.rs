//! `pace-cli bench`: prefill and decode, tokens per second, in llama-bench's habits.

mod engines;
mod measure;
mod memory;
mod report;
mod workload;

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use pace_runtime::config::Env;
use pace_runtime::{Trace, write_traces};

use self::engines::{Engines, Setup};
use self::measure::{Measured, measure};
use self::report::{Layout, Record, Report};
use self::workload::Workload;
use crate::args::{BenchArgs, HugePageChoice};
use crate::exit::Usage;

pub(crate) fn run(env: &Env, args: BenchArgs) -> Result<()> {
    let shown = args.profile || args.trace.is_some();
    let workloads = Workload::list(&args)?;
    let setups = Setup::list(env, &args, &workloads, shown || env.log_level.profiles())?;
    let trace = args.trace.as_deref().map(create).transpose()?;
    let runs = args.repetitions as usize;
    let bar = progress(setups.len() * workloads.len() * (runs + 1));
    let mut report = Report::new(args.output, layout(&args));
    let mut traces = Vec::new();
    for setup in &setups {
        let engines = Engines::start(setup)?;
        for workload in &workloads {
            bar.set_message(format!("{} {workload}", setup.files.name()));
            let mut measured = measure(&engines, workload, runs, || bar.inc(1))?;
            traces.extend(measured.trace.take().map(|trace| (workload.to_string(), trace)));
            if !shown {
                log_profile(workload, &mut measured);
            }
            let record = Record::new(setup, &engines, workload, &measured, layout(&args));
            bar.suspend(|| report.add(record))?;
        }
        report.note(&engines);
    }
    bar.finish_and_clear();
    report.finish()?;
    if let Some((path, file)) = args.trace.as_deref().zip(trace) {
        write_trace(&traces, file).with_context(|| format!("cannot write to {}", path.display()))?;
    }
    Ok(())
}

fn layout(args: &BenchArgs) -> Layout {
    let engines = args.engines.0.iter();
    Layout {
        kv_cache: engines.clone().any(|e| e.kv.kv_cache.is_some() || e.kv.bmc_splits.is_some()),
        kv_dtype: engines.clone().any(|e| e.kv_dtype.is_some()),
        hugepages: engines.clone().any(|e| e.platform.hugepages != HugePageChoice::Auto),
        instances: args.instances != [1],
        batch: args.batch != [1],
    }
}

/// The file for a trace; a path that cannot be written to is found out before anything runs.
fn create(path: &Path) -> Result<File> {
    File::create(path).map_err(|e| Usage(format!("--trace {}: {e}", path.display())).into())
}

fn write_trace(traces: &[(String, Trace)], file: File) -> std::io::Result<()> {
    let traces: Vec<_> = traces.iter().map(|(name, trace)| (name.as_str(), trace)).collect();
    write_traces(&traces, &mut BufWriter::new(file))
}

/// Moves a profile, which only the log level asked for, to stderr.
fn log_profile(workload: &Workload, measured: &mut Measured) {
    if let Some(profile) = measured.profile.take() {
        // Nobody may be there to read it.
        let _ = write!(std::io::stderr(), "{workload}\n{profile}");
    }
}

/// A bar on stderr, if that is a terminal.
fn progress(steps: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta}");
    ProgressBar::new(steps as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
