//! `bench`: what it measures, in every format.

use serde_json::Value;

use super::common::pace;
use super::{json, keys};

/// The keys of a result, as documented.
const KEYS: [&str; 33] = [
    "model",
    "size_bytes",
    "params",
    "dtype",
    "isa",
    "op_config",
    "kv_cache",
    "kv_settings",
    "kv_dtype",
    "hugepages",
    "threads",
    "instances",
    "test",
    "n_prompt",
    "n_gen",
    "n_depth",
    "batch",
    "avg_ts",
    "stddev_ts",
    "samples_ts",
    "gbs",
    "gflops",
    "roofline_fraction",
    "ttft_ms",
    "peak_rss_bytes",
    "limits",
    "operators",
    "demotions",
    "formats",
    "losses",
    "bit_equal",
    "huge_page_share",
    "kv_huge_page_share",
];

/// The results of `bench` with `args` in JSON, at least one.
fn bench(args: &[&str]) -> Vec<Value> {
    let out = json(&pace(&[&["bench", "-o", "json"], args].concat()));
    let Value::Array(tests) = out else { panic!("an array: {out}") };
    assert!(!tests.is_empty());
    tests
}

/// What `key` is in each result.
fn each<'t>(tests: &'t [Value], key: &str) -> Vec<&'t Value> {
    tests.iter().map(|test| &test[key]).collect()
}

fn number(test: &Value, key: &str) -> f64 {
    test[key].as_f64().unwrap_or_else(|| panic!("{key} is a number: {test}"))
}

#[test]
fn a_result_says_what_was_measured_and_what_came_of_it() {
    let tests = bench(&["-m", "random:tiny", "-p", "16", "-n", "4", "-t", "2", "-r", "3"]);
    assert_eq!(each(&tests, "test"), ["pp16", "tg4"]);
    for test in &tests {
        assert_eq!(keys(test), KEYS);
        assert_eq!((test["model"].as_str(), test["threads"].as_u64()), (Some("random:tiny"), Some(2)));
        assert_eq!((&test["op_config"], &test["operators"]["mlp"]), (&"auto".into(), &"tpp".into()));
        assert_eq!(
            (&test["dtype"], &test["kv_cache"], &test["instances"]),
            (&"bf16".into(), &"bmc".into(), &1.into())
        );
        assert_eq!(
            (&test["demotions"], &test["bit_equal"]),
            (&Value::Array(Vec::new()), &false.into()),
            "{test}"
        );
        for key in ["huge_page_share", "kv_huge_page_share"] {
            let share = &test[key];
            assert!(share.is_null() || (0.0..=1.0).contains(&share.as_f64().unwrap()), "{key} {share}");
        }
        let samples: Vec<f64> = serde_json::from_value(test["samples_ts"].clone()).unwrap();
        assert!(samples.len() == 3 && samples.iter().all(|&s| s > 0.0), "{samples:?}");
        let mean = samples.iter().sum::<f64>() / 3.0;
        assert!((number(test, "avg_ts") / mean - 1.0).abs() < 1e-9);
        for key in ["gbs", "gflops", "roofline_fraction", "ttft_ms"] {
            assert!(number(test, key) > 0.0, "{key}: {test}");
        }
        // The process maps more than the weights, and this machine has not that much.
        let peak = test["peak_rss_bytes"].as_u64().unwrap();
        assert!(peak > test["size_bytes"].as_u64().unwrap() && peak < 1 << 40, "{peak}");
    }
}

#[test]
fn what_is_read_and_computed_follows_from_the_shape() {
    let tests =
        bench(&["-m", "random:small", "-r", "2", "-p", "64", "-n", "8", "-d", "0,64", "--dtype", "f32"]);
    for test in &tests {
        let (limits, rate) = (&test["limits"], number(test, "avg_ts"));
        let (params, prefill) = (number(test, "params"), test["n_gen"] == 0);
        let (fraction, share) = if prefill {
            (
                number(test, "gflops") * 1e9 / number(limits, "f32_flops"),
                number(test, "gflops") * 1e9 / rate / params,
            )
        } else {
            (number(test, "gbs") * 1e9 / number(limits, "bytes"), number(test, "gbs") * 1e9 / rate / params)
        };
        assert!((number(test, "roofline_fraction") / fraction - 1.0).abs() < 1e-9, "{test}");
        // Two operations for each weight but those of the embedding, 4 bytes for each; attention and cache on top.
        let expected = if prefill { 1.0..3.0 } else { 3.9..5.0 };
        assert!(expected.contains(&share), "{share} for each weight: {test}");
    }
}

#[test]
fn every_value_meets_every_other() {
    let tests = bench(&[
        "-m",
        "random:small",
        "-p",
        "8,0",
        "-p",
        "4",
        "-n",
        "2",
        "-pg",
        "4,2",
        "-d",
        "0,32",
        "-b",
        "1,3",
    ]);
    let names: Vec<String> =
        tests.iter().map(|t| format!("{}x{}", t["test"].as_str().unwrap(), t["batch"])).collect();
    let expected = ["pp8", "pp4", "tg2", "pp4+tg2"].into_iter().flat_map(|name| {
        [format!("{name}x1"), format!("{name}x3"), format!("{name}@d32x1"), format!("{name}@d32x3")]
    });
    assert_eq!(names, expected.collect::<Vec<_>>());
    let last = tests.last().unwrap();
    let sizes = ["n_prompt", "n_gen", "n_depth", "batch"].map(|key| last[key].as_u64().unwrap());
    assert_eq!(sizes, [4, 2, 32, 3]);
    assert!(tests.iter().all(|test| number(test, "avg_ts") > 0.0));
}

#[test]
fn engines_are_started_for_every_combination() {
    let op = |json| ["--op-config", json];
    let tests = bench(
        &[
            ["-m", "random:tiny,random:small", "-r", "2"].as_slice(),
            &["-p", "4", "-n", "0", "-t", "1,2"],
            &op(r#"{"mlp": "native"}"#),
            &op("{}"),
        ]
        .concat(),
    );
    let found: Vec<_> = tests
        .iter()
        .map(|t| {
            (t["model"].as_str().unwrap(), t["op_config"].as_str().unwrap(), t["threads"].as_u64().unwrap())
        })
        .collect();
    let mut expected = Vec::new();
    for model in ["random:tiny", "random:small"] {
        for op_config in ["mlp=native", "auto"] {
            expected.extend([(model, op_config, 1), (model, op_config, 2)]);
        }
    }
    assert_eq!(found, expected);
    assert_eq!(
        (&tests[0]["operators"]["mlp"], &tests[2]["operators"]["mlp"]),
        (&"native".into(), &"tpp".into())
    );
}

#[test]
fn every_kind_of_cache_is_measured() {
    let args = ["-m", "random:small", "-p", "0", "-n", "4", "-d", "0,70", "-b", "2", "-r", "1"];
    let tests =
        bench(&[args.as_slice(), &["--kv-cache", "dynamic,static,bmc", "--bmc-splits", "4"]].concat());
    let kinds = ["dynamic", "dynamic", "static", "static", "bmc", "bmc"];
    assert_eq!(each(&tests, "kv_cache"), kinds);
    assert!(tests.iter().all(|test| number(test, "avg_ts") > 0.0));
    // Before the first test runs, not in the middle.
    let splits = ["bench", "-m", "random:small", "-p", "128,8", "-n", "0", "--bmc-splits", "100"];
    pace(&splits).assert_refused(2, &["pp8", "from 1 to 9"]);
}

#[test]
fn instances_divide_the_threads_and_share_the_weights() {
    let args = [
        "-m",
        "random:small",
        "-p",
        "8",
        "-n",
        "4",
        "-t",
        "2",
        "-b",
        "2",
        "-d",
        "16",
        "-r",
        "2",
        "--instances",
        "1,2",
    ];
    let tests = bench(&args);
    assert_eq!(each(&tests, "instances"), [1, 1, 2, 2]);
    assert!(each(&tests, "threads").iter().all(|threads| **threads == 2));
    assert!(tests.iter().all(|test| number(test, "avg_ts") > 0.0));
    assert_eq!(tests[0]["size_bytes"], tests[3]["size_bytes"], "one copy");
}

#[test]
fn each_format_says_the_same() {
    let args = ["bench", "-m", "random:tiny", "-p", "8", "-n", "2", "-r", "1", "-o"];
    let run = |format: &str| pace(&[&args[..], &[format]].concat()).text().to_owned();
    let names = |text: &str| -> Vec<String> {
        let test =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["test"].as_str().unwrap().to_owned();
        text.lines().map(test).collect()
    };
    assert_eq!(names(&run("jsonl")), ["pp8", "tg2"]);
    let csv = run("csv");
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, KEYS.join(",").as_str()));
    assert!(lines[1].starts_with("random:tiny,") && lines[1].contains(",pp8,8,0,0,1,"), "{csv}");
    // The only fields with commas are JSON.
    assert!(lines[2].contains(r#",tg2,0,2,0,1,"#) && lines[2].contains(r#""{""lm_head"":"#), "{csv}");
}

#[test]
fn markdown_is_a_table_with_notes() {
    let run = |args: &[&str]| {
        let head = ["bench", "-m", "random:tiny", "-p", "8", "-n", "2", "-r", "1"];
        pace(&[&head, args].concat()).text().to_owned()
    };
    let text = run(&[]);
    let (table, notes) = text.split_once("\n\n").unwrap();
    let lines: Vec<&str> = table.lines().collect();
    let columns = lines[0].matches('|').count();
    assert!(lines.iter().all(|line| line.starts_with('|') && line.matches('|').count() == columns), "{text}");
    assert!(lines.len() == 4 && lines[2].contains("| pp8 |") && lines[3].contains("| tg2 |"), "{text}");
    for name in ["op-config", "t/s", "GB/s", "GFLOP/s", "of limit", "TTFT ms", "peak RSS"] {
        assert!(lines[0].contains(&format!("| {name} |")), "{name}: {text}");
    }
    assert!(!lines[0].contains("batch") && !lines[0].contains("instances"), "{text}");
    assert!(notes.contains("huge pages") && notes.contains("native: attention"), "{notes}");
    assert!(run(&["-b", "2"]).contains("| batch | test |"));
    let caches = run(&["--kv-cache", "static"]);
    assert!(caches.contains("| kv-cache |") && caches.contains("| static |"), "{caches}");
    let int8 = run(&["--kv-dtype", "int8"]);
    assert!(int8.contains("| kv-dtype |") && int8.contains("| int8 |"), "{int8}");
}
