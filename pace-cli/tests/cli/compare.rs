//! `compare`: one model against another, and one way of computing it against another.

use std::path::Path;

use serde_json::Value;

use super::common::{Call, arg, copy, fixture, pace};
use super::{json, keys, list};

/// Tokens that every `random:` model has.
fn tokens(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * 53 + 11) % 259).collect()
}

/// The JSON object of `compare` with `args`.
fn compare(args: &[&str]) -> Value {
    json(&pace(&[&["compare", "--format", "json"], args].concat()))
}

fn tiny(tokens: &[u32], args: &[&str]) -> Value {
    compare(&[&["-m", "random:tiny", "--tokens", &list(tokens)], args].concat())
}

fn number(out: &Value, key: &str) -> f64 {
    out[key].as_f64().unwrap_or_else(|| panic!("{key} is no number: {out}"))
}

/// A text in a file.
fn written(dir: &Path, text: &str) -> String {
    let path = dir.join("text");
    std::fs::write(&path, text).unwrap();
    arg(&path).to_owned()
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let ids = tokens(150);
    let out = tiny(&ids, &["--dtype", "f32"]);
    let all = [
        "reference",
        "model",
        "tokens",
        "window",
        "mean_kl",
        "p99_kl",
        "same_top1",
        "perplexity_ratio",
        "mean_abs_logprob_diff",
    ];
    assert_eq!(keys(&out), all);
    assert_eq!(
        keys(&out["model"]),
        ["model", "formats", "packed", "dtype", "kv_dtype", "operators", "perplexity"]
    );
    assert_eq!((number(&out, "mean_kl"), number(&out, "p99_kl")), (0.0, 0.0));
    assert_eq!((number(&out, "same_top1"), number(&out, "perplexity_ratio")), (1.0, 1.0));
    assert_eq!((number(&out, "mean_abs_logprob_diff"), number(&out, "tokens")), (0.0, 149.0));
    assert_eq!(out["reference"], out["model"]);
    let score = ["score", "-m", "random:tiny", "--tokens", &list(&ids), "--dtype", "f32", "--format", "json"];
    let perplexity = number(&json(&pace(&score)), "perplexity");
    assert!((number(&out["model"], "perplexity") / perplexity - 1.0).abs() < 1e-6, "{perplexity}");
}

#[test]
fn what_bf16_loses_is_small_and_more_than_nothing() {
    let ids = tokens(200);
    let out = tiny(&ids, &[]);
    assert_eq!((&out["reference"]["dtype"], &out["model"]["dtype"]), (&"f32".into(), &"bf16".into()));
    let (mean, p99) = (number(&out, "mean_kl"), number(&out, "p99_kl"));
    assert!(mean > 0.0 && mean < 1e-2 && p99 >= mean && p99 < 0.1, "{mean}, {p99}");
    let (top1, ratio) = (number(&out, "same_top1"), number(&out, "perplexity_ratio"));
    assert!(top1 > 0.8 && top1 <= 1.0 && ratio != 1.0 && (ratio - 1.0).abs() < 0.05, "{top1}, {ratio}");
    let perplexity = |side: &str| number(&out[side], "perplexity");
    assert!((perplexity("model") / perplexity("reference") / ratio - 1.0).abs() < 1e-9);
    let off = number(&out, "mean_abs_logprob_diff");
    assert!(off > 0.0 && off < 0.1, "{off}");
    // Keys and values alone lose less, and the reference can lose as much.
    let kv = tiny(&ids, &["--dtype", "f32", "--kv-dtype", "bf16"]);
    assert_eq!((&kv["model"]["dtype"], &kv["model"]["kv_dtype"]), (&"f32".into(), &"bf16".into()));
    assert!(number(&kv, "mean_kl") > 0.0 && number(&kv, "mean_kl") < mean, "{kv}");
    let both = tiny(&ids, &["--reference-dtype", "bf16"]);
    assert_eq!((number(&both, "mean_kl"), &both["reference"]["kv_dtype"]), (0.0, &"bf16".into()));
}

#[test]
fn a_reference_has_its_own_operators() {
    let out = tiny(&tokens(40), &["--dtype", "f32", "--op", "mlp=tpp", "--reference-op", "mlp=native"]);
    let mlp = |side: &str| out[side]["operators"]["mlp"].clone();
    assert_eq!((mlp("model"), mlp("reference")), ("tpp".into(), "native".into()));
    // The order of sums is all that differs.
    assert!(number(&out, "mean_kl") < 1e-8, "{out}");
}

#[test]
fn windows_know_nothing_of_each_other() {
    let ids = tokens(250);
    let figures = |args: &[&str]| {
        let out = tiny(&ids, args);
        (number(&out, "tokens"), number(&out, "mean_kl"))
    };
    assert_eq!(figures(&["--window", "100"]).0, 99.0 + 99.0 + 49.0);
    let first = figures(&["--window", "100", "--max-tokens", "99"]);
    let alone = tiny(&ids[..100], &[]);
    assert_eq!(first, (99.0, number(&alone, "mean_kl")));
    let second = tiny(&ids[100..200], &[]);
    let both = figures(&["--window", "100", "--max-tokens", "198"]);
    assert!((both.1 - (first.1 + number(&second, "mean_kl")) / 2.0).abs() < 1e-12, "{both:?}");
    assert_eq!(figures(&["--max-tokens", "7"]).0, 7.0);
}

#[test]
fn a_text_is_read_from_a_file_and_from_standard_input() {
    let (dir, text) = (tempfile::tempdir().unwrap(), "The train to the north was late. ".repeat(12));
    let file = written(dir.path(), &text);
    let model = fixture("gqa-tied");
    let args = ["compare", "-m", arg(&model), "--format", "json", "--file"];
    let out = json(&pace(&[&args[..], &[&file]].concat()));
    assert!(number(&out, "tokens") > 100.0 && number(&out, "mean_kl") > 0.0, "{out}");
    assert_eq!(json(&Call::new(&[&args[..], &["-"]].concat()).stdin(&text).run()), out);
    let printed = pace(&["compare", "-m", arg(&model), "--text", &text, "--window", "64"]);
    for part in ["gqa-tied", "BF16", "f32", "in windows of 64", "KL divergence", "99th percentile", " %"] {
        assert!(printed.text().contains(part), "{part}: {}", printed.text());
    }
}

#[test]
fn two_files_of_one_model_are_the_same_with_one_tokenizer_too() {
    let (gguf, dir) = (fixture("gguf-bf16").join("model.gguf"), copy("gqa-tied"));
    let args = |reference: &str| {
        let text = "The train to the north was late.";
        compare(&["-m", arg(&gguf), "--reference", reference, "--dtype", "f32", "--text", text])
    };
    let out = args(arg(dir.path()));
    assert!(number(&out, "mean_kl") < 1e-9 && number(&out, "same_top1") == 1.0, "{out}");
    assert_ne!(out["reference"]["formats"], out["model"]["formats"]);
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::remove_file(dir.path().join(file)).unwrap();
    }
    assert_eq!(args(arg(dir.path())), out);
}

#[test]
fn models_that_cannot_be_compared_are_refused() {
    let dir = copy("gqa-tied");
    let (own, other) = (fixture("gqa-tied"), arg(dir.path()));
    let vocabularies = ["compare", "-m", "random:tiny", "--reference", other, "--tokens", "1,2"];
    pace(&vocabularies).assert_refused(2, &["random:tiny", other, "259", "293"]);
    let path = dir.path().join("tokenizer.json");
    let tokenizer = std::fs::read_to_string(&path).unwrap();
    let swapped = tokenizer.replace("\"!\": 5,", "\"!\": 7,").replace("\"#\": 7,", "\"#\": 5,");
    assert_ne!(tokenizer, swapped);
    std::fs::write(&path, swapped).unwrap();
    let args = ["compare", "-m", arg(&own), "--reference", other, "--text"];
    let outcome = pace(&[&args[..], &["No!"]].concat());
    outcome.assert_refused(2, &["tokenizers differ", " is 7 for", "and 5 for", other]);
    assert_eq!(pace(&[&args[..], &["No."]].concat()).code, Some(0), "this text is the same to both");
}

#[test]
fn texts_and_windows_that_cannot_be_compared_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("gqa-tied");
    let read = |file: &str| pace(&["compare", "-m", arg(&model), "--file", file]);
    let missing = dir.path().join("missing.txt");
    read(arg(&missing)).assert_refused(2, &["missing.txt"]);
    read(&written(dir.path(), "")).assert_refused(2, &["too few tokens", "2"]);
    pace(&["compare", "-m", "random:tiny", "--text", "a"]).assert_refused(2, &["no tokenizer", "--tokens"]);
    let tiny = |tokens: &str, args: &[&str]| {
        pace(&[&["compare", "-m", "random:tiny", "--tokens", tokens], args].concat())
    };
    tiny("1", &[]).assert_refused(2, &["too few tokens"]);
    tiny("1,2,259", &[]).assert_refused(2, &["259", "position 2"]);
    tiny("1,2", &["--window", "1"]).assert_refused(2, &["--window 1"]);
    tiny("1,2", &["--window", "513"]).assert_refused(2, &["--window 513", "512"]);
    tiny("1,2", &["--max-tokens", "0"]).assert_refused(2, &["--max-tokens 0"]);
    tiny("1,2", &["--reference-op", "norm=jit"]).assert_refused(2, &["norm", "jit"]);
}

#[test]
fn a_model_that_predicts_nothing_is_named() {
    let dir = copy("gqa-tied");
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    // The last weight is of the last norm.
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let (good, bad) = (fixture("gqa-tied"), arg(dir.path()));
    let args = ["compare", "--allow-nonfinite", "--tokens", "5,6,7", "-m"];
    let outcome = pace(&[&args[..], &[bad, "--reference", arg(&good)]].concat());
    outcome.assert_refused(3, &["token 1 of the text", "the model predicts nothing"]);
    let outcome = pace(&[&args[..], &[arg(&good), "--reference", bad]].concat());
    outcome.assert_refused(3, &["the reference predicts nothing"]);
}
