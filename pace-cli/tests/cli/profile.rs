//! Where the time went: `bench --profile`, `bench --trace`, `PACE_LOG_LEVEL=profile`.

use serde_json::Value;

use super::common::{Call, arg, pace};
use super::{Outcome, json, keys};

const BENCH: [&str; 11] = ["bench", "-m", "random:tiny", "-r", "2", "-p", "20", "-n", "3", "-t", "2"];

fn bench(args: &[&str]) -> Outcome {
    pace(&[&BENCH, args].concat())
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} is a number: {value}"))
}

#[test]
fn bench_has_a_profile_of_each_test() {
    let out = json(&bench(&["--profile", "-o", "json"]));
    for (test, m_class) in out.as_array().unwrap().iter().zip([">16", "1"]) {
        let profile = &test["profile"];
        assert_eq!(keys(profile), ["seconds", "other_seconds", "operators", "limits"]);
        assert_eq!(keys(&profile["limits"]), ["f32_flops", "bf16_flops", "int8_ops", "bytes"]);
        let rows = profile["operators"].as_array().unwrap();
        let decoder: Vec<_> = rows.iter().filter(|row| row["layer"] == "decoder").collect();
        assert!(!decoder.is_empty(), "{profile}");
        for row in &decoder {
            assert_eq!(row["m_class"], m_class, "{row}");
            // Two counted runs, and not the first one, of a prompt at once or of three tokens.
            let forwards = if m_class == "1" { 2 * 3 } else { 2 };
            let a_layer = if row["operator"] == "norm" { 2 } else { 1 };
            let layers = row["calls"].as_u64().unwrap() as usize / (forwards * a_layer);
            assert!(layers > 0 && row["calls"] == layers * forwards * a_layer, "{row}");
            assert!(number(row, "fraction") >= 0.0 && number(row, "share") > 0.0, "{row}");
        }
        for (layer, operators) in [
            ("embedding", ["embedding", "rope_angles"].as_slice()),
            ("decoder", &["norm", "qkv_projection", "kv_append", "attention", "out_projection", "mlp"]),
            ("output", &["norm", "lm_head"]),
        ] {
            let has = |name: &str| rows.iter().any(|r| r["layer"] == layer && r["operator"] == name);
            assert!(operators.iter().all(|name| has(name)), "{layer}: {profile}");
        }
        let operators: f64 = rows.iter().map(|row| number(row, "seconds")).sum();
        let (all, other) = (number(profile, "seconds"), number(profile, "other_seconds"));
        assert!(operators > 0.0 && (operators + other - all).abs() < 1e-6, "{profile}");
        let rate = number(test, "avg_ts");
        let tokens = if m_class == "1" { 3.0 } else { 20.0 };
        assert!(all > tokens / rate, "two runs take longer than their mean: {profile}");
    }
    assert!(json(&bench(&["-o", "json"]))[0].get("profile").is_none(), "only when asked for");
}

#[test]
fn bench_in_markdown_has_a_table_of_each_test() {
    let out = bench(&["--profile"]);
    let text = out.text();
    let (results, profiles) = text.split_once("\n\n").unwrap();
    assert!(results.lines().all(|line| line.starts_with('|')), "{results}");
    for part in ["pp20:\n```text\noperator", "tg3:\n```text\noperator", "other", "limits: "] {
        assert!(profiles.contains(part), "{part}: {profiles}");
    }
    assert_eq!(out.stderr, "");
}

#[test]
fn a_trace_has_the_last_run_of_each_test() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.json");
    let out = json(&bench(&["--trace", arg(&path), "-o", "json"]));
    assert!(out[0]["profile"]["operators"].is_array(), "--trace implies --profile");
    let trace: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(trace["otherData"]["dropped_events"], 0);
    let events = trace["traceEvents"].as_array().unwrap();
    let names: Vec<_> = events.iter().filter(|e| e["ph"] == "M").map(|e| &e["args"]["name"]).collect();
    assert_eq!(names, ["pp20", "tg3"]);
    for (pid, test) in out.as_array().unwrap().iter().enumerate() {
        let calls: Vec<_> = events.iter().filter(|e| e["ph"] == "X" && e["pid"] == pid + 1).collect();
        let counted: u64 = test["profile"]["operators"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["calls"].as_u64().unwrap())
            .sum();
        assert_eq!(2 * calls.len() as u64, counted, "one of two counted runs");
        for (a, b) in calls.iter().zip(&calls[1..]) {
            assert!(number(a, "ts") + number(a, "dur") <= number(b, "ts"), "{a} {b}");
        }
        let in_layers = calls.iter().filter(|e| e["cat"] == "decoder");
        assert!(in_layers.clone().count() > 0 && in_layers.clone().all(|e| e["args"]["layer"].is_u64()));
    }
}

#[test]
fn a_trace_that_cannot_be_written_names_its_file() {
    let dir = tempfile::tempdir().unwrap();
    bench(&["--trace", arg(dir.path())]).assert_refused(2, &["--trace", arg(dir.path())]);
    let missing = dir.path().join("missing/trace.json");
    bench(&["--trace", arg(&missing)]).assert_refused(2, &["--trace", arg(&missing)]);
    let full = bench(&["--trace", "/dev/full", "-o", "json"]);
    assert_eq!(full.code, Some(4), "{}", full.stderr);
    assert!(full.stderr.contains("cannot write to /dev/full"), "{}", full.stderr);
    let results: Value = serde_json::from_slice(&full.stdout).unwrap();
    assert_eq!(results.as_array().unwrap().len(), 2, "the results are there all the same");
}

#[test]
fn the_log_level_profiles_every_command_that_runs_a_model() {
    let model = ["-m", "random:tiny", "--format", "json"];
    let commands = [
        [["generate", "--prompt-tokens", "1,2,3"].as_slice(), &model].concat(),
        [["score", "--tokens", "1,2,3"].as_slice(), &model].concat(),
        [&BENCH, ["-o", "json"].as_slice()].concat(),
    ];
    for args in commands {
        let level = |level: &str| Call::new(&args).env("PACE_LOG_LEVEL", level).run();
        let out = level("profile");
        for part in ["operator ", "decoder", "limits: "] {
            assert!(out.stderr.contains(part), "{args:?}: {part}: {}", out.stderr);
        }
        assert!(!out.text().contains("limits: "), "results are as ever: {}", out.text());
        assert_eq!(level("warning").stderr, "", "{args:?}");
    }
}
