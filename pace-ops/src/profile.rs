//! [`Profile`]: how long each operator took, on how much work, in which layers.
//!
//! An operator opens a span around its forward by [`OpCx::span`](crate::OpCx::span). The models say by
//! [`OpCx::enter`](crate::OpCx::enter) which layer is computed. Without a profile both cost one comparison.

mod report;
mod trace;
mod work;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::{Duration, Instant};

use pace_kernels::Unit;

pub use self::report::{ProfileReport, ProfileRow};
use self::trace::Event;
pub use self::trace::{Trace, write_traces};
pub(crate) use self::work::act_bytes;
use crate::{Backend, MClass};

/// Totals for each kind of call and the single calls since the last reset. Used by one thread, the engine's.
///
/// Memory is bounded: there are as many totals as kinds of calls, and calls beyond the capacity are only counted.
#[derive(Debug)]
pub struct Profile {
    layer: Cell<(LayerKind, Option<usize>)>,
    /// Whether a span is open.
    open: Cell<bool>,
    capacity: usize,
    records: RefCell<Records>,
}

/// A part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerKind {
    /// What comes before the first layer.
    Embedding,
    /// A decoder layer.
    Decoder,
    /// What comes after the last layer: norm and logits.
    Output,
}

/// What one call computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Rows of activations: tokens.
    pub rows: usize,
    /// Bytes that have to be read and written at least once: weights, cached keys and values, activations.
    pub bytes: usize,
    /// Operations of the products; a multiply-add counts as two.
    pub flops: usize,
    /// The unit that is made for the products' type: its peak is the limit.
    pub unit: Unit,
}

/// A running call of an operator; it is recorded when this is dropped.
#[derive(Debug)]
#[must_use = "the call ends when this is dropped"]
pub struct Span<'a> {
    profile: &'a Profile,
    operator: &'static str,
    backend: Backend,
    work: Work,
    start: Instant,
}

/// A running step of the engine; its time is recorded when this is dropped.
#[derive(Debug)]
#[must_use = "the step ends when this is dropped"]
pub struct StepSpan<'a> {
    profile: &'a Profile,
    start: Instant,
}

/// What calls are summed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    layer: LayerKind,
    operator: &'static str,
    backend: Backend,
    m_class: MClass,
}

/// The sum of the calls of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Total {
    calls: u64,
    time: Duration,
    rows: u64,
    bytes: u64,
    /// By [`Unit`], in the order of [`Unit::ALL`].
    flops: [u64; Unit::ALL.len()],
}

#[derive(Debug)]
struct Records {
    origin: Instant,
    /// Time of the engine's steps, whatever they did.
    steps: Duration,
    totals: HashMap<Key, Total>,
    events: Vec<Event>,
    /// Calls that did not fit `events`.
    dropped: u64,
}

impl Profile {
    /// Calls that are kept for a trace: 27 MB.
    const CAPACITY: usize = 1 << 18;

    /// Nothing recorded yet.
    pub fn new() -> Self {
        Self::with_capacity(Self::CAPACITY)
    }

    /// As [`new`](Self::new), with room for `calls` single calls.
    pub fn with_capacity(calls: usize) -> Self {
        Self {
            layer: Cell::new((LayerKind::Embedding, None)),
            open: Cell::new(false),
            capacity: calls,
            records: RefCell::new(Records {
                origin: Instant::now(),
                steps: Duration::ZERO,
                totals: HashMap::new(),
                events: Vec::new(),
                dropped: 0,
            }),
        }
    }

    /// Says which layer the calls that follow belong to; `index` counts decoder layers from 0.
    pub fn enter(&self, layer: LayerKind, index: Option<usize>) {
        self.layer.set((layer, index));
    }

    /// Starts a call. `operator` is the name of an [`Operator`](crate::Operator), or of something else that takes
    /// time. `None` inside another span: the time is that one's already.
    pub fn span(&self, operator: &'static str, backend: Backend, work: Work) -> Option<Span<'_>> {
        if self.open.replace(true) {
            return None;
        }
        Some(Span { profile: self, operator, backend, work, start: Instant::now() })
    }

    /// Starts a step of the engine, of which spans are parts.
    pub fn step(&self) -> StepSpan<'_> {
        StepSpan { profile: self, start: Instant::now() }
    }

    /// Forgets everything.
    pub fn reset(&self) {
        self.reset_trace();
        let mut records = self.records.borrow_mut();
        records.steps = Duration::ZERO;
        records.totals.clear();
    }

    /// Forgets the single calls, not the totals.
    pub fn reset_trace(&self) {
        let mut records = self.records.borrow_mut();
        records.events.clear();
        records.dropped = 0;
        records.origin = Instant::now();
    }

    /// The single calls since the last reset.
    pub fn trace(&self) -> Trace {
        let records = self.records.borrow();
        Trace::new(records.events.clone(), records.dropped)
    }

    fn record(&self, span: &Span<'_>, end: Instant) {
        let time = end - span.start;
        let (layer, index) = self.layer.get();
        let Work { rows, bytes, flops, unit } = span.work;
        let key = Key { layer, operator: span.operator, backend: span.backend, m_class: MClass::of(rows) };
        let mut records = self.records.borrow_mut();
        let total = records.totals.entry(key).or_default();
        total.calls += 1;
        total.time += time;
        total.rows += rows as u64;
        total.bytes += bytes as u64;
        total.flops[unit as usize] += flops as u64;
        if records.events.len() == self.capacity {
            records.dropped += 1;
            return;
        }
        if records.events.is_empty() {
            // All at once: a vector that grows would copy itself in the middle of what is timed.
            records.events.reserve_exact(self.capacity);
        }
        let start = span.start.saturating_duration_since(records.origin);
        records.events.push(Event { key, index, start, time, work: span.work });
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        let end = Instant::now();
        self.profile.open.set(false);
        self.profile.record(self, end);
    }
}

impl Drop for StepSpan<'_> {
    fn drop(&mut self) {
        self.profile.records.borrow_mut().steps += self.start.elapsed();
    }
}

impl LayerKind {
    /// Every kind, in the order of a forward.
    pub const ALL: [Self; 3] = [Self::Embedding, Self::Decoder, Self::Output];

    /// The name used everywhere: lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Decoder => "decoder",
            Self::Output => "output",
        }
    }
}

impl std::fmt::Display for LayerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests;
