//! `imatrix`, and `--imatrix`.

use std::path::Path;

use super::common::{arg, fixture, pace};
use super::{json, keys, list};

/// Tokens that every `random:` model has.
fn tokens(n: u32) -> String {
    list(&(0..n).map(|i| (i * 53 + 11) % 259).collect::<Vec<_>>())
}

/// The importance of `random:tiny` over some tokens.
fn collect(file: &Path, args: &[&str]) -> serde_json::Value {
    let all = ["imatrix", "-m", "random:tiny", "--tokens", &tokens(150), "--format", "json", "-o", arg(file)];
    json(&pace(&[&all[..], args].concat()))
}

#[test]
fn a_file_is_collected_and_makes_other_weights() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tiny.imatrix");
    let out = collect(&file, &[]);
    assert_eq!(keys(&out), ["file", "tokens", "matrices"]);
    assert_eq!((&out["file"], &out["tokens"]), (&arg(&file).into(), &150.into()));
    assert_eq!(out["matrices"].as_u64().unwrap() % 4, 1, "{out}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left over");
    let logprobs = |args: &[&str]| {
        let all = ["score", "-m", "random:tiny", "--tokens", &tokens(40), "--format", "json"];
        json(&pace(&[&all[..], args].concat()))["logprobs"].clone()
    };
    let quant = ["--quant", "int4:128"];
    let with = [&quant[..], &["--imatrix", arg(&file)]].concat();
    assert_ne!(logprobs(&with), logprobs(&quant));
    assert_eq!(logprobs(&with), logprobs(&with));
    // A file is replaced, and windows and limits are kept to.
    let out = collect(&file, &["--window", "40", "--max-tokens", "90", "--op", "mlp=native"]);
    assert_eq!(out["tokens"], 90);
    let model = fixture("gqa-tied");
    let text = pace(&["imatrix", "-m", arg(&model), "--text", "The train was late.", "-o", arg(&file)]);
    assert!(text.text().contains("tiny.imatrix: the inputs of"), "{}", text.text());
    let refused = pace(&[&["score", "-m", "random:tiny", "--tokens", "1,2"], &with[..]].concat());
    refused.assert_refused(3, &["tiny.imatrix: tensor `", "the model"]);
}

#[test]
fn what_cannot_be_collected_is_refused_before_the_text_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.imatrix");
    let run = |args: &[&str]| {
        pace(&[&["imatrix", "-m", "random:tiny", "-o", arg(&file), "--tokens", "1,2"], args].concat())
    };
    run(&["--window", "0"]).assert_refused(2, &["--window 0", "512"]);
    run(&["--window", "513"]).assert_refused(2, &["--window 513", "512"]);
    run(&["--max-tokens", "0"]).assert_refused(2, &["--max-tokens 0"]);
    run(&["--op", "norm=jit"]).assert_refused(2, &["norm", "jit"]);
    let to = |output: &str| pace(&["imatrix", "-m", "random:tiny", "--tokens", "1,2", "-o", output]);
    to(arg(&dir.path().join("none/a"))).assert_refused(2, &["--output", "none/a", "folder"]);
    to(arg(dir.path())).assert_refused(2, &["no regular file"]);
    to("/dev/null").assert_refused(2, &["/dev/null", "no regular file"]);
    let beyond = ["imatrix", "-m", "random:tiny", "--tokens", "1,259", "-o", arg(&file)];
    pace(&beyond).assert_refused(2, &["259"]);
    let model = fixture("gqa-tied");
    pace(&["imatrix", "-m", arg(&model), "--text", "", "-o", arg(&file)]).assert_refused(2, &["empty"]);
    assert!(!file.exists());
}

#[test]
fn a_file_that_would_not_be_used_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.imatrix");
    collect(&file, &[]);
    let run = |args: &[&str]| {
        let all = ["score", "-m", "random:tiny", "--tokens", "1,2", "--imatrix", arg(&file)];
        pace(&[&all[..], args].concat())
    };
    run(&[]).assert_refused(2, &["--quant"]);
    run(&["--quant", "int4", "--quant-rounding", "nearest"]).assert_refused(2, &["--imatrix", "nearest"]);
    run(&["--quant", "int8"]).assert_refused(2, &["--imatrix", "int4"]);
    assert_eq!(run(&["--quant-lm-head", "int4"]).code, Some(0));
    assert_eq!(run(&["--quant", "int8", "--quant-lm-head", "int4"]).code, Some(0));
    std::fs::write(&file, "no matrix at all").unwrap();
    run(&["--quant", "int4"]).assert_refused(3, &["a.imatrix", "header length"]);
    std::fs::remove_file(&file).unwrap();
    run(&["--quant", "int4"]).assert_refused(3, &["a.imatrix", "No such file"]);
}
