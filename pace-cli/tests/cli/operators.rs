//! Operators and their backends: `ops`, `jit dump`, `plan`, and what `info`, `generate` and `bench` say of them.

use pace_kernels::Isa;
use serde_json::Value;

use super::common::{Call, arg, fixture, pace};
use super::{json, keys};

/// What `ops` says on a tier.
fn ops(isa: &str) -> Value {
    json(&Call::new(&["ops", "--format", "json"]).env("PACE_ISA", isa).run())
}

/// The types of a backend of an operator; `available` ones only, if that is asked for.
fn dtypes<'a>(out: &'a Value, operator: &str, backend: &str, available: bool) -> Vec<&'a str> {
    let cells = out["operators"].as_array().unwrap().iter();
    let of = cells.filter(|cell| cell["operator"] == operator && cell["backend"] == backend);
    of.filter(|cell| !available || cell["available"] == true).map(|c| c["dtype"].as_str().unwrap()).collect()
}

#[test]
fn ops_has_a_cell_for_each_operator_backend_and_type() {
    let out = ops("scalar");
    assert_eq!(keys(&out), ["isa", "operators", "rule"]);
    assert_eq!(out["isa"], "scalar");
    for cell in out["operators"].as_array().unwrap() {
        assert_eq!(keys(cell), ["operator", "backend", "dtype", "available", "reason"]);
        assert_eq!(cell["available"].as_bool().unwrap(), cell["reason"].is_null(), "{cell}");
    }
    let cells = |op, backend| dtypes(&out, op, backend, false);
    assert_eq!(cells("mlp", "imbps"), ["f32", "bf16", "int8", "int4"]);
    assert_eq!(cells("attention", "jit"), ["bf16", "int8"]);
    assert_eq!(cells("attention", "flash"), ["f32", "bf16", "int8"]);
    assert_eq!(cells("lm_head", "jit"), ["bf16", "int8"]);
    assert!(cells("norm", "jit").is_empty() && cells("linear", "flash").is_empty());
    assert_eq!(out["rule"]["mlp"], "tpp");
    assert_eq!(out["rule"]["attention"], "flash");
}

#[test]
fn ops_says_what_is_missing_on_a_tier_and_why() {
    let out = ops("scalar");
    assert!(dtypes(&out, "mlp", "jit", true).is_empty());
    assert_eq!(dtypes(&out, "mlp", "native", true), dtypes(&out, "mlp", "native", false));
    let jit = out["operators"].as_array().unwrap().iter().filter(|cell| cell["backend"] == "jit");
    for cell in jit {
        let reason = cell["reason"].as_str().unwrap();
        assert!(reason.contains("avx512") && reason.contains("scalar"), "{reason}");
    }
    if Isa::Avx512Bf16.is_supported() {
        assert_eq!(dtypes(&ops("avx512-bf16"), "mlp", "jit", true), ["bf16", "int8"]);
        assert_eq!(dtypes(&ops("avx512-vnni"), "mlp", "jit", true), ["int8"]);
    }
    Call::new(&["ops"]).env("PACE_ISA", "sse9").run().assert_refused(2, &["sse9", "avx512-bf16"]);
}

#[test]
fn ops_in_text_is_a_matrix_with_reasons() {
    let out = Call::new(&["ops"]).env("PACE_ISA", "scalar").run();
    let lines: Vec<&str> = out.text().lines().collect();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let row = |name: &str| words(lines.iter().find(|line| line.starts_with(name)).unwrap());
    assert_eq!(row("operator"), ["operator", "native", "tpp", "jit", "imbps", "flash"]);
    assert_eq!(row("rope"), ["rope", "f32", "bf16", "f32", "bf16", "-", "-", "-"]);
    let attention = ["f32", "bf16", "int8", "-", "bf16*", "int8*", "-", "f32", "bf16", "int8"];
    assert_eq!(row("attention")[1..], attention);
    assert!(out.text().contains("jit  int8  generated kernels need"), "{}", out.text());
    assert!(out.text().contains("tpp; attention flash"), "{}", out.text());
    assert!(out.text().contains("int4 stands for int4, int8m, mxfp4"), "{}", out.text());
    let here = pace(&["ops"]);
    assert_eq!(here.text().contains('*'), !has_jit());
}

/// Whether generated bf16 kernels can run in these tests.
fn has_jit() -> bool {
    Isa::from_env().unwrap() == Isa::Avx512Bf16
}

#[test]
fn jit_dump_lists_what_a_model_is_run_with() {
    if !has_jit() {
        return;
    }
    let dir = fixture("rope-llama3");
    let list = |args: &[&str]| {
        let head = ["jit", "dump", "-m", arg(&dir), "--format", "json"];
        json(&pace(&[&head, args].concat()))
    };
    let names = |out: &Value| -> Vec<String> {
        let kernels = out["kernels"].as_array().unwrap();
        kernels.iter().map(|kernel| kernel["name"].as_str().unwrap().to_owned()).collect()
    };
    let out = list(&[]);
    assert_eq!(keys(&out), ["model", "isa", "kernels"]);
    assert!(out["kernels"][0]["bytes"].as_u64().unwrap() > 0);
    let all = names(&out);
    assert!(all.iter().any(|name| name.starts_with("bf16:")), "{all:?}");
    assert!(all.iter().any(|name| name.starts_with("attention")), "{all:?}");
    let without = names(&list(&["--op", "attention=flash"]));
    assert!(!without.iter().any(|name| name.starts_with("attention")), "{without:?}");
    // Every name in the list is one that can be asked for.
    let code = pace(&["jit", "dump", &all[0]]);
    assert!(code.text().lines().last().unwrap().ends_with("ret"), "{}", code.text());
    let text = pace(&["jit", "dump", "-m", arg(&dir)]);
    assert!(text.text().starts_with("kernel") && text.text().contains(&all[0]), "{}", text.text());
}

#[test]
fn jit_dump_disassembles_a_kernel_without_a_model() {
    if !has_jit() {
        return;
    }
    let key = "bf16:6x64:k2048:64:bias+silu:bf16";
    let out = json(&pace(&["jit", "dump", key, "--format", "json"]));
    assert_eq!(keys(&out), ["isa", "name", "instructions"]);
    let lines = out["instructions"].as_array().unwrap();
    assert!(lines.iter().any(|line| line.as_str().unwrap().contains("vdpbf16ps")), "{out}");
    pace(&["jit", "dump", "bf16:6x64"]).assert_refused(2, &["`bf16:6x64` is not the name", "k2048"]);
}

#[test]
fn jit_dump_says_why_there_is_nothing_to_dump() {
    for args in [&["jit", "dump", "-m", "random:tiny"][..], &["jit", "dump", "bf16:6x64:k2048"]] {
        let out = Call::new(args).env("PACE_ISA", "scalar").run();
        out.assert_refused(5, &["generated kernels need avx512", "scalar"]);
    }
    if has_jit() {
        let args = ["jit", "dump", "-m", "random:tiny"];
        let out = Call::new(&args).env("PACE_ISA", "avx512-vnni").run();
        out.assert_refused(5, &["generated kernels need avx512-bf16", "avx512-vnni"]);
        pace(&[&args[..], &["--dtype", "f32"]].concat()).assert_refused(2, &["`jit` for f32"]);
    }
}

#[test]
fn info_says_what_a_model_would_be_computed_with() {
    let info =
        |args: &[&str]| json(&pace(&[&["info", "random:llama-1b", "--format", "json"], args].concat()));
    let out = info(&[]);
    assert_eq!((&out["operators"]["mlp"], &out["operators"]["attention"]), (&"tpp".into(), &"flash".into()));
    assert_eq!(out["bit_equal"], true);
    let out = info(&["--op", "mlp=native", "--op", "norm=native"]);
    assert_eq!((&out["operators"]["mlp"], &out["bit_equal"]), (&"native".into(), &false.into()));
    assert_eq!(
        (&out["chosen_by"]["mlp"], &out["chosen_by"]["rope"]),
        (&"configuration".into(), &"rule".into())
    );
    assert_eq!(info(&["--op", "norm=native"])["bit_equal"], true, "norms are computed row by row");
    let text = |args: &[&str]| pace(&[&["info", "random:llama-1b"], args].concat()).text().to_owned();
    for part in
        ["operators      tpp: norm, qkv_projection", "flash: attention", "yes, unless a backend fails"]
    {
        assert!(text(&[]).contains(part), "{part}: {}", text(&[]));
    }
    let mixed = text(&["--op", "mlp=native", "--op", "lm_head=native", "--op", "norm=native"]);
    assert!(mixed.contains("whatever the batch: no: NATIVE computes mlp, lm_head\n"), "{mixed}");
    let tiny = pace(&["info", "random:tiny"]);
    assert!(tiny.text().contains("no: NATIVE computes attention"), "heads of 12: {}", tiny.text());
    let args = ["info", "random:tiny", "--dtype", "f32", "--op", "mlp=jit"];
    pace(&args).assert_refused(2, &["mlp has no backend `jit` for f32"]);
}

#[test]
fn results_say_what_computed_them() {
    let args = ["generate", "-m", "random:tiny", "--prompt-tokens", "1,2", "-n", "2", "--format", "json"];
    let out = json(&pace(&[&args[..], &["--op", "mlp=native"]].concat()));
    let operators = ["norm", "qkv_projection", "rope", "attention", "out_projection", "mlp", "lm_head"];
    assert!(operators.iter().all(|op| out["operators"][op].is_string()), "{out}");
    assert_eq!((&out["operators"]["mlp"], &out["operators"]["norm"]), (&"native".into(), &"tpp".into()));
    assert_eq!((&out["bit_equal"], &out["demotions"]), (&false.into(), &serde_json::json!([])));
    let bench = ["bench", "-m", "random:tiny", "-p", "4", "-n", "0", "-r", "1", "--op", "mlp=native"];
    let out = json(&pace(&[&bench[..], &["-o", "json"]].concat()));
    assert_eq!(out[0]["op_config"], "mlp=native");
    assert_eq!((&out[0]["bit_equal"], &out[0]["demotions"]), (&false.into(), &serde_json::json!([])));
    let text = pace(&bench);
    assert!(text.text().contains("the batch: no: NATIVE computes attention, mlp\n"), "{}", text.text());
}

#[test]
fn a_plan_is_measured_once_and_then_used() {
    let cache = tempfile::tempdir().unwrap();
    let call = |args: &[&str]| Call::new(args).env("PACE_CACHE", arg(cache.path())).run();
    let plan = ["plan", "-m", "random:tiny", "-t", "1", "--dtype", "f32"];
    let out = json(&call(&[&plan[..], &["--format", "json"]].concat()));
    assert_eq!(
        keys(&out),
        ["model", "machine", "file", "saved", "measured_shapes", "entries", "operators", "bit_equal"]
    );
    assert_eq!((&out["measured_shapes"], &out["machine"]["threads"]), (&7.into(), &1.into()));
    let entries = out["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 7 * 3);
    for entry in entries {
        let candidates = entry["candidates"].as_array().unwrap();
        assert!(candidates.iter().any(|c| c["backend"] == entry["choice"]), "{entry}");
        let positive = |value: &Value| value.as_f64().unwrap() > 0.0;
        assert!(candidates.iter().all(|c| positive(&c["seconds"]) && positive(&c["fraction"])), "{entry}");
    }
    let file = std::path::Path::new(out["file"].as_str().unwrap());
    assert!(file.starts_with(cache.path().join("plans")) && file.exists(), "{file:?}");
    let again = json(&call(&[&plan[..], &["--format", "json"]].concat()));
    let choices = |out: &Value| {
        let entries = out["entries"].as_array().unwrap().iter();
        entries
            .map(|e| (e["operator"].clone(), e["m_class"].clone(), e["choice"].clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!((&again["measured_shapes"], choices(&again)), (&0.into(), choices(&out)));
    let set = ["plan", "random:tiny", "-t", "1", "--dtype", "f32", "--op", "mlp=native"];
    let text = call(&set);
    assert!(text.text().contains("set by flag or environment; measured best: "), "{}", text.text());
    call(&[&plan[..], &["--op", "mlp=jit", "--force"]].concat()).assert_refused(2, &["`jit` for f32"]);
    let text = call(&plan);
    for part in ["operator", "of the limit", "mlp", ">16", "--force measures again", "whatever the batch"] {
        assert!(text.text().contains(part), "{part}: {}", text.text());
    }
    the_plan_decides(file, &call);
}

/// Writes another choice into the plan's file: that is what the model is run with. A damaged file is named and ignored.
fn the_plan_decides(file: &std::path::Path, call: &dyn Fn(&[&str]) -> super::common::Outcome) {
    let mut stored: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    for entry in stored["plan"]["entries"].as_array_mut().unwrap() {
        entry["choice"] = "native".into();
    }
    std::fs::write(file, stored.to_string()).unwrap();
    let args = ["generate", "-m", "random:tiny", "-t", "1", "--dtype", "f32", "--prompt-tokens", "1,2", "-n"];
    let run = |more: &[&str]| call(&[&args, &["2", "--format", "json"][..], more].concat());
    let out = run(&[]);
    assert_eq!(json(&out)["operators"]["mlp"], "native", "{}", out.stderr);
    let info = call(&["info", "random:tiny", "-t", "1", "--dtype", "f32"]);
    assert!(info.text().contains("chosen by      plan: norm"), "{}", info.text());
    assert_eq!(json(&run(&["--op", "mlp=tpp"]))["operators"]["mlp"], "tpp", "flags go before the plan");
    for entry in stored["plan"]["entries"].as_array_mut().unwrap() {
        entry["choice"] = "jit".into();
    }
    std::fs::write(file, stored.to_string()).unwrap();
    let out = run(&[]);
    assert_eq!(json(&out)["operators"]["mlp"], "tpp", "there is no generated code for f32");
    assert!(out.stderr.contains("the plan's jit is not for here"), "{}", out.stderr);
    let again = call(&["plan", "random:tiny", "-t", "1", "--dtype", "f32", "--format", "json"]);
    assert_eq!(json(&again)["measured_shapes"], 7, "what cannot be used counts as missing");
    std::fs::write(file, "{").unwrap();
    let out = run(&[]);
    assert_eq!(json(&out)["operators"]["mlp"], "tpp");
    assert!(out.stderr.contains(file.to_str().unwrap()), "{}", out.stderr);
}

#[test]
fn a_plan_is_for_the_integers_of_the_model_that_is_named() {
    let (cache, model) = (tempfile::tempdir().unwrap(), fixture("gguf-quant").join("model.gguf"));
    let call = |name: &[&str]| {
        let args = [&["plan", "-t", "1", "--format", "json"], name].concat();
        json(&Call::new(&args).env("PACE_CACHE", arg(cache.path())).run())
    };
    let first = call(&[arg(&model)]);
    assert!(first["measured_shapes"].as_u64().unwrap() > 0, "{first}");
    assert_eq!(call(&["-m", arg(&model)])["measured_shapes"], 0);
}

#[test]
fn a_plan_without_a_place_is_refused_before_it_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let args = ["plan", "random:llama-1b", "-t", "1"];
    let out = Call::new(&args).env("PACE_CACHE", arg(&file)).run();
    out.assert_refused(4, &[file.to_str().unwrap()]);
    pace(&["plan", "random:tiny", "-m", "random:tiny"]).assert_refused(2, &["cannot be used with"]);
}
