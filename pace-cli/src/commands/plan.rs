//! `pace-cli plan`: which backends measure best on this machine.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use pace_ops::{Candidate, OpShape, PlanEntry};
use pace_runtime::config::Env;
use pace_runtime::plan_store::{self, PlanKey};
use pace_runtime::{EngineConfig, Plan};
use serde_json::{Value, json};

use crate::args::{Format, PlanArgs};
use crate::exit::Usage;
use crate::operators;
use crate::output::{self, table};
use crate::session::{open, plan_dir};

/// What is reported.
struct Report {
    model: String,
    key: PlanKey,
    path: PathBuf,
    /// The shapes of the model, of all that the file has.
    plan: Plan,
    /// Shapes that were measured now.
    measured: usize,
    /// Whether a sequence of the model gets the same bits whatever the batch, for programs and for people.
    bit_equal: bool,
    bits: String,
}

pub(crate) fn run(env: &Env, args: &PlanArgs) -> Result<()> {
    let dir = plan_dir(env)
        .ok_or_else(|| Usage("no place to keep a plan: set PACE_CACHE to a folder, or HOME".to_owned()))?;
    let mut config = args.engine.config(env)?;
    let files = open(env, args.engine.model.as_deref())?;
    let key = PlanKey::detect(&config)?;
    let shapes = config.operator_shapes(files.spec());
    let known = config.load.plan.clone().unwrap_or_default();
    let missing: Vec<OpShape> =
        shapes.iter().copied().filter(|&shape| args.force || known.choice(shape).is_none()).collect();
    let mut plan = if missing.is_empty() {
        Plan::clone(&known)
    } else {
        plan_store::save(&dir, &key, measure(&config, &missing)?)?
    };
    let path = key.path(&dir);
    plan.entries.retain(|entry| shapes.contains(&entry.shape));
    config.load.plan = Some(Arc::new(plan.clone()));
    let chosen = config.choose(files.spec())?;
    let bit_equal = chosen.is_bit_equal();
    let report = Report {
        model: files.name().to_owned(),
        key,
        path,
        plan,
        measured: missing.len(),
        bit_equal,
        bits: operators::bits(chosen.chosen(), bit_equal),
    };
    match args.format {
        Format::Json => output::json(&to_json(&report))?,
        Format::Text => output::stream(&to_text(&report))?,
    }
    Ok(())
}

/// Times the backends of `shapes`, with a bar on stderr if that is a terminal.
fn measure(config: &EngineConfig, shapes: &[OpShape]) -> Result<Plan> {
    let bar = ProgressBar::new(shapes.len() as u64);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("measuring operators {bar:30} {pos}/{len}  {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let plan = plan_store::measure(config, shapes, &mut |done, _| bar.set_position(done as u64));
    bar.finish_and_clear();
    Ok(plan?)
}

fn to_json(report: &Report) -> Value {
    let candidate =
        |c: &Candidate| json!({"backend": c.backend.name(), "seconds": c.seconds, "fraction": c.fraction});
    let entry = |e: &PlanEntry| {
        json!({
            "operator": e.shape.op.name(),
            "dtype": e.shape.dtype.name(),
            "shape": e.shape.size.to_string(),
            "m_class": e.class.name(),
            "limit_seconds": e.limit_seconds,
            "candidates": e.candidates.iter().map(candidate).collect::<Vec<_>>(),
            "choice": e.choice.name(),
            "why": e.why,
        })
    };
    json!({
        "model": report.model,
        "machine": report.key,
        "file": report.path.to_string_lossy(),
        "measured_shapes": report.measured,
        "entries": report.plan.entries.iter().map(entry).collect::<Vec<_>>(),
        "bit_equal": report.bit_equal,
    })
}

fn to_text(report: &Report) -> String {
    let heads = ["operator", "dtype", "shape", "rows", "candidates (of the limit)", "choice", "why"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(report.plan.entries.iter().map(|e| {
        let candidates = e
            .candidates
            .iter()
            .map(|c| format!("{} {} ({:.0} %)", c.backend, time(c.seconds), 100.0 * c.fraction));
        vec![
            e.shape.op.to_string(),
            e.shape.dtype.to_string(),
            e.shape.size.to_string(),
            e.class.to_string(),
            candidates.collect::<Vec<_>>().join(", "),
            e.choice.to_string(),
            e.why.clone(),
        ]
    }));
    let PlanKey { cpu, isa, threads, .. } = &report.key;
    let what = match report.measured {
        0 => "measured before; --force measures again".to_owned(),
        n => format!("{n} shapes measured"),
    };
    format!(
        "{} on {cpu}, {isa}, {threads} threads\n\n{}\n{what}\nkept in {}\n{}\n",
        report.model,
        table(rows),
        report.path.display(),
        report.bits
    )
}

/// Seconds for people: `1.25 ms`.
fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.2} us", s * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        assert_eq!([1.5, 2.5e-3, 4.25e-6].map(time), ["1.50 s", "2.50 ms", "4.25 us"]);
    }
}
