//! Threads and CPUs: flags, OpenMP's variables, and what is refused.

#[cfg(target_os = "linux")]
use std::process::Command;

use serde_json::Value;

use super::common::{Call, pace};
use super::{cpus, json, keys};

fn generate<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let base = ["generate", "-m", "random:tiny", "--prompt-tokens", "1,2,3", "-n", "4", "--format", "json"];
    [&base, more].concat()
}

fn threads(call: Call) -> Value {
    json(&call.run())["threads"].clone()
}

#[test]
fn flags_go_before_openmp_s_variables() {
    let last = cpus()[cpus().len() - 1].to_string();
    let call = |more: &[&str]| Call::new(&generate(more));
    assert_eq!(threads(call(&["--cores", &last])), 1);
    assert_eq!(threads(call(&["--cores", &last, "--no-pin", "--threads", "2"])), 2);
    assert_eq!(threads(call(&[]).env("GOMP_CPU_AFFINITY", &last)), 1);
    assert_eq!(threads(call(&[]).env("OMP_NUM_THREADS", "3,2")), 3);
    assert_eq!(threads(call(&["--threads", "1"]).env("OMP_NUM_THREADS", "3")), 1);
    assert_eq!(threads(call(&["--prefill-threads", "1", "-t", "2"])), 2);
}

#[test]
fn more_threads_than_cores_is_a_warning() {
    let outcome = pace(&generate(&["--threads", "64", "--cores", &cpus()[0].to_string()]));
    assert_eq!(json(&outcome)["threads"], 64);
    assert!(outcome.stderr.contains("64 threads are more than there are cores for"), "{}", outcome.stderr);
}

#[test]
fn cpus_and_nodes_that_are_not_there_are_named() {
    let refused = |more: &[&str], words: &[&str]| pace(&generate(more)).assert_refused(2, words);
    refused(&["--cores", "60000"], &["--cores", "CPU 60000", "this process may use: "]);
    refused(&["--cores", "3-1"], &["--cores", "0-3,8"]);
    refused(&["--cores", ""], &["--cores"]);
    refused(&["--numa-node", "4000"], &["--numa-node", "no node 4000", "this machine has: "]);
    refused(&["--numa-node", "0", "--cores", &cpus()[0].to_string()], &["--numa-node", "--cores"]);
    refused(&["--decode-threads", "0"], &["--decode-threads"]);
    let variable = |name, value, words: &[&str]| {
        Call::new(&generate(&[])).env(name, value).run().assert_refused(2, words);
    };
    variable("GOMP_CPU_AFFINITY", "0-", &["GOMP_CPU_AFFINITY", "`0-`"]);
    variable("GOMP_CPU_AFFINITY", "0 60000", &["GOMP_CPU_AFFINITY", "CPU 60000"]);
    variable("OMP_NUM_THREADS", "many", &["OMP_NUM_THREADS", "many", "1 to 4096"]);
}

/// A report of the doctor's, whatever it found.
fn doctor(call: Call) -> Value {
    let outcome = call.run();
    let report = json(&outcome);
    assert_eq!(keys(&report), ["checks", "settings", "machine"]);
    report
}

/// A check of a report.
fn check<'r>(report: &'r Value, id: &str) -> &'r Value {
    report["checks"].as_array().unwrap().iter().find(|check| check["id"] == id).unwrap()
}

/// The value and the source of a setting of a report.
fn setting(report: &Value, name: &str) -> (String, String) {
    let settings = report["settings"].as_array().unwrap();
    let found = settings.iter().find(|setting| setting["name"] == name);
    let found = found.unwrap_or_else(|| panic!("no setting {name}"));
    assert_eq!(keys(found), ["name", "value", "source"]);
    (found["value"].as_str().unwrap().to_owned(), found["source"].as_str().unwrap().to_owned())
}

fn pair(value: &str, source: &str) -> (String, String) {
    (value.to_owned(), source.to_owned())
}

#[test]
fn the_doctor_says_how_weights_are_stored_and_what_is_left_for_caches() {
    let report = doctor(Call::new(&["doctor", "-m", "random:tiny", "--format", "json"]));
    assert_eq!(setting(&report, "quant"), pair("as the files have integers, else bf16", "default"));
    assert_eq!(setting(&report, "quant_rounding"), pair("search", "default"));
    assert_eq!(setting(&report, "imatrix"), pair("none", "default"));
    assert_eq!(setting(&report, "bmc_growth"), pair("auto", "default"));
    let (memory, source) = setting(&report, "kv_memory");
    let number = memory.strip_prefix("about ").and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    assert!(number > Some(0.0) && source == "default", "{memory}");
    let flags = ["--quant", "int4:64", "--act-quant", "token", "--quant-rounding", "nearest", "--mmap"];
    let report =
        doctor(Call::new(&[&["doctor", "-m", "random:tiny", "--format", "json"][..], &flags].concat()));
    assert_eq!(setting(&report, "quant"), pair("int4:64", "--quant"));
    assert_eq!(setting(&report, "quant_lm_head"), pair("int8r", "default"));
    assert_eq!(setting(&report, "quant_rounding"), pair("nearest", "--quant-rounding"));
    assert_eq!(setting(&report, "act_quant"), pair("token", "--act-quant"));
    assert_eq!(setting(&report, "mmap"), pair("true", "--mmap"));
}

#[test]
fn the_doctor_reports_checks_settings_and_machine() {
    let model = ["doctor", "-m", "random:tiny", "--format", "json"];
    let flags = ["--threads", "1", "--op", "mlp=native", "--kv-cache", "bmc", "--kv-memory", "1GiB"];
    let call = Call::new(&[&model[..], &flags].concat()).env("PACE_BMC_NUM_SPLITS", "3");
    let report =
        doctor(call.env("OMP_NUM_THREADS", "7").env("IMBPS_BLOCK_SIZE", "4").env("HF_TOKEN", "hf_secret"));
    let checks = report["checks"].as_array().unwrap();
    for check in checks {
        assert_eq!(keys(check), ["id", "status", "value", "advice"]);
        let (status, advice) = (check["status"].as_str().unwrap(), check["advice"].as_str().unwrap());
        assert!(["ok", "warn"].contains(&status), "{check}");
        assert_eq!(status == "ok", advice.is_empty(), "{check}");
    }
    let ids: Vec<_> = checks.iter().map(|check| check["id"].as_str().unwrap()).collect();
    for id in [
        "isa",
        "threads",
        "pinning",
        "cpu_quota",
        "numa",
        "memory",
        "huge_pages",
        "allocator",
        "kv_cache",
        "frequency",
    ] {
        assert!(ids.contains(&id), "{id}: {ids:?}");
    }
    assert_eq!(check(&report, "operators")["value"], "by native: mlp");
    let setting = |name: &str| setting(&report, name);
    assert_eq!(setting("threads"), pair("1", "--threads"));
    assert_eq!(setting("imbps_chunks"), pair("4", "IMBPS_BLOCK_SIZE"));
    assert_eq!(setting("operators"), pair("mlp=native", "--op, --op-config"));
    assert_eq!(setting("numa_memory"), pair("bind", "default"));
    assert_eq!(setting("kv_cache"), pair("bmc", "--kv-cache"));
    assert_eq!(setting("bmc_splits"), pair("3", "PACE_BMC_NUM_SPLITS"));
    assert_eq!(setting("bmc_growth"), pair("doubling", "PACE_BMC_NUM_SPLITS"));
    assert_eq!(setting("kv_memory").1, "--kv-memory");
    assert_eq!(setting("prefill_chunk"), pair("512", "default"));
    assert_eq!(setting("HF_TOKEN"), pair("(set)", "HF_TOKEN"));
    assert_eq!(setting("PACE_CACHE").1, "PACE_CACHE");
    for (name, path) in [("HF_HOME", ""), ("HF_HUB_CACHE", "/hub"), ("HF_TOKEN_PATH", "/token")] {
        let (value, source) = setting(name);
        assert_eq!(source, "default");
        assert!(value.starts_with('/') && value.ends_with(&format!("/.cache/huggingface{path}")), "{value}");
    }
    let machine = &report["machine"];
    assert!(machine["cores"].as_u64().unwrap() > 0, "{machine}");
    assert!(machine["limits"]["bytes"].as_f64().unwrap() > 1e6, "{machine}");
}

#[test]
fn the_default_model_is_bf16_unless_auto_is_said() {
    let quant = |flags: &[&str]| {
        let report = doctor(Call::new(&[&["doctor", "--format", "json"], flags].concat()));
        (setting(&report, "dtype").1, setting(&report, "quant").0)
    };
    assert_eq!(quant(&[]), pair("default", "bf16"));
    assert_eq!(quant(&["--dtype", "auto"]), pair("--dtype", "as the files have integers, else bf16"));
}

#[test]
fn a_strict_doctor_fails_where_anything_costs_speed() {
    let args = ["doctor", "--threads", "64", "--strict", "--format", "json"];
    let outcome = pace(&args);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let report: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!(check(&report, "threads")["status"], "warn");
    // Without --strict it is a finding, no failure; and people get the same.
    let text = pace(&["doctor", "--threads", "64"]);
    assert!(text.text().contains("WARN threads"), "{}", text.text());
}

#[cfg(target_os = "linux")]
#[test]
fn the_doctor_s_memory_ends_where_setrlimit_says() {
    // In KiB: 135 million weights take 269 MB, and the program itself some more.
    let script = "ulimit -v 300000; exec \"$0\" doctor -m random:smollm2-135m -t 1 --format json";
    let run = Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_pace-cli")]).output().unwrap();
    assert_eq!(run.status.code(), Some(1), "{}", String::from_utf8_lossy(&run.stderr));
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    let memory = check(&report, "memory");
    assert_eq!(memory["status"], "fail", "{memory}");
    assert!(memory["value"].as_str().unwrap().ends_with("(ulimit -v)"), "{memory}");
}

#[test]
fn variables_are_listed_and_unknown_ones_are_named() {
    let call =
        || Call::new(&["env", "--format", "json"]).env("PACE_LOGLEVEL", "info").env("HF_TOKEN", "hf_secret");
    let outcome = call().run();
    assert!(
        outcome.stderr.contains("PACE_LOGLEVEL means nothing; did you mean PACE_LOG_LEVEL?"),
        "{}",
        outcome.stderr
    );
    let listed = json(&outcome);
    let value = |name: &str| {
        let found = listed.as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap();
        assert_eq!(keys(found), ["name", "value", "default", "meaning"]);
        found["value"].clone()
    };
    assert_eq!(value("HF_TOKEN"), "(set)");
    assert_eq!(value("OMP_NUM_THREADS"), Value::Null);
    assert!(pace(&["env"]).text().contains("PACE_BMC_NUM_SPLITS"));
}

#[test]
fn a_program_is_launched_with_an_allocator_or_told_where_it_was_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    // The head of a program for this machine, without a body.
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    std::fs::write(dir.path().join("libmimalloc.so.2"), &program[..64]).unwrap();
    let args = ["launch", "--allocator", "mimalloc", "--", "sh", "-c", "echo $LD_PRELOAD"];
    let launched = Call::new(&args).env("LD_LIBRARY_PATH", dir.path().to_str().unwrap()).run();
    // The dynamic linker says that the file is no library, and goes on.
    assert_eq!(launched.text().trim(), dir.path().join("libmimalloc.so.2").to_str().unwrap());
    let gone = Call::new(&["launch", "--allocator", "mimalloc", "--", "/no/such/program"])
        .env("CONDA_PREFIX", "/nowhere")
        .env("LD_LIBRARY_PATH", dir.path().to_str().unwrap());
    gone.run().assert_refused(2, &["/no/such/program"]);
}

#[test]
fn huge_pages_and_numa_policies_are_accepted() {
    for policy in ["bind", "interleave", "default"] {
        pace(&generate(&["--numa-memory", policy, "--hugepages", "always"])).text();
    }
    pace(&generate(&["--numa-memory", "far"])).assert_refused(2, &["--numa-memory", "interleave"]);
    let bench =
        ["bench", "-m", "random:tiny", "-p", "8", "-n", "0", "-r", "1", "-o", "json", "--hugepages", "never"];
    assert_eq!(json(&pace(&bench))[0]["test"], "pp8");
}
