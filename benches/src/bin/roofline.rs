//! Measures PACE's kernels against the limits of this machine, in one run, alternating.

use std::io::Write;

use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use pace_benches::roofline::{KERNELS, Options, Report, Row, run};

/// PACE's kernels as fractions of what this machine gives: registers, memory, caches.
///
/// Every figure alternates with its limit in one run; values are medians. Stop everything else first,
/// and let the system favour this process if you can (`chrt -f 50`).
#[derive(Debug, Parser)]
#[command(name = "roofline", version)]
struct Args {
    /// A table for people, or the whole record.
    #[arg(long, value_enum, default_value_t = Format::Md)]
    format: Format,
    /// Alternations for each row.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    samples: u32,
    /// Kernels to measure, by the beginning of their names; all if none is given.
    #[arg(long, value_delimiter = ',', value_parser = kernel_name)]
    only: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Md,
    Json,
}

fn kernel_name(name: &str) -> Result<String, String> {
    if KERNELS.iter().any(|kernel| kernel.starts_with(name)) {
        Ok(name.to_owned())
    } else {
        Err(format!("no kernel begins with `{name}`; known: {}", KERNELS.join(", ")))
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}")?;
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let options = Options { samples: args.samples as usize, only: args.only };
    let report = run(&options, &|what| bar.set_message(what.to_owned()));
    bar.finish_and_clear();
    let text = match args.format {
        Format::Md => table(&report),
        Format::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn table(report: &Report) -> String {
    let (machine, peaks) = (&report.machine, &report.peaks);
    let mut text = format!(
        "{}, {}, {} threads of {} CPUs\n\nf32 {:.0} GFLOP/s, bf16 {:.0} GFLOP/s, int8 {:.0} Gop/s, \
         memory {:.1} GB/s, L2 {:.0} GB/s\n\n| kernel | shape | value | limit beside it | fraction |\n\
         |---|---|---|---|---|\n",
        machine.cpu,
        machine.isa,
        machine.threads,
        machine.cpus,
        peaks.f32_gflops,
        peaks.bf16_gflops,
        peaks.int8_gops,
        peaks.read_gbs,
        peaks.l2_gbs,
    );
    for row in &report.results {
        let limit = row.paired.map_or_else(String::new, |limit| format!("{limit:.1} {}", row.unit));
        let fraction = row.fraction.map_or_else(String::new, |fraction| format!("{fraction:.3}"));
        let value = format!("{:.2} {}", row.value, row.unit);
        text.push_str(&format!("| {} | {} | {value} | {limit} | {fraction} |\n", row.kernel, shape(row)));
    }
    text
}

/// What of a shape applies to the row.
fn shape(row: &Row) -> String {
    let parts = [
        ("m", row.m),
        ("k", row.k),
        ("n", row.n),
        ("head_dim", row.head_dim),
        ("tokens", row.tokens),
        ("sequences", row.sequences),
    ];
    let parts: Vec<_> =
        parts.iter().filter_map(|(name, value)| value.map(|value| format!("{name} {value}"))).collect();
    parts.join(", ")
}
