//! `throughput`: several instances, as threads and as processes.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{Call, pace};
use crate::cpus;

/// How long a machine that is busy with other tests may take.
#[cfg(target_os = "linux")]
const PATIENCE: Duration = Duration::from_secs(50);

fn tokens(report: &Value) -> Vec<&Value> {
    let requests = report["requests"].as_array().unwrap();
    requests.iter().enumerate().for_each(|(i, request)| assert_eq!(request["index"], i));
    requests.iter().map(|request| &request["tokens"]).collect()
}

/// Two instances on one CPU, which there is everywhere.
fn two() -> String {
    format!("{0};{0}", cpus()[0])
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
        [&["--cores", &two()][..], &["--cores", &two(), "--processes"], &["--instances", "1", "--processes"]]
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
    let args =
        ["throughput", "-m", "random:small", "--random", "-n", "500", "--cores", &two(), "--processes"];
    let outcome = Call::new(&[&args[..], &["--format", "json"]].concat()).run_with(true, |parent| {
        let deadline = Instant::now() + PATIENCE;
        // Each has all of the file in its memory, and half of it counts as its own: the parent has let go of it.
        let shared = |pid: &i32| {
            weights_memory(*pid)
                .is_some_and(|(rss, pss)| rss > 1 << 20 && (0.45..0.55).contains(&(pss as f64 / rss as f64)))
        };
        while children(parent.id()).iter().filter(|pid| shared(pid)).count() < 2 {
            assert!(Instant::now() < deadline, "no two processes share the weights");
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let report: Value = serde_json::from_str(outcome.text()).unwrap();
    assert_eq!((&report["weight_copies"], &report["new_tokens"]), (&1.into(), &4000.into()));
    assert!(report["instances"].as_array().unwrap().iter().all(|i| i["pss_bytes"].as_u64().unwrap() > 0));
}

#[cfg(target_os = "linux")]
#[test]
fn a_process_that_dies_is_started_again_and_nothing_is_lost() {
    let args =
        ["throughput", "-m", "random:small", "--random", "-n", "500", "--cores", &two(), "--processes"];
    let mut victim = None;
    let outcome = Call::new(&[&args[..], &["--format", "json"]].concat()).run_with(true, |parent| {
        let pid = working_child(parent.id());
        let signal = rustix::process::Signal::KILL;
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
        victim = Some(pid);
    });
    let (victim, said) = (victim.unwrap(), &outcome.stderr);
    let report: Value = serde_json::from_str(outcome.text()).unwrap();
    assert_eq!((tokens(&report).len(), &report["new_tokens"]), (8, &4000.into()));
    let restarts: u64 =
        report["instances"].as_array().unwrap().iter().map(|i| i["restarts"].as_u64().unwrap()).sum();
    assert_eq!(restarts, 1, "{said}");
    assert!(said.contains(&format!("process {victim}")) && said.contains("signal: 9"), "{said}");
}

/// A child of `parent` that takes prompts.
#[cfg(target_os = "linux")]
fn working_child(parent: u32) -> i32 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(pid) = children(parent).into_iter().find(|&pid| has_thread(pid, "pace-messages")) {
            return pid;
        }
        assert!(Instant::now() < deadline, "no child takes prompts");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes that `parent` has started.
#[cfg(target_os = "linux")]
fn children(parent: u32) -> Vec<i32> {
    // A process belongs to the thread that started it.
    let threads = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let lists =
        threads.map(|thread| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

#[cfg(target_os = "linux")]
fn has_thread(pid: i32, name: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok())
        .any(|comm| comm.trim() == name)
}

/// Bytes of the weights' file in the memory of a process, all and its share; none if it has not mapped the file.
#[cfg(target_os = "linux")]
fn weights_memory(pid: i32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let (mut ours, mut found, mut sums) = (false, false, (0, 0));
    for line in text.lines() {
        let size = |name: &str| -> Option<u64> {
            Some(line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
        };
        if line.split(' ').next().is_some_and(|range| range.contains('-') && !range.contains(':')) {
            ours = line.contains("pace-weights");
            found |= ours;
        } else if ours {
            sums.0 += size("Rss:").unwrap_or(0);
            sums.1 += size("Pss:").unwrap_or(0);
        }
    }
    found.then_some(sums)
}

#[test]
fn what_cannot_be_answered_is_no_crash() {
    let args = ["throughput", "-m", "random:small", "--random", "--processes", "--kv-memory", "1k"];
    let outcome = pace(&args);
    outcome.assert_refused(4, &["--kv-memory"]);
    assert!(!outcome.stderr.contains("died"), "{}", outcome.stderr);
}

#[test]
fn what_instances_share_or_do_not_have_is_a_warning() {
    let args = [
        "throughput",
        "-m",
        "random:tiny",
        "--random",
        "-n",
        "1",
        "--cores",
        &two(),
        "--decode-threads",
        "5",
    ];
    for more in [&[][..], &["--processes"]] {
        let outcome = pace(&[&args[..], more].concat());
        outcome.text();
        let said = |what: &str| outcome.stderr.matches(what).count();
        let shared = format!("wait for each other on CPUs {}\n", cpus()[0]);
        assert_eq!(said(&shared), 1, "{}", outcome.stderr);
        assert_eq!(
            said("--decode-threads 5: no instance has more threads than 1\n"),
            1,
            "{}",
            outcome.stderr
        );
        assert_eq!(said("threads in all"), 0, "{}", outcome.stderr);
    }
    let own = pace(&["throughput", "-m", "random:tiny", "--random", "-n", "1", "--instances", "1"]);
    assert!(own.code == Some(0) && !own.stderr.contains("instance"), "{}", own.stderr);
}

#[test]
fn what_cannot_be_divided_is_refused() {
    let refused = |args: &[&str], words: &[&str]| {
        pace(&[&["throughput", "-m", "random:small", "--random"], args].concat()).assert_refused(2, words);
    };
    refused(&["--instances", "4000"], &["4000"]);
    refused(&["--instances", "1000"], &["--instances", "1000 cores"]);
    refused(&["--cores", &two(), "--instances", "3"], &["--cores", "2 lists", "3 instances"]);
    refused(&["--cores", &two(), "--threads", "1"], &["--threads 1", "--cores", "each instance"]);
    refused(&["--instances", "1", "--nodes", "0;0"], &["--nodes", "2 nodes", "1 instances"]);
    refused(&["--instances", "1", "--nodes", "4000"], &["--nodes", "no node 4000"]);
    pace(&["throughput", "-m", "random:small"]).assert_refused(2, &["--random"]);
}

#[test]
fn several_lists_of_cpus_are_for_throughput_alone() {
    let two = two();
    for command in [
        &["generate", "--prompt-tokens", "1"][..],
        &["bench"],
        &["doctor"],
        &["kv-plan"],
        &["plan"],
        &["jit", "dump"],
    ] {
        let args = [command, &["-m", "random:small", "--cores", &two]].concat();
        pace(&args).assert_refused(2, &["--cores", "one list", "throughput"]);
    }
}
