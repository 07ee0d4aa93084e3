//! Packed models: written by one run, loaded by another, and the same bits as without.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{config, score, start};
use pace_kernels::WeightFormat;
use pace_runtime::{DType, EngineConfig, ErrorKind, ModelFiles, ModelRef, PackTarget, RuntimeError};

fn fixture(name: &str) -> ModelRef {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    ModelRef::parse(&path.to_string_lossy()).unwrap()
}

/// Formats as the command line sets them: `quant` none is `--dtype`, and with `own` as the files have them.
fn options(dtype: DType, quant: Option<WeightFormat>, own: bool) -> EngineConfig {
    let mut config = config(dtype, 2);
    config.load.own_formats = own;
    config.load.weights = quant.unwrap_or(config.load.weights);
    config
}

fn pack(model: &ModelRef, config: &EngineConfig, dir: &Path, force: bool) -> Result<(), RuntimeError> {
    let files = ModelFiles::open(model)?;
    let report =
        files.pack(config, PackTarget { dir, force }, &(Box::new(|_, _| {}) as _), &mut |_, _| Ok(()))?;
    assert!(report.files.iter().all(|(path, bytes)| path.metadata().unwrap().len() == *bytes));
    Ok(())
}

/// What is in a directory.
fn names(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn a_packed_model_gives_the_bits_of_its_source() {
    let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 90).collect();
    let random = |name: &str| ModelRef::Random(name.to_owned());
    let (f32, bf16) = (DType::F32, DType::Bf16);
    let (int8, int4) = (Some(WeightFormat::Int8Group(64)), Some(WeightFormat::Int4(32)));
    for (model, dtype, quant, own) in [
        (random("tiny"), bf16, None, false),
        (random("tiny"), f32, None, false),
        (random("tiny"), bf16, int8, false),
        (random("small"), bf16, int4, false),
        (fixture("mha-untied-bias"), bf16, int4, false),
        (fixture("mha-untied-bias"), f32, None, false),
        (fixture("gqa-tied"), bf16, int8, false),
        (fixture("gguf-quant/model.gguf"), bf16, None, true),
        (fixture("gguf-rope-freqs/model.gguf"), bf16, int8, false),
        (fixture("gptq-act-order"), bf16, None, true),
    ] {
        let what = format!("{model} {dtype} {quant:?}");
        let dir = tempfile::tempdir().unwrap();
        let packed = dir.path().join("packed");
        let config = options(dtype, quant, own);
        pack(&model, &config, &packed, false).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(names(dir.path()), [packed.as_path()], "{what}: nothing else is left");
        let engine = start(&model, config.clone()).unwrap();
        let want = score(&engine, &tokens);
        let packed = ModelRef::parse(&packed.to_string_lossy()).unwrap();
        let has_tokenizer = ModelFiles::open(&model).unwrap().tokenizer().is_some();
        assert_eq!(ModelFiles::open(&packed).unwrap().tokenizer().is_some(), has_tokenizer, "{what}");
        assert_eq!(packed.open_tokenizer().is_ok(), has_tokenizer, "{what}");
        for mmap in [false, true] {
            let mut config = options(dtype, None, dtype == bf16);
            config.load.mmap = mmap;
            let loaded = start(&packed, config).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(format!("{:?}", score(&loaded, &tokens)), format!("{want:?}"), "{what} mapped {mmap}");
            let (own, other) = (engine.info(), loaded.info());
            assert_eq!((&other.formats, other.weight_layout), (&own.formats, own.weight_layout), "{what}");
            assert_eq!((&other.losses, other.weight_bytes), (&own.losses, own.weight_bytes), "{what}");
        }
        // With the flags that it was packed with.
        start(&packed, config).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
}

#[test]
fn a_damaged_order_of_inputs_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("packed");
    let config = options(DType::Bf16, None, true);
    pack(&fixture("gptq-act-order"), &config, &packed, false).unwrap();
    let weights = packed.join("model.pace.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    let (name, tensor) =
        header.as_object().unwrap().iter().find(|(name, _)| name.ends_with(".input_order")).unwrap();
    let at = data + tensor["data_offsets"][0].as_u64().unwrap() as usize;
    let open = || {
        let files = ModelFiles::open(&ModelRef::Directory(packed.clone())).unwrap();
        let found = files.source().packed().unwrap().verify(&|_| {});
        (found, start(&ModelRef::Directory(packed.clone()), config.clone()))
    };
    let (found, engine) = open();
    assert!(found.is_ok() && engine.is_ok());
    // The first input twice, and one that is not there.
    let first = bytes[at..at + 4].to_vec();
    for (second, what) in [(first, "twice"), (vec![0xff; 4], "not there")] {
        bytes[at + 4..at + 8].copy_from_slice(&second);
        std::fs::remove_file(&weights).unwrap();
        std::fs::write(&weights, &bytes).unwrap();
        let (found, engine) = open();
        let found = found.unwrap_err().to_string();
        assert!(found.contains(name) && found.contains("is damaged"), "{what}: {found}");
        let error = engine.err().unwrap().to_string();
        assert!(error.contains(name) && error.contains("inputs once"), "{what}: {error}");
    }
}

#[test]
fn what_is_there_is_replaced_only_on_request_and_only_if_it_is_a_packed_model() {
    let (model, dir) = (ModelRef::Random("tiny".to_owned()), tempfile::tempdir().unwrap());
    let (bf16, f32) = (options(DType::Bf16, None, false), options(DType::F32, None, false));
    let packed = dir.path().join("packed");
    pack(&model, &bf16, &packed, true).unwrap();
    let error = pack(&model, &f32, &packed, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("--force"), "{error}");
    pack(&model, &f32, &packed, true).unwrap();
    assert_eq!(names(dir.path()), [packed.as_path()]);
    let opened = ModelFiles::open(&ModelRef::Directory(packed)).unwrap();
    assert!(opened.formats().iter().all(|share| share.format.eq_ignore_ascii_case("f32")));
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("thesis.txt"), "precious").unwrap();
    for place in [&other, &other.join("thesis.txt")] {
        let error = pack(&model, &f32, place, true).unwrap_err();
        assert!(error.to_string().contains("no packed model"), "{error}");
    }
    let error = pack(&model, &f32, &dir.path().join("no/where"), false).unwrap_err();
    assert!(error.to_string().contains("there is no directory"), "{error}");
    assert_eq!(std::fs::read_to_string(other.join("thesis.txt")).unwrap(), "precious");
}

#[test]
fn writing_that_fails_leaves_nothing_and_what_was_there() {
    let (model, dir) = (ModelRef::Random("tiny".to_owned()), tempfile::tempdir().unwrap());
    let config = options(DType::Bf16, None, false);
    let packed = dir.path().join("packed");
    let files = ModelFiles::open(&model).unwrap();
    let attempt = |force, fail_at: u64| {
        let mut written =
            |done, _| if done >= fail_at { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) };
        files.pack(&config, PackTarget { dir: &packed, force }, &(Box::new(|_, _| {}) as _), &mut written)
    };
    for fail_at in [0, 1, 50_000] {
        let error = attempt(false, fail_at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Resources, "{error}");
        assert!(names(dir.path()).is_empty(), "{fail_at}");
    }
    attempt(false, u64::MAX).unwrap();
    let before = std::fs::read(packed.join("pace.json")).unwrap();
    attempt(true, 50_000).unwrap_err();
    assert_eq!(names(dir.path()), [packed.as_path()]);
    assert_eq!(std::fs::read(packed.join("pace.json")).unwrap(), before);
}
