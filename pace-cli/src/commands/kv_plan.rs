//! `pace-cli kv-plan`: how a BMC cache would grow, and what that costs.

use anyhow::Result;
use pace_runtime::config::Env;
use pace_runtime::kv_cache::{
    BmcConfig, BmcGrow, KvCacheKind, KvCandidate, KvConfig, KvCostModel, KvShape, KvWorkload,
};
use serde_json::{Value, json};

use crate::args::{Format, KvPlanArgs};
use crate::exit::Usage;
use crate::output::{self, bytes, table};
use crate::session::open;

/// What the command shows.
struct Report {
    model: String,
    shape: KvShape,
    batch: usize,
    cost: KvCostModel,
    candidates: Vec<KvCandidate>,
    choice: KvCandidate,
}

pub(crate) fn run(env: &Env, args: &KvPlanArgs) -> Result<()> {
    args.engine.platform.expect_one_instance()?;
    let config = args.engine.config(env)?;
    let kind = config.kv_cache.kind;
    if kind != KvCacheKind::Bmc {
        let what = format!("--kv-cache {}: only bmc grows in parts that can be planned", kind.name());
        return Err(Usage(what).into());
    }
    let files = open(env, args.engine.model.as_deref())?;
    let context = files.spec().max_positions;
    let length = args.length.map_or(context, usize::from);
    if length > context {
        return Err(Usage(format!("--length {length}: the model's context holds {context} tokens")).into());
    }
    let shape = KvShape::new(files.spec(), config.load.kv, length);
    config.kv_cache.check(length).map_err(|e| Usage(e.to_string()))?;
    let (batch, cost) = (usize::from(args.batch), KvCostModel::measure());
    let own = config.kv_cache.bmc.grow;
    let tables = [BmcGrow::Commit, BmcGrow::Copy]
        .into_iter()
        .filter(|&grow| args.engine.kv.bmc_grow.is_none() || grow == own)
        .map(|grow| {
            let bmc = BmcConfig { grow, cost, ..config.kv_cache.bmc };
            let workload = KvWorkload { batch, expected_len: length };
            (grow, KvConfig { bmc, ..config.kv_cache }.table(&shape, workload))
        });
    let tables: Vec<_> = tables.collect();
    let chosen = tables.iter().find(|(grow, _)| *grow == own).map(|(_, table)| *table.choice());
    let Some(choice) = chosen else { return Ok(()) };
    let candidates = tables.into_iter().flat_map(|(_, table)| table.candidates).collect();
    let report = Report { model: files.name().to_owned(), shape, batch, cost, candidates, choice };
    match args.format {
        Format::Json => output::json(&to_json(&report))?,
        Format::Text => output::stream(&to_text(&report))?,
    }
    Ok(())
}

fn to_json(report: &Report) -> Value {
    let candidate = |c: &KvCandidate| {
        json!({
            "growth": c.growth.name(),
            "splits": c.splits,
            "grow": c.grow.name(),
            "allocations": c.allocations,
            "bytes_copied": c.bytes_copied,
            "peak_bytes": c.peak_bytes,
            "mean_bytes": c.mean_bytes,
            "spare_ratio": c.spare_ratio,
            "seconds": c.seconds,
        })
    };
    json!({
        "model": report.model,
        "batch": report.batch,
        "length": report.shape.max_len,
        "layers": report.shape.n_layers,
        "kv_heads": report.shape.n_kv_heads,
        "head_dim": report.shape.layout.head_dim(),
        "dtype": report.shape.layout.dtype().to_string(),
        "copy_bytes_per_second": report.cost.copy_rate,
        "candidates": report.candidates.iter().map(candidate).collect::<Vec<_>>(),
        "choice": candidate(&report.choice),
    })
}

fn to_text(report: &Report) -> String {
    let heads =
        ["grow", "growth", "splits", "allocations", "copied", "peak", "mean", "of those in use", "time", ""];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(report.candidates.iter().map(|c| {
        vec![
            c.grow.name().to_owned(),
            c.growth.name().to_owned(),
            c.splits.to_string(),
            c.allocations.to_string(),
            bytes(c.bytes_copied),
            bytes(c.peak_bytes),
            bytes(c.mean_bytes as usize),
            format!("{:.2}", c.spare_ratio),
            format!("{:.3} ms", c.seconds * 1e3),
            if *c == report.choice { "chosen" } else { "" }.to_owned(),
        ]
    }));
    let shape = &report.shape;
    format!(
        "{}: {} sequences of {} tokens, {} layers, {} KV heads of {} in {}\none thread copies {}/s into new memory\n\n{}",
        report.model,
        report.batch,
        shape.max_len,
        shape.n_layers,
        shape.n_kv_heads,
        shape.layout.head_dim(),
        shape.layout.dtype(),
        bytes(report.cost.copy_rate as usize),
        table(rows)
    )
}
