//! The binary in a shell: help, completions, logs, pipes that close.

use super::common::{Call, arg, fixture, pace};

const COMMANDS: [&str; 12] = [
    "generate",
    "chat",
    "score",
    "tokenize",
    "detokenize",
    "imatrix",
    "info",
    "bench",
    "ops",
    "jit",
    "plan",
    "completions",
];

#[test]
fn every_command_has_help_with_an_example() {
    for command in COMMANDS {
        for help in [pace(&[command, "--help"]), pace(&["help", command])] {
            let text = help.text();
            assert!(text.contains("Usage: pace-cli") && text.contains("Example"), "{command}: {text}");
        }
    }
    for command in COMMANDS {
        assert!(pace(&["--help"]).text().contains(command), "{command}");
    }
    assert_eq!(pace(&["--version"]).text(), concat!("pace-cli ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn commands_that_run_a_model_take_the_same_flags() {
    for command in ["generate", "chat", "score", "imatrix", "bench", "plan"] {
        let help = pace(&[command, "--help"]).text().to_owned();
        for flag in ["--model", "--dtype", "--kv-dtype", "--threads", "--allow-nonfinite"] {
            assert!(help.contains(flag), "{command} {flag}");
        }
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = pace(&["completions", shell]).text().to_owned();
        assert!(COMMANDS.iter().all(|command| script.contains(command)), "{shell}");
    }
}

#[test]
fn nothing_is_logged_unless_asked_for() {
    let run = |level: &str| {
        let call =
            Call::new(&["generate", "-m", "random:tiny", "--prompt-tokens", "1", "-n", "2", "-t", "1"]);
        let out = call.env("PACE_LOG_LEVEL", level).run();
        assert_eq!(out.text().lines().count(), 1, "logs stay off standard output");
        out.stderr
    };
    assert_eq!(run(""), "");
    assert_eq!(run("none"), "");
    assert!(run("info").contains("threads"), "{}", run("info"));
}

#[test]
fn more_threads_than_cores_warn_and_work() {
    let out = pace(&["generate", "-m", "random:tiny", "--prompt-tokens", "1", "-n", "2", "--threads", "300"]);
    out.text();
    assert!(out.stderr.contains("300 threads"), "{}", out.stderr);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let dir = fixture("gqa-tied");
    for args in [
        &["generate", "-m", "random:tiny", "--prompt-tokens", "1", "-n", "400"][..],
        &["generate", "-m", "random:tiny", "--prompt-tokens", "1", "-n", "4", "--format", "json"],
        &["chat", "-m", arg(&dir), "Hello"],
        &["info", "random:tiny"],
        &["ops"],
        &["score", "-m", "random:tiny", "--tokens", "1,2"],
        &["bench", "-m", "random:tiny", "-p", "8", "-n", "2", "-r", "1"],
        &["completions", "bash"],
        &["--help"],
    ] {
        let out = Call::new(args).run_reading(false);
        assert_eq!((out.code, out.stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}
