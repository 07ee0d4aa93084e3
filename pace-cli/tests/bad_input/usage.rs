//! Requests that make no sense: exit code 2, and what would be right.

use super::common::{Call, arg, fixture, pace};

const TINY: [&str; 3] = ["generate", "-m", "random:tiny"];

/// `generate` on `random:tiny` with `args`.
fn refused(args: &[&str], words: &[&str]) {
    pace(&[&TINY, args].concat()).assert_refused(2, words);
}

#[test]
fn ids_beyond_the_vocabulary_are_named() {
    refused(&["--prompt-tokens", "1,259"], &["token 259", "position 1", "259 tokens"]);
    refused(&["--prompt-tokens", "4294967295"], &["token 4294967295"]);
    refused(&["--prompt-tokens", "4294967296"], &["4294967296"]);
    refused(&["--prompt-tokens", "1,-2"], &["-2"]);
    refused(&["--prompt-tokens", "1,,2"], &["--prompt-tokens"]);
    pace(&["score", "-m", "random:tiny", "--tokens", "999"]).assert_refused(2, &["token 999", "259 tokens"]);
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let ids = |n: usize| vec!["1"; n].join(",");
    refused(&["--prompt-tokens", &ids(513), "-n", "0"], &["513 tokens", "512"]);
    refused(&["--prompt-tokens", &ids(512), "-n", "1"], &["512 tokens", "1 more"]);
    let score = ["score", "-m", "random:tiny", "--tokens", &ids(513)];
    pace(&score).assert_refused(2, &["513 tokens", "512"]);
}

#[test]
fn a_prompt_is_needed_and_only_one() {
    let dir = fixture("gqa-tied");
    let empty = ["generate", "-m", arg(&dir), "--prompt", ""];
    pace(&empty).assert_refused(2, &["the prompt is empty"]);
    pace(&["score", "-m", arg(&dir), "--text", ""]).assert_refused(2, &["empty"]);
    refused(&[], &["--prompt", "--prompt-file", "--prompt-tokens"]);
    refused(&["--prompt-tokens", ""], &["--prompt-tokens"]);
    refused(&["--prompt", "a", "--prompt-tokens", "1"], &["cannot be used with"]);
    refused(&["--prompt-file", "/no/such/file"], &["/no/such/file"]);
    Call::new(&["generate", "-m", arg(&dir), "-f", "-"]).stdin([0xff]).run().assert_refused(2, &["UTF-8"]);
}

#[test]
fn what_the_model_lacks_is_said() {
    refused(&["--prompt", "Hello"], &["random:tiny has no tokenizer: give token ids by --prompt-tokens"]);
    refused(&["--prompt-tokens", "1", "--stop", "x"], &["random:tiny has no tokenizer: --stop needs one"]);
    pace(&["score", "-m", "random:tiny", "--text", "Hello"])
        .assert_refused(2, &["no tokenizer: give token ids by --tokens"]);
    pace(&["chat", "-m", "random:tiny", "Hello"])
        .assert_refused(2, &["random:tiny has no tokenizer: a chat needs one"]);
}

#[test]
fn sampling_values_out_of_range_are_named() {
    for (flag, values) in [
        ("--temperature", &["-1", "NaN", "inf", "warm"][..]),
        ("--top-k", &["-1", "1.5"]),
        ("--top-p", &["0", "1.1", "-0.5", "NaN"]),
        ("--min-p", &["-0.1", "2"]),
        ("--repetition-penalty", &["0", "-1", "inf"]),
        ("--frequency-penalty", &["NaN", "inf"]),
        ("--presence-penalty", &["NaN", "-inf"]),
        ("--seed", &["-1", "18446744073709551616"]),
        ("--max-new-tokens", &["-1", "many"]),
    ] {
        for value in values {
            let out = pace(&[&TINY[..], &["--prompt-tokens", "1", flag, value]].concat());
            let name = flag.trim_start_matches("--");
            // The parser names the flag, the sampler its field.
            assert!(out.stderr.replace('_', "-").contains(name), "{flag} {value}: {}", out.stderr);
            out.assert_refused(2, &[value.trim_start_matches('-')]);
        }
    }
    refused(
        &["--prompt-tokens", "1", "--top-p", "1.1"],
        &["top_p is 1.1, but must be above 0 and at most 1"],
    );
    let dir = fixture("gqa-tied");
    pace(&["generate", "-m", arg(&dir), "-p", "a", "--stop", ""]).assert_refused(2, &["stop"]);
}

#[test]
fn contexts_threads_and_types_out_of_range_are_refused() {
    refused(&["--prompt-tokens", "1", "--ctx-size", "513"], &["513", "512 at most"]);
    refused(&["--prompt-tokens", "1", "--threads", "0"], &["--threads", "1..=4096"]);
    refused(&["--prompt-tokens", "1", "--threads", "100000"], &["--threads"]);
    refused(&["--prompt-tokens", "1", "--dtype", "int3"], &["--dtype", "bf16"]);
    refused(&["--prompt-tokens", "1", "--format", "xml"], &["--format", "json"]);
}

#[test]
fn mistakes_are_found_before_the_weights_are_made() {
    // Fifteen gigabytes of weights would take minutes, or not fit.
    let big = ["generate", "-m", "random:llama-8b", "--prompt-tokens"];
    for (args, word) in [
        (&["128256"][..], "token 128256"),
        (&["1", "--top-p", "3"], "top_p"),
        (&["1", "--ctx-size", "100000000"], "100000000"),
    ] {
        pace(&[&big[..], args].concat()).assert_refused(2, &[word]);
    }
    pace(&["score", "-m", "random:llama-8b", "--tokens", "128256"]).assert_refused(2, &["token 128256"]);
}

#[test]
fn unknown_random_models_come_with_the_known_ones() {
    let out = pace(&["info", "random:huge"]);
    out.assert_refused(2, &["huge", "tiny", "smollm2-135m", "llama-1b", "llama-8b"]);
}

#[test]
fn a_benchmark_measures_something_that_fits() {
    let bench = |args: &[&str]| pace(&[&["bench", "-m", "random:tiny"], args].concat());
    bench(&["-p", "0", "-n", "0"]).assert_refused(2, &["both -p and -n are 0"]);
    bench(&["-p", "1000"]).assert_refused(2, &["-p 1000", "512"]);
    bench(&["-p", "18446744073709551615", "-n", "1"]).assert_refused(2, &["512 tokens"]);
    bench(&["-p", "0", "-n", "0", "-d", "8"]).assert_refused(2, &["both -p and -n are 0"]);
    bench(&["-p", "8", "-n", "4", "-d", "0,510"]).assert_refused(2, &["-p 8 -d 510", "512 tokens"]);
    bench(&["-p", "8", "-n", "4", "-pg", "500,12"]).assert_refused(2, &["-pg 500,12", "512 tokens"]);
    bench(&["-p", "8", "-r", "0"]).assert_refused(2, &["--repetitions"]);
}

#[test]
fn values_that_a_benchmark_cannot_measure_are_refused() {
    let bench = |args: &[&str]| pace(&[&["bench", "-m", "random:tiny", "-p", "8", "-n", "4"], args].concat());
    bench(&["-pg", "8"]).assert_refused(2, &["--pg", "512,128"]);
    bench(&["-pg", "0,8"]).assert_refused(2, &["--pg", "above 0"]);
    bench(&["-b", "2,0"]).assert_refused(2, &["--batch", "1..=4096"]);
    bench(&["-d", "1,x"]).assert_refused(2, &["--n-depth", "x"]);
    bench(&["-t", "1,0"]).assert_refused(2, &["--threads", "1..=4096"]);
    bench(&["-t", "2", "--instances", "1,3"]).assert_refused(2, &["--instances 3", "2 threads"]);
    bench(&["--kv-cache", "static,slab"]).assert_refused(2, &["--kv-cache", "slab", "bmc"]);
    bench(&["--kv-cache", "static", "--bmc-splits", "4"]).assert_refused(2, &["--bmc-splits", "static"]);
    bench(&["-o", "xml"]).assert_refused(2, &["--output", "jsonl"]);
    bench(&["--op-config", "{}", "--op-config", r#"{"mpl": "tpp"}"#]).assert_refused(2, &["`mpl`"]);
    // The second model is looked at before the first one runs.
    bench(&["-m", "random:huge"]).assert_refused(2, &["huge"]);
    bench(&["-m", "random:llama-8b", "-d", "200000"]).assert_refused(2, &["-p 8 -d 200000"]);
}

#[test]
fn environment_variables_are_checked() {
    let call = || Call::new(&["generate", "-m", "random:tiny", "--prompt-tokens", "1"]);
    call().env("PACE_ISA", "nonsense").run().assert_refused(2, &["nonsense", "scalar", "avx2"]);
    let words = ["PACE_LOG_LEVEL", "nonsense", "debug", "none"];
    call().env("PACE_LOG_LEVEL", "nonsense").run().assert_refused(2, &words);
    call().env("HF_HUB_OFFLINE", "perhaps").run().assert_refused(2, &["HF_HUB_OFFLINE", "perhaps"]);
    let words = ["PACE_OP_CONFIG", "`mpl`", "did you mean `mlp`?"];
    call().env("PACE_OP_CONFIG", r#"{"mpl": "native"}"#).run().assert_refused(2, &words);
    call().env("PACE_OP_CONFIG", "mlp=native").run().assert_refused(2, &["PACE_OP_CONFIG", "JSON", "line 1"]);
    call().env("LIBXSMM_BLOCK_SIZE", "48").run().assert_refused(2, &["LIBXSMM_BLOCK_SIZE", "48", "32, 64"]);
    call().env("IMBPS_BLOCK_SIZE", "0").run().assert_refused(2, &["IMBPS_BLOCK_SIZE", "`0`", "1 to 1024"]);
}

#[test]
fn operators_and_backends_that_do_not_exist_are_refused() {
    let entry = |entry: &str, words: &[&str]| refused(&["--prompt-tokens", "1", "--op", entry], words);
    entry("mpl=native", &["--op <KEY=BACKEND>", "`mpl`", "norm, qkv_projection", "did you mean `mlp`?"]);
    entry("mlp=nativ", &["--op", "`nativ`", "auto, native", "did you mean `native`?"]);
    entry("norm=imbps", &["--op", "norm has no backend `imbps`", "native"]);
    entry("linear=native", &["--op", "`linear`"]);
    entry("mlp", &["--op", "mlp=native"]);
    let json = |json: &str, words: &[&str]| refused(&["--prompt-tokens", "1", "--op-config", json], words);
    json(r#"{"atention": "native"}"#, &["--op-config <JSON>", "did you mean `attention`?"]);
    json(r#"{"mlp": "native", "MLP": "auto"}"#, &["--op-config", "mlp is both `native` and `auto`"]);
    json(r#"{"mlp": true}"#, &["--op-config", "mlp: true is no text"]);
    json("{'mlp': 'native'}", &["--op-config", "line 1 column 2"]);
}

#[test]
fn the_default_model_needs_a_place() {
    let call = Call::new(&["chat", "Hello"]).env("HOME", "").env("PACE_CACHE", "");
    call.run().assert_refused(2, &["default model", "HOME", "PACE_CACHE", "--model"]);
}

#[test]
fn a_command_is_needed() {
    assert_eq!(pace(&[]).code, Some(2));
    pace(&["frobnicate"]).assert_refused(2, &["frobnicate"]);
    pace(&["generate", "--frobnicate"]).assert_refused(2, &["--frobnicate"]);
}
