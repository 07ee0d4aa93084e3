//! [`ProfileReport`]: a profile's totals beside the limits, as a table for people and as JSON.

use std::cmp::Reverse;
use std::fmt::{self, Display};

use pace_kernels::Unit;
use serde::{Serialize, Serializer};

use super::{Key, LayerKind, Profile, Total};
use crate::{Backend, Limits, MClass};

/// Where the time of the engine's steps went.
#[derive(Clone, Debug, Serialize)]
pub struct ProfileReport {
    /// Seconds of all steps.
    pub seconds: f64,
    /// Seconds in no operator: choosing tokens, keeping caches, starting and ending requests.
    pub other_seconds: f64,
    /// Kinds of calls, the one that took longest first.
    pub operators: Vec<ProfileRow>,
    /// What the hardware gives.
    pub limits: Limits,
}

/// All calls of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct ProfileRow {
    /// The name of the operator.
    pub operator: &'static str,
    /// How it was computed.
    #[serde(serialize_with = "name")]
    pub backend: Backend,
    /// Where in the model.
    #[serde(serialize_with = "name")]
    pub layer: LayerKind,
    /// How many rows at a time.
    #[serde(serialize_with = "name")]
    pub m_class: MClass,
    /// How often.
    pub calls: u64,
    /// Rows of all calls.
    pub rows: u64,
    /// Seconds of all calls.
    pub seconds: f64,
    /// Part of the time of all steps.
    pub share: f64,
    /// Bytes that had to be moved, of all calls.
    pub bytes: u64,
    /// Operations of all calls.
    pub flops: u64,
    /// 1e9 bytes a second.
    pub gbytes_per_s: f64,
    /// 1e9 operations a second.
    pub gflops_per_s: f64,
    /// The time that the hardware needs at least, by its peak or by its memory, divided by the time that was taken.
    /// Above 1 where data came from a cache.
    pub fraction: f64,
}

impl Profile {
    /// The totals since the last [`reset`](Self::reset), beside `limits`.
    pub fn report(&self, limits: &Limits) -> ProfileReport {
        let records = self.records.borrow();
        let spans: f64 = records.totals.values().map(|total| total.time.as_secs_f64()).sum();
        // Without steps, a bench's operators say, the spans are all there is.
        let seconds = records.steps.as_secs_f64().max(spans);
        let mut all: Vec<_> = records.totals.iter().collect();
        all.sort_by_key(|(key, total)| {
            (Reverse(total.time), key.layer, key.operator, key.m_class.name(), key.backend.name())
        });
        ProfileReport {
            seconds,
            other_seconds: seconds - spans,
            operators: all.into_iter().map(|(key, total)| row(key, total, seconds, limits)).collect(),
            limits: *limits,
        }
    }
}

fn row(key: &Key, total: &Total, all_seconds: f64, limits: &Limits) -> ProfileRow {
    let seconds = total.time.as_secs_f64();
    let flops: u64 = total.flops.iter().sum();
    let compute: f64 =
        Unit::ALL.iter().zip(total.flops).map(|(&unit, n)| n as f64 / limits.flops(unit)).sum();
    let least = compute.max(total.bytes as f64 / limits.bytes);
    ProfileRow {
        operator: key.operator,
        backend: key.backend,
        layer: key.layer,
        m_class: key.m_class,
        calls: total.calls,
        rows: total.rows,
        seconds,
        share: ratio(seconds, all_seconds),
        bytes: total.bytes,
        flops,
        gbytes_per_s: ratio(total.bytes as f64 / 1e9, seconds),
        gflops_per_s: ratio(flops as f64 / 1e9, seconds),
        fraction: ratio(least, seconds),
    }
}

/// 0 where there was no time to measure.
fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

impl Display for ProfileReport {
    /// A table with aligned columns; every line ends.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<15} {:<7} {:<9} {:>4} {:>8} {:>11} {:>7} {:>8} {:>9} {:>9}",
            "operator", "backend", "layer", "m", "calls", "ms", "share", "GB/s", "GFLOP/s", "of limit"
        )?;
        for row in &self.operators {
            writeln!(
                f,
                "{:<15} {:<7} {:<9} {:>4} {:>8} {:>11.3} {:>5.1} % {:>8.1} {:>9.1} {:>7.1} %",
                row.operator,
                row.backend,
                row.layer,
                row.m_class,
                row.calls,
                row.seconds * 1e3,
                row.share * 100.0,
                row.gbytes_per_s,
                row.gflops_per_s,
                row.fraction * 100.0
            )?;
        }
        let rest = |f: &mut fmt::Formatter<'_>, what: &str, seconds: f64| {
            let share = ratio(seconds, self.seconds) * 100.0;
            writeln!(f, "{what:<15} {:>43.3} {share:>5.1} %", seconds * 1e3)
        };
        rest(f, "other", self.other_seconds)?;
        rest(f, "all", self.seconds)?;
        let giga = |value: f64| value / 1e9;
        writeln!(
            f,
            "limits: {:.1} GB/s; GFLOP/s of f32 {:.1}, bf16 {:.1}, int8 {:.1}",
            giga(self.limits.bytes),
            giga(self.limits.f32_flops),
            giga(self.limits.bf16_flops),
            giga(self.limits.int8_ops)
        )
    }
}

/// A value by its name.
fn name<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
