//! KV caches side by side: time, copies, memory.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use indicatif::ProgressBar;
use pace_benches::Bench;
use pace_benches::kv::{Row, measure};
use pace_benches::machine::Machine;
use pace_benches::svg::Chart;
use serde_json::json;

/// Decoding over every kind of KV cache: storing rows, growing, attention with the heads of Llama-3.2-1B, in as many of its
/// layers as 512 MiB have room for.
///
/// All settings take turns. Attention is timed at twelve steps of each run, storing and growing at all of them. A short
/// table goes to stdout. Stop everything else first.
#[derive(Debug, Parser)]
#[command(name = "kv_cache", version)]
struct Args {
    /// Sequences at a time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    batch: Vec<usize>,
    /// Lengths that the sequences grow to.
    #[arg(long, value_delimiter = ',', default_values_t = [512, 1024, 2048, 4096, 8192])]
    length: Vec<usize>,
    /// Only these settings and `auto`, such as "4 linear, commit"; again for each.
    #[arg(long, value_name = "SETTING")]
    only: Vec<String>,
    /// Counted rounds.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Where a table of all settings goes.
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// Where everything goes as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the plot goes.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let bench = Bench::new();
    let bar = ProgressBar::new((args.batch.len() * args.length.len()) as u64);
    let mut rows = Vec::new();
    for &batch in &args.batch {
        for &length in &args.length {
            rows.extend(measure(&bench, batch, length, args.rounds as usize, &args.only));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    std::io::stdout().lock().write_all(short_table(&args, &rows).as_bytes())?;
    if let Some(path) = &args.table {
        std::fs::write(path, table(&rows))?;
    }
    if let Some(path) = &args.json {
        let record = json!({"machine": Machine::detect(&bench), "rounds": args.rounds, "rows": rows});
        std::fs::write(path, format!("{record:#}\n"))?;
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, plot(&args, &rows))?;
    }
    Ok(())
}

fn at(rows: &[Row], batch: usize, length: usize) -> impl Iterator<Item = &Row> + Clone {
    rows.iter().filter(move |row| (row.batch, row.length) == (batch, length))
}

fn named<'r>(rows: &'r [Row], batch: usize, length: usize, name: &str) -> Option<&'r Row> {
    at(rows, batch, length).find(|row| row.cache == name)
}

/// One line a point: the fastest of all, and `auto` beside it.
fn short_table(args: &Args, rows: &[Row]) -> String {
    let mut out = String::from(
        "| batch | length | tokens/s: dynamic | static | auto | the fastest | auto's time by its | auto: memory held by in use | static's |\n\
         |---:|---:|---:|---:|---:|---|---:|---:|---:|\n",
    );
    for (batch, length) in args.batch.iter().flat_map(|&b| args.length.iter().map(move |&l| (b, l))) {
        let by_speed = |a: &&Row, b: &&Row| a.tokens_per_second.total_cmp(&b.tokens_per_second);
        let Some(fastest) = at(rows, batch, length).max_by(by_speed) else { continue };
        let speed = |name| named(rows, batch, length, name).map_or(f64::NAN, |row| row.tokens_per_second);
        let spare = |name| named(rows, batch, length, name).map_or(f64::NAN, |row| row.spare_ratio);
        let _ = writeln!(
            out,
            "| {batch} | {length} | {:.0} | {:.0} | {:.0} | {} | {:.3} | {:.2} | {:.2} |",
            speed("dynamic"),
            speed("static"),
            speed("auto"),
            fastest.cache,
            fastest.auto_to_this,
            spare("auto"),
            spare("static"),
        );
    }
    out
}

fn table(rows: &[Row]) -> String {
    let mut out = String::from(
        "| batch | length | layers | cache | allocations | tokens/s | auto's time by its | copied MB | peak MB | mean MB | by in use |\n\
         |---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for row in rows {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {:.0} | {:.3} | {:.1} | {:.1} | {:.1} | {:.2} |",
            row.batch,
            row.length,
            row.layers,
            row.cache,
            row.allocations,
            row.tokens_per_second,
            row.auto_to_this,
            row.bytes_copied as f64 / 1e6,
            row.peak_bytes as f64 / 1e6,
            row.mean_bytes / 1e6,
            row.spare_ratio
        );
    }
    out
}

/// Time and memory over the length, for the batch in the middle.
fn plot(args: &Args, rows: &[Row]) -> String {
    let batch = args.batch[args.batch.len() / 2];
    let shown = ["static", "auto", "auto, copy", "4 doubling, copy", "16 linear, copy", "dynamic"];
    let chart = |title: String, value: &dyn Fn(&Row, &Row) -> f64| Chart {
        title,
        x_label: "length in tokens".to_owned(),
        x: args.length.iter().map(ToString::to_string).collect(),
        lines: shown
            .into_iter()
            .map(|name| {
                let point = |&length: &usize| {
                    let pair = named(rows, batch, length, name).zip(named(rows, batch, length, "static"));
                    pair.map_or(f64::NAN, |(row, fixed)| value(row, fixed))
                };
                (name.to_owned(), args.length.iter().map(point).collect())
            })
            .collect(),
    };
    Chart::picture(&[
        chart(format!("tokens per second by those of static, batch {batch}"), &|row, fixed| {
            row.tokens_per_second / fixed.tokens_per_second
        }),
        chart(format!("memory held by memory in use, batch {batch}"), &|row, _| row.spare_ratio),
    ])
}
