//! `--kv-cache`, the settings of BMC, `kv-plan`.

use serde_json::Value;

use super::common::{Call, pace};
use super::{ids, json, keys};

/// 503 of 512 positions, grown token by token.
const ANSWER: [&str; 10] = [
    "generate",
    "-m",
    "random:tiny",
    "--prompt-tokens",
    "1,2,3",
    "-n",
    "500",
    "--ignore-eos",
    "--format",
    "json",
];

fn answer(args: &[&str]) -> Value {
    json(&pace(&[&ANSWER, args].concat()))
}

#[test]
fn every_cache_gives_the_same_tokens_and_says_what_it_did() {
    let fixed = answer(&["--kv-cache", "static"]);
    let rows = |out: &Value| {
        let kv = &out["kv_cache"];
        assert_eq!(ids(&out["tokens"]), ids(&fixed["tokens"]), "{kv}");
        let number = |key: &str| kv[key].as_u64().unwrap();
        let copied = number("bytes_copied") > 0;
        (kv["kind"].as_str().unwrap().to_owned(), number("allocations"), number("capacity_rows"), copied)
    };
    assert_eq!(rows(&fixed), ("static".to_owned(), 1, 512, false));
    assert_eq!(rows(&answer(&["--kv-cache", "dynamic"])), ("dynamic".to_owned(), 500, 512, true));
    let bmc = |allocations, copied| ("bmc".to_owned(), allocations, 512, copied);
    assert_eq!(rows(&answer(&["--bmc-splits", "4"])), bmc(4, false));
    assert_eq!(rows(&answer(&["--bmc-splits", "4", "--bmc-grow", "copy"])), bmc(4, true));
    assert_eq!(rows(&answer(&["--bmc-splits", "503", "--bmc-growth", "linear"])), bmc(8, false));
    assert_eq!(rows(&answer(&["--bmc-splits", "1", "--bmc-grow", "copy"])), bmc(1, false));
    let by_variable = Call::new(&ANSWER).env("PACE_BMC_NUM_SPLITS", "3").run();
    assert_eq!(rows(&json(&by_variable)), bmc(3, false));
    let chosen = rows(&answer(&[]));
    assert!(chosen.1 > 1 && !chosen.3, "{chosen:?}");
}

#[test]
fn splits_out_of_range_are_refused_whoever_asks() {
    for splits in ["0", "-1", "two", "1.5", "513", "1000000", "99999999999999999999999"] {
        let flag = ["--bmc-splits", splits];
        pace(&[&ANSWER[..], &flag].concat()).assert_refused(2, &["--bmc-splits", splits]);
        let variable = Call::new(&ANSWER).env("PACE_BMC_NUM_SPLITS", splits).run();
        variable.assert_refused(2, &["PACE_BMC_NUM_SPLITS", splits]);
    }
    pace(&["doctor", "-m", "random:small", "--bmc-splits", "100000000"])
        .assert_refused(2, &["--bmc-splits", "100000000"]);
    // --ctx-size is what is set aside at least, not the maximum.
    let short = ["generate", "-m", "random:tiny", "--prompt-tokens", "1,2,3", "-n", "50", "--ctx-size", "10"];
    assert_eq!(pace(&[&short[..], &["--bmc-splits", "20"]].concat()).code, Some(0));
    pace(&[&ANSWER[..], &["--bmc-growth", "cubic"]].concat()).assert_refused(2, &["--bmc-growth", "linear"]);
    pace(&[&ANSWER[..], &["--kv-cache", "static", "--bmc-splits", "2"]].concat())
        .assert_refused(2, &["--bmc-splits", "static"]);
}

#[test]
fn kv_plan_shows_what_it_chose_and_among_what() {
    let args = ["kv-plan", "-m", "random:llama-1b", "--length", "2048", "--batch", "4", "--format", "json"];
    let plan = json(&pace(&args));
    assert_eq!((&plan["length"], &plan["batch"]), (&Value::from(2048), &Value::from(4)));
    assert!(plan["copy_bytes_per_second"].as_f64() > Some(1e8));
    let candidates = plan["candidates"].as_array().unwrap();
    assert!(candidates.len() > 20);
    let names = [
        "growth",
        "splits",
        "grow",
        "allocations",
        "bytes_copied",
        "peak_bytes",
        "mean_bytes",
        "spare_ratio",
        "seconds",
    ];
    assert!(candidates.iter().all(|c| keys(c) == names));
    assert!(candidates.contains(&plan["choice"]));
    assert_eq!(plan["choice"]["bytes_copied"], 0);
    assert!(plan["choice"]["spare_ratio"].as_f64() <= Some(1.25), "{}", plan["choice"]);
    let text = pace(&args[..args.len() - 2]);
    assert!(text.text().contains("chosen") && text.text().contains("4 sequences of 2048 tokens"));
    let given = json(&pace(&[&args[..], &["--bmc-splits", "3", "--bmc-grow", "copy"]].concat()));
    assert_eq!(
        (&given["choice"]["splits"], &given["choice"]["grow"]),
        (&Value::from(3), &Value::from("copy"))
    );
    let int8 = json(&pace(&[&args[..], &["--kv-dtype", "int8"]].concat()));
    assert_eq!((&plan["dtype"], &int8["dtype"]), (&Value::from("bf16"), &Value::from("int8")));
    // 64 elements of a byte and a scale of 4, for 128 bytes of bf16.
    let peaks = [&int8, &plan].map(|plan| plan["candidates"][0]["peak_bytes"].as_u64().unwrap());
    assert_eq!(peaks[0] * 128, peaks[1] * 68);
}

#[test]
fn what_kv_plan_cannot_plan_is_refused() {
    let refused = |args: &[&str], words: &[&str]| {
        pace(&[&["kv-plan", "-m", "random:tiny"], args].concat()).assert_refused(2, words);
    };
    refused(&["--length", "513"], &["--length", "512"]);
    refused(&["--length", "100", "--bmc-splits", "101"], &["--bmc-splits", "101", "100"]);
    refused(&["--batch", "99999999999999"], &["--batch", "4096"]);
    refused(&["--batch", "0"], &["--batch", "1..=4096"]);
    for flag in ["--length", "--prefill-chunk"] {
        for value in ["0", "-1", "many"] {
            refused(&[flag, value], &[flag, value, "at least 1"]);
        }
    }
    for kind in ["static", "dynamic"] {
        refused(&["--kv-cache", kind], &["--kv-cache", kind, "bmc"]);
    }
}

#[test]
fn info_has_the_memory_of_every_kind() {
    let memory = json(&pace(&["info", "random:llama-1b", "--format", "json"]))["memory"].clone();
    let by_kind = &memory["kv_bf16_context_bytes"];
    let context = 131_072 * memory["kv_bf16_bytes_per_token"].as_u64().unwrap();
    assert_eq!(keys(by_kind), ["dynamic", "static", "bmc"]);
    assert_eq!(by_kind["static"], context);
    assert_eq!(by_kind["bmc"], context);
    assert!(by_kind["dynamic"].as_u64() > Some(context), "{by_kind}");
    // 16 layers of 8 heads: keys and values of 64 dimensions and a scale.
    assert_eq!(memory["kv_int8_bytes_per_token"], 16 * 8 * 2 * (64 + 4));
}
