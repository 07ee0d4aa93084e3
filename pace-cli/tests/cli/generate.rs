//! `generate`: ways in, ways out, and the ids of transformers on every tier.

use std::io::Write;

use pace_kernels::Isa;
use serde_json::Value;

use super::common::{Call, arg, fixture, pace};
use super::{expected, ids, json, keys, list};

#[test]
fn the_json_object_has_the_documented_keys_and_types() {
    let out = json(&pace(&[
        "generate",
        "-m",
        "random:tiny",
        "--prompt-tokens",
        "1,2,3",
        "-n",
        "5",
        "--format",
        "json",
    ]));
    let documented = [
        "model",
        "prompt_tokens",
        "tokens",
        "text",
        "finish_reason",
        "seed",
        "threads",
        "operators",
        "demotions",
        "formats",
        "losses",
        "bit_equal",
        "prefill_steps",
        "kv_cache",
        "timings",
    ];
    assert_eq!(keys(&out), documented);
    assert_eq!(out["model"], "random:tiny");
    assert_eq!(ids(&out["prompt_tokens"]), [1, 2, 3]);
    assert_eq!(ids(&out["tokens"]).len(), 5);
    assert_eq!((&out["text"], &out["finish_reason"]), (&Value::from(""), &Value::from("length")));
    assert!(out["threads"].as_u64() >= Some(1));
    assert_eq!(out["prefill_steps"], 1);
    let kv = &out["kv_cache"];
    assert_eq!(keys(kv), ["kind", "allocations", "capacity_rows", "bytes", "bytes_copied"]);
    assert_eq!((&kv["kind"], &kv["allocations"]), (&Value::from("bmc"), &Value::from(1)));
    assert!(kv["capacity_rows"].as_u64() >= Some(7) && kv["bytes"].as_u64() > Some(0));
    assert_eq!(kv["bytes_copied"], 0);
    let timings = &out["timings"];
    let names = [
        "load_ms",
        "prompt_n",
        "prompt_ms",
        "prompt_per_second",
        "predicted_n",
        "predicted_ms",
        "predicted_per_second",
    ];
    assert_eq!(keys(timings), names);
    assert_eq!((timings["prompt_n"].as_u64(), timings["predicted_n"].as_u64()), (Some(3), Some(5)));
    for name in ["load_ms", "prompt_ms", "prompt_per_second", "predicted_ms", "predicted_per_second"] {
        assert!(timings[name].as_f64() > Some(0.0), "{name}: {timings}");
    }
}

#[test]
fn every_tier_and_thread_count_gives_the_greedy_ids_of_transformers() {
    for name in ["gqa-tied", "rope-llama3"] {
        let dir = fixture(name);
        for case in expected(name).cases.iter().skip(1) {
            let (prompt, n) = (list(&case.prompt), case.greedy.len().to_string());
            for isa in Isa::supported() {
                for threads in ["1", "2"] {
                    let args = [
                        "generate",
                        "-m",
                        arg(&dir),
                        "--prompt-tokens",
                        &prompt,
                        "-n",
                        &n,
                        "--dtype",
                        "f32",
                        "--temperature",
                        "0",
                        "--ignore-eos",
                        "--threads",
                        threads,
                        "--format",
                        "json",
                    ];
                    let out = json(&Call::new(&args).env("PACE_ISA", isa.name()).run());
                    assert_eq!(ids(&out["tokens"]), case.greedy, "{name} on {isa}, {threads} threads");
                    assert_eq!(out["threads"].to_string(), threads);
                }
            }
        }
    }
}

#[test]
fn one_model_as_directory_and_as_gguf_read_or_mapped_gives_the_same_ids() {
    let (dir, gguf) = (fixture("gqa-tied"), fixture("gguf-bf16").join("model.gguf"));
    let run = |model: &str, more: &[&str]| {
        let args =
            ["generate", "-m", model, "-p", "The bridge was closed.", "--dtype", "f32", "--format", "json"];
        json(&Call::new(&[&args, more].concat()).run())
    };
    let one = run(arg(&dir), &[]);
    for other in [run(arg(&gguf), &[]), run(arg(&gguf), &["--mmap"]), run(arg(&dir), &["--mmap"])] {
        for field in ["prompt_tokens", "tokens", "text", "finish_reason"] {
            assert_eq!(one[field], other[field], "{field}");
        }
    }
    assert!(!ids(&one["tokens"]).is_empty());

    let args = ["generate", "-m", arg(&dir), "--prompt-tokens", "1", "-n", "1", "--mmap"];
    let log = Call::new(&args).env("PACE_LOG_LEVEL", "info").run();
    assert!(log.stderr.contains("read from a mapping, with "), "{}", log.stderr);
}

#[test]
fn texts_become_the_ids_of_transformers_from_every_source() {
    for name in ["gqa-tied", "gguf-bf16/model.gguf"] {
        let model = fixture(name);
        let texts = expected(name.trim_end_matches("/model.gguf")).texts;
        assert!(texts.len() > 3);
        for text in texts.iter().filter(|t| !t.text.is_empty()) {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.text.as_bytes()).unwrap();
            let tail = ["-m", arg(&model), "-n", "1", "--format", "json"];
            let run = |way: &[&str], stdin: &str| {
                let args = [&["generate"], way, &tail].concat();
                ids(&json(&Call::new(&args).stdin(stdin).run())["prompt_tokens"])
            };
            assert_eq!(run(&["--prompt", &text.text], ""), text.tokens, "{:?}", text.text);
            assert_eq!(run(&["--prompt-file", arg(file.path())], ""), text.tokens, "{:?}", text.text);
            assert_eq!(run(&["--prompt-file", "-"], &text.text), text.tokens, "{:?}", text.text);
        }
    }
}

#[test]
fn text_is_what_the_json_says_and_ids_where_there_is_no_tokenizer() {
    let dir = fixture("gqa-tied");
    let args = ["generate", "-m", arg(&dir), "-p", "there were", "-n", "24"];
    let text = pace(&args).text().to_owned();
    let json_text = json(&pace(&[&args[..], &["--format", "json"]].concat()))["text"].clone();
    assert!(text.len() > 5);
    assert_eq!(Value::from(text.strip_suffix('\n').unwrap()), json_text);

    let args = ["generate", "-m", "random:tiny", "--prompt-tokens", "9,8", "-n", "4"];
    let printed = pace(&args).text().trim_end().replace(' ', ",");
    assert_eq!(printed, list(&ids(&json(&pace(&[&args[..], &["--format", "json"]].concat()))["tokens"])));
}

#[test]
fn a_sharded_model_and_a_quantised_file_run() {
    for name in ["sharded", "gguf-quant/model.gguf", "legacy-config"] {
        let case = &expected(name.trim_end_matches("/model.gguf")).cases[1];
        let model = fixture(name);
        let prompt = list(&case.prompt);
        let args = [
            "generate",
            "-m",
            arg(&model),
            "--prompt-tokens",
            &prompt,
            "-n",
            "32",
            "--dtype",
            "f32",
            "--temperature",
            "0",
            "--ignore-eos",
            "--format",
            "json",
        ];
        assert_eq!(ids(&json(&pace(&args))["tokens"]), case.greedy, "{name}");
    }
}

#[test]
fn bf16_weights_and_caches_take_half_the_memory() {
    let bytes = |dtype: &[&str]| {
        let args = ["generate", "-m", "random:tiny", "--prompt-tokens", "1", "-n", "2", "--format", "json"];
        json(&pace(&[&args, dtype].concat()))["kv_cache"]["bytes"].as_u64().unwrap()
    };
    let (auto, f32_kv) = (bytes(&[]), bytes(&["--kv-dtype", "f32"]));
    assert_eq!(auto, bytes(&["--dtype", "bf16", "--kv-dtype", "bf16"]));
    assert_eq!(f32_kv, bytes(&["--dtype", "f32"]));
    // Blocks pad the two types differently, so not exactly half.
    assert!(auto < f32_kv, "{auto} bytes in bf16, {f32_kv} in f32");
    let int8 = bytes(&["--kv-dtype", "int8"]);
    assert_eq!(int8, bytes(&["--dtype", "f32", "--kv-dtype", "int8"]));
    assert!(int8 < auto, "{int8} bytes in int8, {auto} in bf16");
}
