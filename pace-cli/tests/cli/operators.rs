//! Operators and their backends: `ops`.

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
    if pace_kernels::Isa::Avx512Bf16.is_supported() {
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
    assert_eq!(here.text().contains('*'), !pace_kernels::Isa::Avx512Bf16.is_supported());
}
