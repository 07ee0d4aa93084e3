//! Single calls as a trace that Chrome (`chrome://tracing`) and Perfetto (<https://ui.perfetto.dev>) show.
//!
//! The format is Chrome's "Trace Event Format": one complete event (`ph` is `X`) a call, times in microseconds. Every
//! trace of a file is a process of its own.

use std::io::{self, Write};
use std::time::Duration;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;

use super::{Key, Work};

/// The single calls of a profile, in the order in which they ended.
#[derive(Clone, Debug)]
pub struct Trace {
    events: Vec<Event>,
    dropped: u64,
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) key: Key,
    pub(super) index: Option<usize>,
    /// Since the last reset.
    pub(super) start: Duration,
    pub(super) time: Duration,
    pub(super) work: Work,
}

impl Trace {
    pub(super) const fn new(events: Vec<Event>, dropped: u64) -> Self {
        Self { events, dropped }
    }

    /// Calls held.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether no call is held.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Calls that came when the profile was full.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// Writes `traces`, each with its name, as one JSON object.
///
/// # Errors
/// `out` fails.
pub fn write_traces(traces: &[(&str, &Trace)], out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &File(traces))?;
    out.write_all(b"\n")?;
    out.flush()
}

/// The whole file; events become JSON one at a time.
struct File<'a>(&'a [(&'a str, &'a Trace)]);

struct Events<'a>(&'a [(&'a str, &'a Trace)]);

impl Serialize for File<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let dropped: u64 = self.0.iter().map(|(_, trace)| trace.dropped).sum();
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("displayTimeUnit", "ms")?;
        map.serialize_entry("otherData", &json!({"dropped_events": dropped}))?;
        map.serialize_entry("traceEvents", &Events(self.0))?;
        map.end()
    }
}

impl Serialize for Events<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().zip(1..).flat_map(|(&(name, trace), pid)| {
            let process =
                json!({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}});
            std::iter::once(process).chain(trace.events.iter().map(move |event| event.to_json(pid)))
        }))
    }
}

impl Event {
    fn to_json(self, pid: usize) -> serde_json::Value {
        let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
        let Key { layer, operator, backend, .. } = self.key;
        json!({
            "ph": "X",
            "name": operator,
            "cat": layer.name(),
            "ts": micros(self.start),
            "dur": micros(self.time),
            "pid": pid,
            "tid": 0,
            "args": {
                "backend": backend.name(),
                "rows": self.work.rows,
                "layer": self.index,
                "bytes": self.work.bytes,
                "flops": self.work.flops,
            },
        })
    }
}
