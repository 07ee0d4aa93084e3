//! `throughput`: several instances, as threads and as processes.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{Call, pace};

fn tokens(report: &Value) -> Vec<&Value> {
    let requests = report["requests"].as_array().unwrap();
    requests.iter().enumerate().for_each(|(i, request)| assert_eq!(request["index"], i));
    requests.iter().map(|request| &request["tokens"]).collect()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(pace(args).text()).unwrap()
}

fn run(args: &[&str]) -> Value {
    let random = ["throughput", "-m", "random:small", "--random", "--format", "json"];
    json(&[&random, args].concat())
}

#[test]
fn threads_and_processes_give_the_answers_of_one_instance() {
    let one = run(&["--instances", "1"]);
    assert_eq!(tokens(&one).len(), 8);
    assert_eq!((&one["prompt_tokens"], &one["new_tokens"]), (&512.into(), &256.into()));
    for flags in
        [&["--cores", "0;0"][..], &["--cores", "0;0", "--processes"], &["--instances", "1", "--processes"]]
    {
        let many = run(flags);
        assert_eq!(tokens(&many), tokens(&one), "{flags:?}");
        assert_eq!(many["weight_copies"], 1);
        assert!(many["tokens_per_second"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn random_prompts_are_clipped_to_the_context() {
    // Of 512 tokens, 500 are for the answer.
    let report = json(&["throughput", "-m", "random:tiny", "--random", "-n", "500", "--format", "json"]);
    assert_eq!((&report["prompt_tokens"], &report["new_tokens"]), (&96.into(), &4000.into()));
}

#[cfg(target_os = "linux")]
#[test]
fn processes_share_one_copy_of_the_weights() {
    let flags = ["--cores", "0;0", "--processes", "-n", "2", "--format", "json"];
    let report = json(&[&["throughput", "-m", "random:smollm2-135m", "--random"], &flags[..]].concat());
    let weights = report["weight_bytes"].as_f64().unwrap();
    let instances = report["instances"].as_array().unwrap();
    let memory: f64 = instances.iter().map(|instance| instance["pss_bytes"].as_f64().unwrap()).sum();
    // One copy, and what two engines need besides: two copies would be twice as much.
    assert!(memory > 0.9 * weights && memory < 1.4 * weights, "{memory} {weights}");
    assert!(report["pss_bytes"].as_f64().unwrap() < 0.2 * weights, "the parent keeps none");
}

#[cfg(target_os = "linux")]
#[test]
fn a_process_that_dies_is_started_again_and_nothing_is_lost() {
    let args =
        ["throughput", "-m", "random:small", "--random", "-n", "2000", "--cores", "0;0", "--processes"];
    let mut victim = None;
    let outcome = Call::new(&[&args[..], &["--format", "json"]].concat()).run_with(true, |parent| {
        let pid = working_child(parent.id());
        std::thread::sleep(Duration::from_millis(200));
        let signal = rustix::process::Signal::KILL;
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
        victim = Some(pid);
    });
    let (victim, said) = (victim.unwrap(), &outcome.stderr);
    let report: Value = serde_json::from_str(outcome.text()).unwrap();
    assert_eq!((tokens(&report).len(), &report["new_tokens"]), (8, &16000.into()));
    let restarts: u64 =
        report["instances"].as_array().unwrap().iter().map(|i| i["restarts"].as_u64().unwrap()).sum();
    assert_eq!(restarts, 1, "{said}");
    assert!(said.contains(&format!("process {victim}")) && said.contains("signal: 9"), "{said}");
}

/// A child of `parent` that has mapped the weights.
#[cfg(target_os = "linux")]
fn working_child(parent: u32) -> i32 {
    let deadline = Instant::now() + Duration::from_secs(60);
    let works = |pid: &&str| {
        std::fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains("pace-weights"))
    };
    loop {
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        if let Some(pid) = children.unwrap_or_default().split_whitespace().find(works) {
            return pid.parse().unwrap();
        }
        assert!(Instant::now() < deadline, "no child has the weights");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_cannot_be_divided_is_refused() {
    let refused = |args: &[&str], words: &[&str]| {
        pace(&[&["throughput", "-m", "random:small", "--random"], args].concat()).assert_refused(2, words);
    };
    refused(&["--instances", "4000"], &["4000"]);
    refused(&["--instances", "1000"], &["--instances", "1000 cores"]);
    refused(&["--cores", "0;0", "--instances", "3"], &["--cores", "2 lists", "3 instances"]);
    refused(&["--nodes", "0;0"], &["--nodes", "2 nodes", "1 instances"]);
    refused(&["--nodes", "77"], &["--nodes", "no node 77"]);
    pace(&["throughput", "-m", "random:small"]).assert_refused(2, &["--random"]);
    pace(&["generate", "-m", "random:small", "--prompt-tokens", "1", "--cores", "0;0"])
        .assert_refused(2, &["--cores", "throughput"]);
}
