//! `pace-cli quantize` and `pace-cli pack`.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pace_ops::OperatorConfig;
use pace_runtime::config::Env;
use pace_runtime::{EngineConfig, ModelFiles, PackReport, PackTarget};
use serde_json::{Value, json};

use crate::args::{
    EngineArgs, Format, PackArgs, PackFloatsArgs, PlatformArgs, Quant, QuantArgs, QuantizeArgs, WeightChoice,
};
use crate::exit::Usage;
use crate::hub::Interrupted;
use crate::interrupt;
use crate::operators;
use crate::output::{self, bytes};
use crate::session::{load_progress, open};

/// `pace-cli quantize`.
pub(crate) fn quantize(env: &Env, args: &QuantizeArgs) -> Result<()> {
    match args.quant.quant {
        Some(Quant::Int8 | Quant::Format(_)) => run(env, &args.target, WeightChoice::Auto, &args.quant),
        Some(Quant::None) => {
            Err(Usage("--quant none: `pace-cli pack` writes floating-point weights".to_owned()).into())
        }
        None => Err(Usage("--quant: a format is needed, such as int8:64 or int4".to_owned()).into()),
    }
}

/// `pace-cli pack`.
pub(crate) fn run_floats(env: &Env, args: &PackFloatsArgs) -> Result<()> {
    run(env, &args.target, args.dtype, &QuantArgs::default())
}

fn run(env: &Env, args: &PackArgs, dtype: WeightChoice, quant: &QuantArgs) -> Result<()> {
    let engine = EngineArgs {
        model: Some(args.source.clone()),
        dtype: Some(dtype),
        allow_nonfinite: args.allow_nonfinite,
        platform: PlatformArgs { threads: args.threads, ..PlatformArgs::default() },
        quant: quant.clone(),
        ..EngineArgs::default()
    };
    let mut config = engine.config(env)?;
    // One layout for all: whoever wants another backend's says so here by LIBXSMM_BLOCK_SIZE alone.
    config.load.operators = OperatorConfig::default();
    config.load.plan = None;
    let files = open(env, engine.model.as_deref())?;
    let report = write(&files, &config, args)?;
    match args.format {
        Format::Json => output::json(&to_json(&files, args, &report))?,
        Format::Text => output::stream(&to_text(&files, args, &report))?,
    }
    Ok(())
}

/// Packs and writes. Ctrl-C, or another signal that ends, ends the process while nothing is written yet, and afterwards the
/// writing.
fn write(files: &ModelFiles, config: &EngineConfig, args: &PackArgs) -> Result<PackReport> {
    let target = PackTarget { dir: &args.target, force: args.force };
    let (bar, stop) = (writing_bar(), Arc::new(AtomicBool::new(false)));
    let mut watching = None;
    let mut written = |done, all| {
        if watching.is_none() {
            let stop = Arc::clone(&stop);
            watching = Some(interrupt::on_end(move || stop.store(true, Ordering::Relaxed)));
        }
        bar.set_length(all);
        bar.set_position(done);
        if stop.load(Ordering::Relaxed) { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    };
    let report = files.pack(config, target, &load_progress(), &mut written);
    bar.finish_and_clear();
    if stop.load(Ordering::Relaxed) && report.is_err() {
        return Err(Interrupted.into());
    }
    Ok(report?)
}

fn writing_bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("writing {bar:30} {decimal_bytes}/{decimal_total_bytes}  {eta}");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn to_json(files: &ModelFiles, args: &PackArgs, report: &PackReport) -> Value {
    let file =
        |(path, bytes): &(std::path::PathBuf, u64)| json!({"path": path.to_string_lossy(), "bytes": bytes});
    json!({
        "model": files.name(),
        "path": args.target.to_string_lossy(),
        "files": report.files.iter().map(file).collect::<Vec<_>>(),
        "bytes": total(report),
        "formats": operators::formats_json(&report.formats, files.spec()),
        "losses": operators::losses_json(&report.losses),
        "seconds": {"pack": report.pack_time.as_secs_f64(), "write": report.write_time.as_secs_f64()},
    })
}

fn to_text(files: &ModelFiles, args: &PackArgs, report: &PackReport) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<15}{value}");
    };
    row("path", args.target.display().to_string());
    row("bytes", bytes(usize::try_from(total(report)).unwrap_or(usize::MAX)));
    row("packed as", operators::formats_text(&report.formats, files.spec()));
    operators::losses_text(&report.losses).for_each(|line| row("", line));
    let (pack, write) = (report.pack_time.as_secs_f64(), report.write_time.as_secs_f64());
    row("seconds", format!("{pack:.2} to pack, {write:.2} to write"));
    out
}

fn total(report: &PackReport) -> u64 {
    report.files.iter().map(|(_, bytes)| bytes).sum()
}
