use std::thread::sleep;

use serde_json::Value;

use super::*;
use crate::Limits;

/// 1e9 operations a second of f32, twice and four times of the others; 1e9 bytes a second.
const LIMITS: Limits = Limits { f32_flops: 1e9, bf16_flops: 2e9, int8_ops: 4e9, bytes: 1e9 };

const fn work(rows: usize, bytes: usize, flops: usize) -> Work {
    Work { rows, bytes, flops, unit: Unit::Bf16 }
}

/// A call that takes at least `ms` milliseconds.
fn call(profile: &Profile, operator: &'static str, work: Work, ms: u64) {
    let span = profile.span(operator, Backend::Native, work);
    assert!(span.is_some());
    sleep(Duration::from_millis(ms));
}

fn to_json(traces: &[(&str, &Trace)]) -> Value {
    let mut bytes = Vec::new();
    write_traces(traces, &mut bytes).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn calls_are_summed_by_layer_operator_backend_and_rows() {
    let profile = Profile::new();
    for layer in 0..3 {
        profile.enter(LayerKind::Decoder, Some(layer));
        call(&profile, "norm", work(1, 10, 0), 0);
        call(&profile, "mlp", work(1, 1000, 100), 2);
        call(&profile, "mlp", work(40, 1000, 4000), 4);
        drop(profile.span("mlp", Backend::Tpp, work(1, 1000, 100)));
    }
    profile.enter(LayerKind::Output, None);
    call(&profile, "norm", work(1, 10, 0), 0);
    let report = profile.report(&LIMITS);
    let mut kinds: Vec<_> = report
        .operators
        .iter()
        .map(|r| {
            (
                r.layer.name(),
                r.operator,
                r.backend.name(),
                r.m_class.name(),
                r.calls,
                r.rows,
                r.bytes,
                r.flops,
            )
        })
        .collect();
    assert_eq!(kinds[..2].iter().map(|k| k.3).collect::<Vec<_>>(), [">16", "1"], "the longest first");
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        [
            ("decoder", "mlp", "native", "1", 3, 3, 3000, 300),
            ("decoder", "mlp", "native", ">16", 3, 120, 3000, 12_000),
            ("decoder", "mlp", "tpp", "1", 3, 3, 3000, 300),
            ("decoder", "norm", "native", "1", 3, 3, 30, 0),
            ("output", "norm", "native", "1", 1, 1, 10, 0),
        ]
    );
}

#[test]
fn a_rate_is_the_work_over_the_time() {
    let profile = Profile::new();
    {
        let _step = profile.step();
        sleep(Duration::from_millis(3));
        // A millisecond of operations, by bf16's peak, and two of bytes.
        call(&profile, "mlp", work(1, 2_000_000, 2_000_000), 5);
    }
    let report = profile.report(&LIMITS);
    let row = &report.operators[0];
    assert!(row.seconds >= 5e-3 && report.other_seconds >= 3e-3, "{report:?}");
    assert!((row.seconds + report.other_seconds - report.seconds).abs() < 1e-9);
    assert!((row.share - row.seconds / report.seconds).abs() < 1e-9);
    assert!((row.gbytes_per_s - 2e-3 / row.seconds).abs() < 1e-9);
    assert!((row.gflops_per_s - 2e-3 / row.seconds).abs() < 1e-9);
    assert!((row.fraction - 2e-3 / row.seconds).abs() < 1e-9, "reading is what takes longer");
    // Operations of several units add up: 1 ms, and 4 more of f32.
    let f32_work = Work { unit: Unit::F32, ..work(1, 0, 4_000_000) };
    call(&profile, "mlp", f32_work, 0);
    let row = &profile.report(&LIMITS).operators[0];
    assert!((row.fraction - 5e-3 / row.seconds).abs() < 1e-9);
}

#[test]
fn a_span_inside_another_is_the_outer_ones() {
    let profile = Profile::new();
    let outer = profile.span("mlp", Backend::Tpp, work(1, 1, 1));
    assert!(profile.span("linear", Backend::Tpp, work(1, 1, 1)).is_none());
    assert!(profile.span("norm", Backend::Tpp, work(1, 1, 1)).is_none());
    drop(outer);
    call(&profile, "linear", work(1, 1, 1), 0);
    let json = to_json(&[("run", &profile.trace())]);
    let names: Vec<_> = json["traceEvents"].as_array().unwrap()[1..].iter().map(|e| &e["name"]).collect();
    assert_eq!(names, ["mlp", "linear"]);
}

#[test]
fn a_panic_ends_its_span() {
    let profile = Profile::new();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _span = profile.span("mlp", Backend::Tpp, work(1, 1, 1));
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(panicked.is_err() && profile.span("norm", Backend::Tpp, work(1, 1, 1)).is_some());
}

#[test]
fn memory_is_bounded_and_a_reset_forgets() {
    let profile = Profile::with_capacity(2);
    for _ in 0..5 {
        call(&profile, "norm", work(1, 1, 1), 0);
    }
    let trace = profile.trace();
    assert_eq!((trace.len(), trace.dropped()), (2, 3));
    assert_eq!(to_json(&[("run", &trace)])["otherData"]["dropped_events"], 3);
    profile.reset_trace();
    assert_eq!((profile.trace().is_empty(), profile.report(&LIMITS).operators[0].calls), (true, 5));
    profile.reset();
    let report = profile.report(&LIMITS);
    assert_eq!((report.operators.len(), report.seconds), (0, 0.0));
    assert!(report.to_string().contains("all"), "{report}");
}

#[test]
fn a_trace_is_what_chrome_reads() {
    let profile = Profile::new();
    profile.enter(LayerKind::Decoder, Some(7));
    call(&profile, "attention", work(3, 40, 500), 2);
    profile.enter(LayerKind::Output, None);
    call(&profile, "lm_head", work(1, 60, 700), 1);
    let trace = profile.trace();
    let json = to_json(&[("first", &trace), ("second", &trace)]);
    let events = json["traceEvents"].as_array().unwrap();
    assert_eq!(events.len(), 2 * (1 + 2));
    assert_eq!((&events[0]["ph"], &events[0]["args"]["name"]), (&"M".into(), &"first".into()));
    assert_eq!(events[3]["args"]["name"], "second");
    let (a, b) = (&events[1], &events[2]);
    assert_eq!((&a["ph"], &a["name"], &a["cat"]), (&"X".into(), &"attention".into(), &"decoder".into()));
    assert_eq!(
        a["args"],
        serde_json::json!({"backend": "native", "rows": 3, "layer": 7, "bytes": 40, "flops": 500})
    );
    assert_eq!(b["args"]["layer"], Value::Null);
    let number = |event: &Value, key: &str| event[key].as_f64().unwrap();
    assert!(number(a, "dur") >= 2e3 && number(b, "dur") >= 1e3, "microseconds: {json}");
    assert!(number(a, "ts") + number(a, "dur") <= number(b, "ts"), "one after the other: {json}");
    assert_eq!((&a["pid"], &events[4]["pid"]), (&1.into(), &2.into()));
}

#[test]
fn the_table_and_the_json_name_everything() {
    let profile = Profile::new();
    profile.enter(LayerKind::Decoder, Some(0));
    call(&profile, "qkv_projection", work(2, 1000, 2000), 1);
    let report = profile.report(&LIMITS);
    let table = report.to_string();
    for part in ["qkv_projection", "native", "decoder", "2-16", "other", "limits: 1.0 GB/s", "bf16 2.0"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[0].chars().count(), lines[1].chars().count(), "columns are aligned: {table}");
    let share = |line: &str| line.find(" %");
    assert_eq!(share(lines[1]), share(lines[3]), "{table}");
    let json = serde_json::to_value(&report).unwrap();
    let row = &json["operators"][0];
    let names = [&row["operator"], &row["backend"], &row["layer"], &row["m_class"]];
    assert_eq!(names, ["qkv_projection", "native", "decoder", "2-16"]);
    assert!(row["seconds"].as_f64().unwrap() >= 1e-3 && json["limits"]["bytes"] == 1e9);
}
