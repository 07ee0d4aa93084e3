//! What a run of `throughput` found, as text and as JSON.

use std::fmt::Write;

use anyhow::Result;
use pace_runtime::platform::topology::format_cpu_list;
use pace_runtime::{Completion, Part};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::args::Format;
use crate::output::{self, bytes, table};

/// One answer. Processes send it to their parent as a line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) index: usize,
    pub(super) instance: usize,
    pub(super) prompt_n: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) text: String,
    pub(super) finish_reason: String,
    pub(super) prompt_ms: f64,
    pub(super) predicted_ms: f64,
}

/// One instance.
#[derive(Clone, Debug, Serialize)]
pub(super) struct InstanceReport {
    pub(super) cpus: Vec<usize>,
    /// The NUMA nodes of its memory.
    pub(super) nodes: Vec<usize>,
    pub(super) pid: u32,
    /// How often its process had to be started again.
    pub(super) restarts: usize,
    /// What its process alone costs of the memory that it shares with others, if it has one of its own.
    pub(super) pss_bytes: Option<u64>,
}

/// The whole run.
pub(super) struct Report {
    pub(super) model: String,
    pub(super) instances: Vec<InstanceReport>,
    pub(super) done: Vec<Done>,
    pub(super) seconds: f64,
    pub(super) weight_bytes: usize,
    pub(super) weight_copies: usize,
    /// Memory of this process, its share of what it shares with others.
    pub(super) pss_bytes: Option<u64>,
    pub(super) processes: bool,
}

impl From<Completion> for Done {
    fn from(completion: Completion) -> Self {
        let Completion { index, instance, tokens, text, finish } = completion;
        Self {
            index,
            instance,
            prompt_n: finish.prompt_n,
            tokens,
            text,
            finish_reason: finish.reason.name().to_owned(),
            prompt_ms: finish.prompt_time.as_secs_f64() * 1e3,
            predicted_ms: finish.predicted_time.as_secs_f64() * 1e3,
        }
    }
}

impl InstanceReport {
    /// For what an instance has of the machine; nothing has happened yet.
    pub(super) fn of(part: &Part) -> Self {
        Self { cpus: part.cpus.clone(), nodes: part.nodes.clone(), pid: 0, restarts: 0, pss_bytes: None }
    }
}

impl Report {
    pub(super) fn write(mut self, format: Format) -> Result<()> {
        self.done.sort_unstable_by_key(|done| done.index);
        match format {
            Format::Json => output::json(&self.to_json())?,
            Format::Text => output::stream(&self.to_text())?,
        }
        Ok(())
    }

    fn new_tokens(&self) -> usize {
        self.done.iter().map(|done| done.tokens.len()).sum()
    }

    fn prompt_tokens(&self) -> usize {
        self.done.iter().map(|done| done.prompt_n).sum()
    }

    fn to_json(&self) -> serde_json::Value {
        json!({
            "model": self.model,
            "processes": self.processes,
            "instances": self.instances,
            "requests": self.done,
            "prompt_tokens": self.prompt_tokens(),
            "new_tokens": self.new_tokens(),
            "seconds": self.seconds,
            "tokens_per_second": self.new_tokens() as f64 / self.seconds,
            "weight_bytes": self.weight_bytes,
            "weight_copies": self.weight_copies,
            "pss_bytes": self.pss_bytes,
        })
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        for done in self.done.iter().filter(|done| !done.text.is_empty()) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "[{}] {}", done.index, done.text.trim());
        }
        let head =
            ["instance", "CPUs", "nodes", "answers", "new tokens", "restarts"].map(str::to_owned).to_vec();
        let row = |(i, instance): (usize, &InstanceReport)| {
            let own = || self.done.iter().filter(|done| done.instance == i);
            let tokens: usize = own().map(|done| done.tokens.len()).sum();
            let numbers = [own().count(), tokens, instance.restarts].map(|n| n.to_string());
            let lists = [&instance.cpus, &instance.nodes].map(|ids| format_cpu_list(ids));
            [vec![i.to_string()], lists.to_vec(), numbers.to_vec()].concat()
        };
        let rows = std::iter::once(head).chain(self.instances.iter().enumerate().map(row));
        text += &table(rows.collect());
        let (prompt, new) = (self.prompt_tokens(), self.new_tokens());
        let _ = writeln!(
            text,
            "{prompt} prompt tokens, {new} new tokens in {:.2} s: {:.1} new tokens/s, {:.1} tokens/s in all",
            self.seconds,
            new as f64 / self.seconds,
            (prompt + new) as f64 / self.seconds
        );
        let _ = writeln!(text, "{} of weights, copies: {}", bytes(self.weight_bytes), self.weight_copies);
        text
    }
}

/// Bytes of memory of this process, of shared ones its share; none where the system does not tell.
pub(super) fn pss() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
