//! Settings of a whole engine side by side: huge pages, allocators, or any flags of `pace-cli bench`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use pace_benches::settings::{Row, Setting, compare};
use serde_json::{Value, json};

/// Runs `pace-cli bench` under each of some settings, in turns, and compares tokens per second.
///
/// Every run is a process of its own. Figures are medians; a ratio is the median of the ratios to the first setting, round by
/// round. Stop everything else first.
#[derive(Debug, Parser)]
#[command(
    name = "settings",
    version,
    after_help = "Examples:
  settings --set hugepages
  settings --set allocators --rounds 9 --json allocators.json
  settings --run 'one=-t 1' --run 'two=-t 2' -- -m random:llama-1b -p 512 -n 0"
)]
struct Args {
    /// Settings that are often asked about.
    #[arg(long, value_enum, required_unless_present = "run")]
    set: Option<Set>,
    /// A setting: its name and the flags of `bench`, separated by spaces; may be given again.
    #[arg(long, value_name = "NAME=FLAGS", value_parser = Setting::parse)]
    run: Vec<Setting>,
    /// The program.
    #[arg(long, value_name = "FILE", default_value = "target/release/pace-cli")]
    pace: PathBuf,
    /// Counted rounds, after one that is not counted.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Where everything goes as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Flags of `bench` for all settings.
    #[arg(last = true, default_values = ["-m", "random:llama-1b", "-p", "512", "-n", "32", "-r", "1"])]
    bench: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Set {
    /// `--hugepages auto`, `always` and `never`
    Hugepages,
    /// The system's allocator, and those that `pace-cli launch` finds
    Allocators,
    /// Threads pinned or not
    Pinning,
}

impl Set {
    fn settings(self, pace: &Path) -> Vec<Setting> {
        match self {
            Self::Hugepages => {
                ["auto", "always", "never"].map(|value| Setting::flag("--hugepages", value)).into()
            }
            Self::Allocators => [None, Some("tcmalloc"), Some("jemalloc"), Some("mimalloc")]
                .map(|name| Setting::allocator(pace, name))
                .into(),
            Self::Pinning => {
                let setting = |name: &str, flags: &[&str]| Setting {
                    name: name.to_owned(),
                    launch: Vec::new(),
                    flags: flags.iter().map(ToString::to_string).collect(),
                };
                vec![setting("pinned", &[]), setting("not pinned", &["--no-pin"])]
            }
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut settings = args.set.map_or_else(Vec::new, |set| set.settings(&args.pace));
    settings.extend(args.run.iter().cloned());
    let machine = machine(&args.pace)?;
    let steps = settings.len() as u64 * u64::from(args.rounds + 1);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} runs, {eta} left")?;
    let bar = ProgressBar::new(steps).with_style(style);
    let failed = |error: &anyhow::Error| bar.suspend(|| eprintln!("left out: {error:#}"));
    let rows = compare(&args.pace, &args.bench, &settings, args.rounds as usize, failed, || bar.inc(1))?;
    bar.finish_and_clear();
    std::io::stdout().lock().write_all(table(&rows).as_bytes())?;
    if let Some(path) = &args.json {
        let record = json!({"machine": machine, "bench": args.bench, "rounds": args.rounds, "rows": rows});
        std::fs::write(path, format!("{record:#}\n")).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// What `doctor` says about the machine.
fn machine(pace: &Path) -> Result<Value> {
    let out = Command::new(pace).args(["doctor", "--format", "json"]).output();
    let out = out.with_context(|| format!("{}: build it, or name another one by --pace", pace.display()))?;
    ensure!(out.status.success(), "doctor: {}", String::from_utf8_lossy(&out.stderr).trim_end());
    let said: Value = serde_json::from_slice(&out.stdout).context("what doctor wrote")?;
    Ok(said["machine"].clone())
}

fn table(rows: &[Row]) -> String {
    let mut out = String::from(
        "| test | setting | tokens/s | by the first | peak MB | in huge pages |\n|---|---|---:|---:|---:|---:|\n",
    );
    for row in rows {
        let share = row.huge_page_share.map_or_else(String::new, |share| format!("{:.0} %", share * 100.0));
        let _ = writeln!(
            out,
            "| {} | {} | {:.1} | {:.3} | {:.0} | {share} |",
            row.test,
            row.setting,
            row.tokens_per_second,
            row.to_first,
            row.peak_bytes / 1e6,
        );
    }
    out
}
