//! Threads and CPUs: flags, OpenMP's variables, and what is refused.

use serde_json::Value;

use super::common::{Call, pace};
use super::json;

/// The CPUs on which the tests may run.
fn cpus() -> Vec<usize> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.parse::<usize>().unwrap()..=last.parse::<usize>().unwrap()
    };
    list.trim().split(',').flat_map(range).collect()
}

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
    refused(&["--numa-node", "0", "--cores", "0"], &["--numa-node", "--cores"]);
    refused(&["--decode-threads", "0"], &["--decode-threads"]);
    let variable = |name, value, words: &[&str]| {
        Call::new(&generate(&[])).env(name, value).run().assert_refused(2, words);
    };
    variable("GOMP_CPU_AFFINITY", "0-", &["GOMP_CPU_AFFINITY", "`0-`"]);
    variable("GOMP_CPU_AFFINITY", "0 60000", &["GOMP_CPU_AFFINITY", "CPU 60000"]);
    variable("OMP_NUM_THREADS", "many", &["OMP_NUM_THREADS", "many", "1 to 4096"]);
}
