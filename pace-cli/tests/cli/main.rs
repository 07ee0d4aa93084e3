//! The binary as its users see it: every command, every format, every way in.

// The permission of `clippy.toml` ends at functions without `#[test]`.
#![allow(clippy::unwrap_used)]

mod bench;
mod chat;
#[path = "../common/mod.rs"]
mod common;
mod compare;
mod generate;
mod imatrix;
mod kv_cache;
mod length;
mod models;
mod operators;
mod pack;
mod platform;
mod profile;
#[cfg(target_os = "linux")]
mod repl;
mod reports;
mod sampling;
mod shell;
mod throughput;
mod tokens;

use serde::Deserialize;
use serde_json::Value;

use common::{Outcome, fixture};

/// What HF transformers computed for a fixture.
#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
    #[serde(default)]
    texts: Vec<Text>,
    chat: Option<Chat>,
}

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    logprobs: Vec<Option<f64>>,
    next_logprobs: Vec<f64>,
    greedy: Vec<u32>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    tokens: Vec<u32>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    tokens: Vec<u32>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

fn expected(name: &str) -> Expected {
    let text = std::fs::read_to_string(fixture(name).join("expected.json")).expect("a fixture's results");
    serde_json::from_str(&text).expect("a fixture's results are JSON")
}

/// Token ids as a flag's value.
fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

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

/// The one JSON value that a run wrote, on one line.
fn json(outcome: &Outcome) -> Value {
    let text = outcome.text();
    assert!(text.ends_with('\n') && text.lines().count() == 1, "one line: {text}");
    serde_json::from_str(text).expect("JSON on standard output")
}

/// A list of token ids in JSON.
fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("a list of token ids")
}

/// The keys of a JSON object, in the order of the file.
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("a JSON object").keys().map(String::as_str).collect()
}
