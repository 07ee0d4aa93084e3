//! `pace-cli plan`: which backends measure best on this machine.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use pace_ops::{Backend, Candidate, Chosen, OpDType, OpShape, OperatorConfig, PlanEntry, WrongBackend};
use pace_runtime::config::Env;
use pace_runtime::plan_store::{self, PlanKey};
use pace_runtime::{EngineConfig, Plan, RuntimeError};
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
    /// Whether what was measured is in the file.
    saved: bool,
    /// What the flags and the environment say: that goes before the plan.
    operators: OperatorConfig,
    /// What the model is going to be computed with.
    chosen: Vec<Chosen>,
    /// Whether a sequence of the model gets the same bits whatever the batch.
    bit_equal: bool,
}

pub(crate) fn run(env: &Env, args: &PlanArgs) -> Result<()> {
    let dir = plan_dir(env)
        .ok_or_else(|| Usage("no place to keep a plan: set PACE_CACHE to a folder, or HOME".to_owned()))?;
    let mut engine = args.engine.clone();
    engine.model = args.name.clone().or(engine.model);
    engine.platform.expect_one_instance()?;
    let mut config = engine.config(env)?;
    let files = open(env, engine.model.as_deref())?;
    let known = config.load.plan.take().map(Arc::unwrap_or_clone).unwrap_or_default();
    // Flags that make no sense are refused before anything takes its time.
    config.choose(&files)?;
    let key = PlanKey::detect(&config)?;
    let shapes = config.operator_shapes(&files);
    let build = config.load.build_cx(config.kernels()?);
    let usable = |shape| known.choice(shape).is_some_and(|choice| build.resolve(shape, choice).is_ok());
    let missing: Vec<OpShape> =
        shapes.iter().copied().filter(|&shape| args.force || !usable(shape)).collect();
    let (mut plan, saved) = complete(&config, &dir, &key, known, &missing)?;
    plan.entries.retain(|entry| shapes.contains(&entry.shape));
    config.load.plan = Some(Arc::new(plan.clone()));
    let selection = config.choose(&files)?;
    let report = Report {
        model: files.name().to_owned(),
        path: key.path(&dir),
        key,
        plan,
        measured: missing.len(),
        saved: saved.is_ok(),
        operators: config.load.operators,
        chosen: selection.chosen().to_vec(),
        bit_equal: selection.is_bit_equal(),
    };
    match args.format {
        Format::Json => output::json(&to_json(&report))?,
        Format::Text => output::stream(&to_text(&report))?,
    }
    Ok(saved?)
}

/// The known plan with what is missing measured, and whether that could be saved.
fn complete(
    config: &EngineConfig,
    dir: &Path,
    key: &PlanKey,
    known: Plan,
    missing: &[OpShape],
) -> Result<(Plan, Result<(), RuntimeError>)> {
    if missing.is_empty() {
        return Ok((known, Ok(())));
    }
    plan_store::check(config, dir, missing)?;
    let mut measured = measure(config, missing)?;
    match plan_store::save(dir, key, measured.clone()) {
        Ok(all) => Ok((all, Ok(()))),
        Err(error) => {
            measured.complete(known);
            Ok((measured, Err(error)))
        }
    }
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
    let wrong = |w: &WrongBackend| json!({"backend": w.backend.name(), "reason": w.reason});
    let entry = |e: &PlanEntry| {
        json!({
            "operator": e.shape.op.name(),
            "dtype": e.shape.dtype.name(),
            "shape": e.shape.size.to_string(),
            "m_class": e.class.name(),
            "limit_seconds": e.limit_seconds,
            "candidates": e.candidates.iter().map(candidate).collect::<Vec<_>>(),
            "wrong": e.wrong.iter().map(wrong).collect::<Vec<_>>(),
            "choice": e.choice.name(),
            "why": e.why,
            "configured": configured(report, e).map(Backend::name),
        })
    };
    json!({
        "model": report.model,
        "machine": report.key,
        "file": report.path.to_string_lossy(),
        "saved": report.saved,
        "measured_shapes": report.measured,
        "entries": report.plan.entries.iter().map(entry).collect::<Vec<_>>(),
        "operators": operators::to_json(&report.chosen),
        "bit_equal": report.bit_equal,
    })
}

/// The backend that a flag or the environment sets for an operator, whatever was measured.
fn configured(report: &Report, entry: &PlanEntry) -> Option<Backend> {
    Some(report.operators.get(entry.shape.op)).filter(|&backend| backend != Backend::Auto)
}

fn to_text(report: &Report) -> String {
    let heads = ["operator", "dtype", "shape", "rows", "candidates (of the limit)", "choice", "why"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(report.plan.entries.iter().map(|e| row(report, e)));
    let PlanKey { cpu, isa, threads, .. } = &report.key;
    let what = match report.measured {
        0 => "measured before; --force measures again".to_owned(),
        n => format!("{n} shapes measured"),
    };
    let path = report.path.display();
    let kept = if report.saved { format!("kept in {path}") } else { format!("not kept in {path}") };
    let operators = operators::to_text(&report.chosen);
    let meaning = operators::meaning(&report.chosen).map_or_else(String::new, |text| format!("\n{text}"));
    let bits = operators::expected_bits(&report.chosen, report.bit_equal);
    let int4 = report.plan.entries.iter().any(|e| e.shape.dtype == OpDType::Int4);
    let note = if int4 { format!("{}\n", operators::int4_note()) } else { String::new() };
    format!(
        "{} on {cpu}, {isa}, {threads} threads\n\n{}\n{note}{what}\n{kept}\noperators by {operators}{meaning}\n{bits}\n",
        report.model,
        table(rows),
    )
}

/// One line of the table.
fn row(report: &Report, e: &PlanEntry) -> Vec<String> {
    let timed = e.candidates.iter().map(|c| {
        let Candidate { backend, seconds, fraction } = c;
        format!("{backend} {} ({:.0} %)", time(*seconds), 100.0 * fraction)
    });
    let candidates = timed.chain(e.wrong.iter().map(|w| format!("{} WRONG", w.backend)));
    let (choice, why) = match configured(report, e) {
        Some(backend) => (backend, format!("set by flag or environment; measured best: {}", e.choice)),
        None => (e.choice, e.why.clone()),
    };
    vec![
        e.shape.op.to_string(),
        e.shape.dtype.to_string(),
        e.shape.size.to_string(),
        e.class.to_string(),
        candidates.collect::<Vec<_>>().join(", "),
        choice.to_string(),
        why,
    ]
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
