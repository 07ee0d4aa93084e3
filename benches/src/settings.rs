//! What settings of a whole engine are worth: `pace-cli bench` under each of them, in turns.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::paired::median;

/// One setting: how `pace-cli bench` is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// What it is called.
    pub name: String,
    /// Arguments before the command `bench`, as `launch` needs them.
    pub launch: Vec<String>,
    /// Arguments of `bench`.
    pub flags: Vec<String>,
}

/// What a test gave under one setting. Figures are medians over the rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The setting.
    pub setting: String,
    /// The test, as `bench` names it.
    pub test: String,
    /// Tokens per second.
    pub tokens_per_second: f64,
    /// The same by the first setting's, round by round.
    pub to_first: f64,
    /// The most memory that the process took, in bytes.
    pub peak_bytes: f64,
    /// How much of the weights lies in huge pages, from 0 to 1.
    pub huge_page_share: Option<f64>,
    /// Tokens per second of every round.
    pub rounds: Vec<f64>,
}

/// What `bench` said about a test in one round.
#[derive(Clone, Copy)]
struct Figures {
    tokens_per_second: f64,
    peak_bytes: f64,
    huge_page_share: Option<f64>,
}

impl Setting {
    /// `NAME=FLAGS`: flags of `bench`, separated by spaces.
    ///
    /// # Errors
    /// There is no name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, flags) = text
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| format!("{text:?} is not NAME=FLAGS, for example one=--threads 1"))?;
        let flags = flags.split_whitespace().map(str::to_owned).collect();
        Ok(Self { name: name.to_owned(), launch: Vec::new(), flags })
    }

    /// A value of a flag, named like it.
    pub fn flag(flag: &str, value: &str) -> Self {
        Self { name: value.to_owned(), launch: Vec::new(), flags: vec![flag.to_owned(), value.to_owned()] }
    }

    /// The system's allocator, or another one by `pace-cli launch`.
    pub fn allocator(pace: &Path, name: Option<&str>) -> Self {
        let launch = name.map_or_else(Vec::new, |name| {
            let program = pace.to_string_lossy().into_owned();
            ["launch", "--allocator", name, "--", &program].map(str::to_owned).into()
        });
        Self { name: name.unwrap_or("system").to_owned(), launch, flags: Vec::new() }
    }

    /// Runs `bench` once with `common` flags: what it said about each test.
    fn run(&self, pace: &Path, common: &[String]) -> Result<BTreeMap<String, Figures>> {
        let mut command = Command::new(pace);
        command.args(&self.launch).arg("bench").args(common).args(&self.flags).args(["-o", "json"]);
        let out = command.output().with_context(|| format!("{}", pace.display()))?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            bail!("{:?} under the setting {:?}: {}: {}", command, self.name, out.status, said.trim_end());
        }
        let tests: Vec<Value> = serde_json::from_slice(&out.stdout).context("what bench wrote")?;
        tests.iter().map(figures).collect()
    }
}

/// The figures of one test.
fn figures(test: &Value) -> Result<(String, Figures)> {
    let name = test["test"].as_str().context("bench names no test")?;
    let number = |key| test[key].as_f64().with_context(|| format!("bench tells no {key} of {name}"));
    let figures = Figures {
        tokens_per_second: number("avg_ts")?,
        peak_bytes: number("peak_rss_bytes")?,
        huge_page_share: test["huge_page_share"].as_f64(),
    };
    Ok((name.to_owned(), figures))
}

/// Lets `settings` take turns for `rounds` rounds after one that is not counted; a row for each test and setting. A
/// setting that fails in the round that is not counted is left out: `failed` is told.
///
/// # Errors
/// No setting is left, one fails later, or the tests of two settings differ.
pub fn compare(
    pace: &Path,
    common: &[String],
    settings: &[Setting],
    rounds: usize,
    mut failed: impl FnMut(&anyhow::Error),
    mut step: impl FnMut(),
) -> Result<Vec<Row>> {
    let mut left: Vec<(&Setting, Vec<BTreeMap<String, Figures>>)> = Vec::new();
    for setting in settings {
        match setting.run(pace, common) {
            Ok(_) => left.push((setting, Vec::new())),
            Err(error) => failed(&error),
        }
        step();
    }
    ensure!(!left.is_empty(), "no setting can be measured");
    for round in 0..rounds {
        let n = left.len();
        for i in 0..n {
            // Each goes first in some round.
            let (setting, runs) = &mut left[(i + round) % n];
            runs.push(setting.run(pace, common)?);
            step();
        }
    }
    let (_, first) = &left[0];
    let tests: Vec<&String> = first.first().map_or_else(Vec::new, |run| run.keys().collect());
    let rows = tests.into_iter().flat_map(|test| left.iter().map(move |(s, runs)| row(test, s, runs, first)));
    rows.collect()
}

fn row(
    test: &str,
    setting: &Setting,
    runs: &[BTreeMap<String, Figures>],
    first: &[BTreeMap<String, Figures>],
) -> Result<Row> {
    let of = |runs: &[BTreeMap<String, Figures>]| -> Result<Vec<Figures>> {
        let all = runs.iter().map(|run| run.get(test).copied());
        all.collect::<Option<_>>().with_context(|| format!("{} does not measure {test}", setting.name))
    };
    let (own, first) = (of(runs)?, of(first)?);
    let ratios = own.iter().zip(&first).map(|(own, first)| own.tokens_per_second / first.tokens_per_second);
    let rounds: Vec<f64> = own.iter().map(|f| f.tokens_per_second).collect();
    Ok(Row {
        setting: setting.name.clone(),
        test: test.to_owned(),
        tokens_per_second: median(&mut rounds.clone()),
        to_first: median(&mut ratios.collect::<Vec<_>>()),
        peak_bytes: median(&mut own.iter().map(|f| f.peak_bytes).collect::<Vec<_>>()),
        huge_page_share: own.last().and_then(|f| f.huge_page_share),
        rounds,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    /// A program that answers like `bench`: tokens per second by its first flag's value.
    fn fake(dir: &Path) -> PathBuf {
        let path = dir.join("pace");
        let script = r#"#!/bin/sh
[ "$5" = "3" ] && { echo "no such thing" >&2; exit 2; }
[ "$1" = bench ] && echo "[{\"test\": \"$2\", \"avg_ts\": $5, \"peak_rss_bytes\": 7, \"huge_page_share\": null}]"
"#;
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    // One test, for a script cannot be run while another thread's child still has it open for writing.
    #[test]
    fn settings_take_turns_and_one_that_fails_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let pace = fake(dir.path());
        let settings = ["2", "3", "8"].map(|value| Setting::flag("--threads", value));
        let (mut failures, mut steps) = (Vec::new(), 0);
        let common = ["pp1".to_owned(), "-q".to_owned()];
        let rows = compare(&pace, &common, &settings, 3, |e| failures.push(e.to_string()), || steps += 1);
        let rows = rows.unwrap();
        let table: Vec<_> =
            rows.iter().map(|r| (r.setting.as_str(), r.tokens_per_second, r.to_first)).collect();
        assert_eq!(table, [("2", 2.0, 1.0), ("8", 8.0, 4.0)]);
        assert!(rows.iter().all(|row| row.rounds.len() == 3 && row.test == "pp1" && row.peak_bytes == 7.0));
        assert_eq!((failures.len(), steps), (1, 3 + 3 * 2));
        assert!(failures[0].contains("no such thing"), "{failures:?}");

        let error = compare(&pace, &common, &settings[1..2], 1, |_| {}, || {}).unwrap_err();
        assert_eq!(error.to_string(), "no setting can be measured");
    }

    #[test]
    fn a_setting_is_a_name_and_flags() {
        let two = Setting::parse("two=--threads 2 --no-pin").unwrap();
        assert_eq!(
            (two.name.as_str(), two.flags),
            ("two", ["--threads", "2", "--no-pin"].map(str::to_owned).into())
        );
        assert!(Setting::parse("=--threads 2").is_err());
        assert!(Setting::parse("two").unwrap_err().contains("NAME=FLAGS"));
        let other = Setting::allocator(Path::new("p"), Some("tcmalloc"));
        assert_eq!(other.launch, ["launch", "--allocator", "tcmalloc", "--", "p"]);
    }
}
