//! [`Report`]: results in the format that was asked for, as soon as the format lets it.

use std::io;

use pace_ops::{Backend, Operator, OperatorConfig};
use pace_runtime::ProfileReport;
use serde_json::{Map, Value, json};

use super::engines::{Engines, Setup};
use super::measure::Measured;
use super::workload::{Work, Workload};
use crate::args::BenchFormat;
use crate::operators;
use crate::output::{self, bytes, count};

/// One test on one setup.
pub(super) struct Record {
    /// What JSON and CSV hold, in this order.
    fields: Map<String, Value>,
    /// The cells of the Markdown table.
    cells: Vec<String>,
    /// The test, and the part of its KV caches that lies in huge pages.
    kv_huge_share: Option<(String, f64)>,
    profile: Option<(String, ProfileReport)>,
}

impl Record {
    pub(super) fn new(
        setup: &Setup,
        engines: &Engines,
        workload: &Workload,
        measured: &Measured,
        layout: Layout,
    ) -> Self {
        let figures = Figures::new(setup, workload, measured);
        Self {
            fields: fields(setup, engines, workload, measured, &figures),
            cells: cells(setup, engines, workload, measured, &figures, layout),
            kv_huge_share: measured.kv_huge_share.map(|share| (layout.name(setup, workload), share)),
            profile: measured.profile.clone().map(|profile| (workload.to_string(), profile)),
        }
    }
}

/// Columns of the Markdown table that are there only if a flag asks for something else than usual in them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Layout {
    pub(super) kv_cache: bool,
    pub(super) kv_dtype: bool,
    pub(super) hugepages: bool,
    pub(super) instances: bool,
    pub(super) batch: bool,
}

impl Layout {
    /// A test, with what tells its caches from those of others.
    fn name(self, setup: &Setup, workload: &Workload) -> String {
        let config = &setup.config;
        let kind = self.kv_cache.then(|| config.kv_cache.to_string());
        let dtype = self.kv_dtype.then(|| config.load.kv.to_string());
        let pages = self.hugepages.then(|| hugepages(setup));
        let parts = [Some(workload.to_string()), kind, dtype, pages];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

/// Writes records to stdout.
pub(super) struct Report {
    format: BenchFormat,
    layout: Layout,
    /// Records that have to wait for the end.
    json: Vec<Value>,
    /// What follows a Markdown table.
    notes: String,
    /// Tests with the same part of their KV caches in huge pages, in percent.
    kv_in_huge_pages: Vec<(String, Vec<String>)>,
    profiles: String,
    started: bool,
}

impl Report {
    pub(super) const fn new(format: BenchFormat, layout: Layout) -> Self {
        Self {
            format,
            layout,
            json: Vec::new(),
            notes: String::new(),
            kv_in_huge_pages: Vec::new(),
            profiles: String::new(),
            started: false,
        }
    }

    /// # Errors
    /// Nobody reads.
    pub(super) fn add(&mut self, record: Record) -> io::Result<()> {
        let first = !std::mem::replace(&mut self.started, true);
        match self.format {
            BenchFormat::Json => self.json.push(Value::Object(record.fields)),
            BenchFormat::Jsonl => output::json(&Value::Object(record.fields))?,
            BenchFormat::Csv => {
                if first {
                    output::line(&csv_line(record.fields.keys().map(|key| Value::from(key.as_str()))))?;
                }
                output::line(&csv_line(record.fields.into_iter().map(|(_, value)| value)))?;
            }
            BenchFormat::Md => {
                if first {
                    output::line(&header(self.layout))?;
                }
                output::line(&md_line(&record.cells))?;
                self.note_kv(record.kv_huge_share);
                if let Some((name, profile)) = record.profile {
                    self.profiles += &format!("\n{name}:\n```text\n{profile}```\n");
                }
            }
        }
        Ok(())
    }

    /// Remembers what there is to say about engines; once, if others are alike.
    pub(super) fn note(&mut self, engines: &Engines) {
        let info = engines.info();
        let note = format!("\n{}\n{}\n", operators::huge_pages(info), operators::summary(info).join("\n"));
        if !self.notes.contains(&note) {
            self.notes += &note;
        }
    }

    fn note_kv(&mut self, test: Option<(String, f64)>) {
        let Some((test, share)) = test else { return };
        let share = format!("{:.0} %", 100.0 * share);
        match self.kv_in_huge_pages.iter_mut().find(|(other, _)| *other == share) {
            Some((_, tests)) if tests.contains(&test) => {}
            Some((_, tests)) => tests.push(test),
            None => self.kv_in_huge_pages.push((share, vec![test])),
        }
    }

    /// How much of the KV caches lay in huge pages; empty where nothing is known of that.
    fn kv_text(&self) -> String {
        if self.kv_in_huge_pages.is_empty() {
            return String::new();
        }
        let part = |(share, tests): &(String, Vec<String>)| format!("{share} ({})", tests.join(", "));
        let parts: Vec<_> = self.kv_in_huge_pages.iter().map(part).collect();
        format!("\nKV caches in huge pages: {}\n", parts.join(", "))
    }

    /// Writes what has waited for the end.
    ///
    /// # Errors
    /// Nobody reads.
    pub(super) fn finish(self) -> io::Result<()> {
        match self.format {
            BenchFormat::Json => output::json(&Value::Array(self.json)),
            BenchFormat::Md => output::stream(&format!("{}{}{}", self.notes, self.kv_text(), self.profiles)),
            BenchFormat::Csv | BenchFormat::Jsonl => Ok(()),
        }
    }
}

/// The figures of a test.
struct Figures {
    /// Tokens per second: mean and sample standard deviation.
    mean: f64,
    deviation: f64,
    /// Read and computed at least, in 10^9 a second.
    gbs: f64,
    gflops: f64,
    /// The least time that the limits allow, by the time it took.
    fraction: f64,
}

impl Figures {
    fn new(setup: &Setup, workload: &Workload, measured: &Measured) -> Self {
        let (mean, deviation) = mean_and_sd(&measured.samples);
        let config = &setup.config;
        let work = Work::new(workload, &setup.files, &config.load, config.batching.prefill_chunk.get());
        // How often all instances together do the work of one.
        let a_second = mean / workload.tokens() as f64;
        Self {
            mean,
            deviation,
            gbs: work.bytes() * a_second / 1e9,
            gflops: work.flops() * a_second / 1e9,
            fraction: work.least_seconds(&measured.limits) * a_second,
        }
    }
}

fn fields(
    setup: &Setup,
    engines: &Engines,
    workload: &Workload,
    measured: &Measured,
    figures: &Figures,
) -> Map<String, Value> {
    let info = engines.info();
    let mut out = json!({
        "model": setup.files.name(),
        "size_bytes": info.weight_bytes,
        "params": info.spec.parameters(),
        "dtype": setup.dtype(),
        "isa": info.isa.to_string(),
        "op_config": op_config(&setup.config.load.operators),
        "kv_cache": setup.config.kv_cache.kind.name(),
        "kv_settings": setup.config.kv_cache.to_string(),
        "kv_dtype": setup.config.load.kv.to_string(),
        "hugepages": hugepages(setup),
        "threads": engines.threads(),
        "instances": setup.parts.len(),
        "test": workload.to_string(),
        "n_prompt": workload.n_prompt,
        "n_gen": workload.n_gen,
        "n_depth": workload.depth,
        "batch": workload.batch,
        "avg_ts": figures.mean,
        "stddev_ts": figures.deviation,
        "samples_ts": measured.samples,
        "gbs": figures.gbs,
        "gflops": figures.gflops,
        "roofline_fraction": figures.fraction,
        "ttft_ms": measured.ttft * 1e3,
        "peak_rss_bytes": engines.peak_bytes(),
        "limits": measured.limits,
        "operators": operators::to_json(&info.operators),
        "demotions": operators::demotions(info),
        "formats": operators::formats_json(&info.formats, &info.spec),
        "losses": operators::losses_json(&info.losses),
        "bit_equal": info.bit_equal,
        "huge_page_share": info.huge_share,
        "kv_huge_page_share": measured.kv_huge_share,
    });
    if let Some(profile) = &measured.profile {
        out["profile"] = json!(profile);
    }
    match out {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn header(layout: Layout) -> String {
    let columns = columns(layout);
    let rule = columns.iter().map(|(_, right)| if *right { "---:" } else { "---" }.to_owned());
    format!("{}\n|{}|", md_line(columns.iter().map(|(name, _)| name)), rule.collect::<Vec<_>>().join("|"))
}

/// Names, and whether they are numbers.
fn columns(layout: Layout) -> Vec<(&'static str, bool)> {
    let mut columns = vec![
        ("model", false),
        ("size", true),
        ("params", true),
        ("dtype", false),
        ("isa", false),
        ("op-config", false),
    ];
    columns.extend(layout.kv_cache.then_some(("kv-cache", false)));
    columns.extend(layout.kv_dtype.then_some(("kv-dtype", false)));
    columns.extend(layout.hugepages.then_some(("huge pages", false)));
    columns.push(("threads", true));
    columns.extend(layout.instances.then_some(("instances", true)));
    columns.extend(layout.batch.then_some(("batch", true)));
    columns.push(("test", false));
    columns
        .extend(["t/s", "GB/s", "GFLOP/s", "of limit", "TTFT ms", "peak RSS"].map(|number| (number, true)));
    columns
}

/// One for each of [`columns`].
fn cells(
    setup: &Setup,
    engines: &Engines,
    workload: &Workload,
    measured: &Measured,
    figures: &Figures,
    layout: Layout,
) -> Vec<String> {
    let info = engines.info();
    let mut cells = vec![
        setup.files.name().to_owned(),
        bytes(info.weight_bytes),
        count(info.spec.parameters()),
        setup.dtype(),
        info.isa.to_string(),
        op_config(&setup.config.load.operators),
    ];
    cells.extend(layout.kv_cache.then(|| setup.config.kv_cache.to_string()));
    cells.extend(layout.kv_dtype.then(|| setup.config.load.kv.to_string()));
    cells.extend(layout.hugepages.then(|| hugepages(setup)));
    cells.push(engines.threads().to_string());
    cells.extend(layout.instances.then(|| setup.parts.len().to_string()));
    cells.extend(layout.batch.then(|| workload.batch.to_string()));
    cells.push(workload.to_string());
    cells.extend([
        format!("{:.2} ± {:.2}", figures.mean, figures.deviation),
        format!("{:.1}", figures.gbs),
        format!("{:.1}", figures.gflops),
        format!("{:.0} %", 100.0 * figures.fraction),
        format!("{:.1}", measured.ttft * 1e3),
        bytes(usize::try_from(engines.peak_bytes()).unwrap_or(usize::MAX)),
    ]);
    cells
}

fn hugepages(setup: &Setup) -> String {
    format!("{:?}", setup.config.load.placement.hugepages).to_lowercase()
}

fn md_line<T: AsRef<str>>(cells: impl IntoIterator<Item = T>) -> String {
    cells.into_iter().fold("|".to_owned(), |line, cell| line + " " + cell.as_ref() + " |")
}

/// Numbers as they are, text as it is, all else as JSON; quoted where a comma, a quote or a line's end asks for it.
fn csv_line(values: impl Iterator<Item = Value>) -> String {
    let cell = |value: Value| {
        let text = match value {
            Value::Null => String::new(),
            Value::String(text) => text,
            other => other.to_string(),
        };
        let special = text.contains([',', '"', '\n', '\r']);
        if special { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
    };
    values.map(cell).collect::<Vec<_>>().join(",")
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

/// Mean and sample standard deviation (0 for a single sample).
fn mean_and_sd(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let squares: f64 = samples.iter().map(|s| (s - mean).powi(2)).sum();
    (mean, if samples.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
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

    #[test]
    fn csv_quotes_what_it_has_to() {
        let values = [json!(1.5), json!("a"), json!("a,b"), json!(null), json!([1, 2]), json!({"a": "b"})];
        assert_eq!(csv_line(values.into_iter()), r#"1.5,a,"a,b",,"[1,2]","{""a"":""b""}""#);
    }

    #[test]
    fn a_column_is_there_when_something_is_in_it() {
        let names = |layout| columns(layout).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert!(!names(Layout::default()).contains(&"batch"));
        let all =
            header(Layout { kv_cache: true, kv_dtype: true, hugepages: true, instances: true, batch: true });
        let names = "| op-config | kv-cache | kv-dtype | huge pages | threads | instances | batch | test |";
        assert!(all.contains(names), "{all}");
        let [head, rule] = all.lines().collect::<Vec<_>>()[..] else { panic!("two lines: {all}") };
        assert_eq!(head.matches('|').count(), rule.matches('|').count());
    }
}
