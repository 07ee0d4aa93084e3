//! Operators and their backends: `ops`, `jit dump`.

use pace_kernels::Isa;
use serde_json::Value;

use super::common::{Call, pace};
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
    assert_eq!(cells("mlp", "imbps"), ["f32", "bf16", "int8"]);
    assert_eq!(cells("attention", "jit"), ["bf16"]);
    assert_eq!(cells("attention", "flash"), ["f32", "bf16"]);
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
    assert_eq!(row("attention"), ["attention", "f32", "bf16", "-", "bf16*", "-", "f32", "bf16"]);
    assert!(out.text().contains("jit  int8  generated kernels need"), "{}", out.text());
    assert!(out.text().contains("tpp; attention flash"), "{}", out.text());
    let here = pace(&["ops"]);
    assert_eq!(here.text().contains('*'), !Isa::Avx512Bf16.is_supported());
}

/// Whether generated bf16 kernels can run in these tests.
fn has_jit() -> bool {
    Isa::from_env().unwrap() >= Isa::Avx512Bf16
}

#[test]
fn jit_dump_lists_what_a_model_is_run_with() {
    if !has_jit() {
        return;
    }
    let list = |args: &[&str]| {
        let head = ["jit", "dump", "-m", "random:tiny", "--format", "json"];
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
    let text = pace(&["jit", "dump", "-m", "random:tiny"]);
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
