//! What was found, for people and as JSON.

use std::fmt::Write as _;

use pace_runtime::{DivergenceSummary, EngineHandle};
use serde_json::{Value, json};

use super::Side;
use crate::commands::info;
use crate::{operators, output};

/// A comparison and what was compared.
pub(super) struct Report<'a> {
    /// Tokens of a window.
    pub(super) window: usize,
    pub(super) summary: DivergenceSummary,
    pub(super) reference: &'a Side,
    pub(super) model: &'a Side,
    /// The reference's and the model's.
    pub(super) engines: &'a (EngineHandle, EngineHandle),
}

impl Report<'_> {
    /// Numbers without a value, such as an infinite divergence, are null.
    pub(super) fn to_json(&self) -> Value {
        let s = &self.summary;
        json!({
            "reference": side(self.reference, &self.engines.0, s.reference_perplexity),
            "model": side(self.model, &self.engines.1, s.model_perplexity),
            "tokens": s.tokens,
            "window": self.window,
            "mean_kl": s.mean_kl,
            "p99_kl": s.p99_kl,
            "same_top1": s.same_top1,
            "perplexity_ratio": s.perplexity_ratio,
            "mean_abs_logprob_diff": s.mean_abs_logprob_diff,
        })
    }

    pub(super) fn to_text(&self) -> String {
        let s = &self.summary;
        let row = |name: &str, of: &dyn Fn(&Side) -> String| {
            vec![name.to_owned(), of(self.reference), of(self.model)]
        };
        let mut out = output::table(vec![
            ["", "reference", "model"].map(str::to_owned).to_vec(),
            row("model", &|side| side.files.name().to_owned()),
            row("stored as", &stored_as),
            row("packed as", &|side| {
                operators::formats_text(&side.files.packed_formats(&side.config.load), side.files.spec())
            }),
            row("dtype", &|side| side.config.load.activations.to_string()),
            row("keys, values", &|side| side.config.load.kv.to_string()),
            ["perplexity".to_owned(), figure(s.reference_perplexity), figure(s.model_perplexity)].to_vec(),
        ]);
        out.push('\n');
        let mut line = |name: &str, value: String| {
            let _ = writeln!(out, "{name:<25}{value}");
        };
        line("tokens", format!("{}, in windows of {}", s.tokens, self.window));
        line("KL divergence", format!("mean {:.6}, 99th percentile {:.6} nats", s.mean_kl, s.p99_kl));
        line("same most likely token", format!("{:.2} %", 100.0 * s.same_top1));
        line("perplexity ratio", format!("{:.5}", s.perplexity_ratio));
        line("log-probability", format!("off by {:.5} on average", s.mean_abs_logprob_diff));
        out
    }
}

fn side(side: &Side, engine: &EngineHandle, perplexity: f64) -> Value {
    let load = &side.config.load;
    json!({
        "model": side.files.name(),
        "formats": info::formats(&side.files),
        "packed": operators::formats_json(&engine.info().formats, &engine.info().spec),
        "dtype": load.activations.to_string(),
        "kv_dtype": load.kv.to_string(),
        "operators": operators::to_json(&engine.info().operators),
        "perplexity": perplexity,
    })
}

/// The names of the file's formats.
fn stored_as(side: &Side) -> String {
    side.files.formats().into_iter().map(|share| share.format).collect::<Vec<_>>().join(", ")
}

fn figure(perplexity: f64) -> String {
    format!("{perplexity:.4}")
}
