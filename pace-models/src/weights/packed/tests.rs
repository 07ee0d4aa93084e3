use std::fs;
use std::io;
use std::path::Path;

use pace_kernels::{DType, Kernels, Placement};
use serde_json::{Value, json};

use super::*;
use crate::weights::random::{RandomSource, random_spec};
use crate::{Decoder, DecoderSpec, Model, ModelFormats};

const ARCH: Architecture = Architecture::Llama;

fn options(weights: WeightFormat) -> LoadOptions {
    let activations = if weights == WeightFormat::F32 { DType::F32 } else { DType::Bf16 };
    LoadOptions::new(weights, activations)
}

/// A model with everything: biases, an LM head of its own.
fn spec() -> DecoderSpec {
    let tiny = random_spec("tiny").unwrap();
    DecoderSpec {
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        tied_embeddings: false,
        n_layers: 2,
        ..tiny
    }
}

fn pack(spec: &DecoderSpec, options: LoadOptions, dir: &Path) -> PackedModel {
    let source = RandomSource::new(spec, 7);
    let (kernels, par) = (Kernels::detect(), Par::seq());
    let packed = PackedModel::new(&source, ARCH, spec, options, kernels, par, &|_| {}).unwrap();
    let origin = Origin { name: "random:tiny".to_owned(), path: None, files: Vec::new() };
    let mut written = 0;
    let mut step = |bytes| {
        written += bytes;
        Ok(())
    };
    packed.write(dir, origin, OriginKind::Random, "scalar", &mut step).unwrap();
    assert_eq!(written, packed.bytes());
    packed
}

#[test]
fn every_matrix_and_vector_comes_back_as_it_was_read_or_mapped() {
    for format in [
        WeightFormat::F32,
        WeightFormat::Bf16,
        WeightFormat::Int8RotatedGroup,
        WeightFormat::Int8Group(64),
        WeightFormat::Int4(32),
    ] {
        for spec in [random_spec("tiny").unwrap(), spec()] {
            let dir = tempfile::tempdir().unwrap();
            let packed = pack(&spec, options(format), dir.path());
            let source = PackedSource::open(dir.path()).unwrap();
            ARCH.validate_shapes(&source, &spec).unwrap();
            assert_eq!(source.naming(), Naming::Hf);
            assert_eq!(source.losses(), packed.losses());
            assert_eq!(source.manifest().matrices.len(), packed.matrices.len());
            let arena = Arena::new(Placement::default());
            for mapped in [false, true] {
                source.set_mapped(mapped).unwrap();
                for PackedMatrix { parts, weights } in &packed.matrices {
                    let names: Vec<&str> = parts.iter().map(|part| part.0.as_str()).collect();
                    let (shape, spec) =
                        ((weights.n(), weights.k()), PackSpec { format, layout: weights.layout() });
                    let read = source.matrix(&names, shape, spec, &arena, &Par::seq()).unwrap();
                    assert_eq!(read.stored(), weights.stored(), "{names:?} {format}");
                }
                for (name, vector) in &packed.vectors {
                    let mut read = vec![0.0; vector.len()];
                    source.read_f32(name, 0, &mut read).unwrap();
                    assert_eq!(read, *vector, "{name}");
                }
            }
            source.verify(&|_| {}).unwrap();
            assert!(fs::metadata(dir.path().join(WEIGHTS)).unwrap().permissions().readonly());
        }
    }
}

#[test]
fn a_decoder_of_it_is_the_one_of_its_source() {
    let spec = spec();
    for (format, mmap) in [(WeightFormat::Bf16, false), (WeightFormat::Int8Group(64), true)] {
        let dir = tempfile::tempdir().unwrap();
        pack(&spec, options(format), dir.path());
        let source = PackedSource::open(dir.path()).unwrap();
        source.set_mapped(mmap).unwrap();
        let load = |source: &dyn WeightSource, options| {
            Decoder::load(source, ARCH, &spec, options, Kernels::detect(), Par::seq(), &|_| {}).unwrap()
        };
        // As the command line has it without --quant.
        let as_packed = LoadOptions { own_formats: true, ..options(WeightFormat::Bf16) };
        let formats = ModelFormats::new(&source, ARCH, &spec, &as_packed);
        let from_source = load(&RandomSource::new(&spec, 7), options(format));
        let from_pack = load(&source, as_packed);
        let (want, got) = (from_source.weights(), from_pack.weights());
        assert_eq!((got.bytes, got.layout, &got.losses), (want.bytes, want.layout, &want.losses));
        assert_eq!(got.addresses.is_empty(), mmap, "a mapping takes no memory of its own");
        assert_eq!(formats.lm_head, format);
        assert!(formats.layers.iter().all(|layer| layer.up == format && layer.qkv == format));
    }
}

#[test]
fn what_is_packed_otherwise_is_refused_and_says_how() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), spec());
    pack(&spec, options(WeightFormat::Int8Group(64)), dir.path());
    let source = PackedSource::open(dir.path()).unwrap();
    let refused = |options: LoadOptions, words: &[&str]| {
        let loaded = Decoder::load(&source, ARCH, &spec, options, Kernels::detect(), Par::seq(), &|_| {});
        let Err(error) = loaded else { panic!("{words:?} is accepted") };
        assert!(matches!(error, ModelError::PackedOtherwise { .. }), "{error}");
        let message = error.to_string();
        for word in words.iter().chain(&["pace.json", "pace-cli quantize", "random:tiny"]) {
            assert!(message.contains(word), "`{word}` is not in: {message}");
        }
    };
    let int8 = || options(WeightFormat::Int8Group(64));
    let own = || LoadOptions { own_formats: true, ..options(WeightFormat::Bf16) };
    refused(options(WeightFormat::Bf16), &["is packed as int8:64", "bf16 is asked for"]);
    refused(options(WeightFormat::Int4(32)), &["is packed as int8:64", "int4:32 is asked for"]);
    refused(
        LoadOptions { lm_head: Some(WeightFormat::Bf16), ..own() },
        &["lm_head.weight", "bf16 is asked for"],
    );
    refused(LoadOptions { search_scales: false, ..int8() }, &["--quant-rounding search"]);
    refused(
        LoadOptions { panel_width: Some(32), ..own() },
        &["packed as int8:64 in panels of 64", "computes int8:64 in panels of 32", "LIBXSMM_BLOCK_SIZE=32)"],
    );
    let floats = tempfile::tempdir().unwrap();
    pack(&spec, options(WeightFormat::F32), floats.path());
    let error = PackedSource::open(floats.path()).unwrap().check_options(ARCH, &own()).unwrap_err();
    assert!(error.to_string().contains("--dtype f32"), "{error}");
}

#[test]
fn a_pack_of_a_pack_is_refused() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), spec());
    pack(&spec, options(WeightFormat::Bf16), dir.path());
    let source = PackedSource::open(dir.path()).unwrap();
    let again = PackedModel::new(
        &source,
        ARCH,
        &spec,
        options(WeightFormat::Bf16),
        Kernels::detect(),
        Par::seq(),
        &|_| {},
    );
    let message = again.unwrap_err().to_string();
    assert!(message.contains("packed already") && message.contains("random:tiny"), "{message}");
}

#[test]
fn numbers_that_were_not_checked_need_the_flag_again() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), spec());
    let allowed = || LoadOptions { allow_nonfinite: true, ..options(WeightFormat::Bf16) };
    pack(&spec, allowed(), dir.path());
    let source = PackedSource::open(dir.path()).unwrap();
    let error = source.check_options(ARCH, &options(WeightFormat::Bf16)).unwrap_err();
    assert!(error.to_string().contains("--allow-nonfinite"), "{error}");
    source.check_options(ARCH, &allowed()).unwrap();
}

#[test]
fn an_error_of_the_disk_ends_the_writing() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), spec());
    let packed = pack(&spec, options(WeightFormat::Bf16), dir.path());
    let origin = || Origin { name: "x".to_owned(), path: None, files: Vec::new() };
    let mut full = |_| Err(io::ErrorKind::StorageFull.into());
    let other = tempfile::tempdir().unwrap();
    let error = packed.write(other.path(), origin(), OriginKind::Hf, "scalar", &mut full).unwrap_err();
    assert!(
        matches!(&error, ModelError::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    );
    let gone = other.path().join("gone");
    let error = packed.write(&gone, origin(), OriginKind::Hf, "scalar", &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("cannot write") && error.to_string().contains(WEIGHTS), "{error}");
}

/// A packed model on disk, and its two files as they were.
struct Sample {
    dir: tempfile::TempDir,
    manifest: Value,
    weights: Vec<u8>,
}

impl Sample {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        pack(&spec(), options(WeightFormat::Int8Group(64)), dir.path());
        let manifest = serde_json::from_slice(&fs::read(dir.path().join(MANIFEST)).unwrap()).unwrap();
        let weights = fs::read(dir.path().join(WEIGHTS)).unwrap();
        Self { dir, manifest, weights }
    }

    fn write(&self, manifest: &Value, weights: &[u8]) {
        fs::write(self.dir.path().join(MANIFEST), manifest.to_string()).unwrap();
        // The file itself is not to be written to.
        fs::remove_file(self.dir.path().join(WEIGHTS)).unwrap();
        fs::write(self.dir.path().join(WEIGHTS), weights).unwrap();
    }

    fn error(&self) -> String {
        PackedSource::open(self.dir.path()).unwrap_err().to_string()
    }
}

#[test]
fn every_truncation_and_anything_behind_the_end_is_refused() {
    let sample = Sample::new();
    let len = sample.weights.len();
    let cuts = (0..300).chain((300..len).step_by(4099)).chain(len - 70..len);
    for cut in cuts {
        sample.write(&sample.manifest, &sample.weights[..cut]);
        let message = sample.error();
        assert!(message.contains(WEIGHTS), "{cut}: {message}");
    }
    sample.write(&sample.manifest, &[&sample.weights[..], b"\0"].concat());
    assert!(sample.error().contains(WEIGHTS));
    let text = sample.manifest.to_string();
    for cut in (0..text.len()).step_by(37) {
        fs::write(sample.dir.path().join(MANIFEST), &text[..cut]).unwrap();
        assert!(sample.error().contains(MANIFEST), "{cut}");
    }
}

#[test]
fn damaged_bytes_have_other_checksums() {
    let sample = Sample::new();
    let source = PackedSource::open(sample.dir.path()).unwrap();
    let first = source.manifest().matrices[0].name();
    let (place, last) = (source.offsets[0] as usize, sample.weights.len() - 2);
    for (at, name) in [(place, first.as_str()), (place + 99, &first), (last, "vectors")] {
        let mut damaged = sample.weights.clone();
        damaged[at] ^= 1;
        sample.write(&sample.manifest, &damaged);
        let source = PackedSource::open(sample.dir.path()).unwrap();
        let message = source.verify(&|_| {}).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("is damaged"), "{at}: {message}");
    }
    let mut damaged = sample.weights.clone();
    damaged[20] ^= 1;
    sample.write(&sample.manifest, &damaged);
    PackedSource::open(sample.dir.path()).unwrap_err();
}

#[test]
fn a_manifest_that_lies_is_refused() {
    let sample = Sample::new();
    let lies = [
        ("/layout", json!(2), "`pace-cli quantize`"),
        ("/layout", json!("1"), "manifest"),
        ("/header_sha256", json!("00"), "does not belong to"),
        ("/kind", json!("onnx"), "unknown variant"),
        ("/matrices", json!([]), "pace.json does not name it"),
        ("/matrices/0/format", json!("int8:128"), "bytes"),
        ("/matrices/0/format", json!("int8:48"), "unknown weight format"),
        ("/matrices/0/panel", json!(48), "panels of 48"),
        ("/matrices/0/panel", json!(null), "not in rows"),
        ("/matrices/0/panel", json!(32), "takes 23040; pack random:tiny again"),
        ("/matrices/1/panel", json!(32), "panels of 32, but `"),
        ("/matrices/0/paired", json!(true), "has paired true, but for a matrix of 1 tensors false is right"),
        ("/matrices/0/n", json!(258), "its parts do not have them"),
        ("/matrices/0/k", json!(144), "takes"),
        ("/matrices/0/k", json!(u64::MAX), "no matrix of a model"),
        ("/matrices/0/bytes", json!(64), "takes"),
        ("/matrices/0/sha256", json!("00"), "`matrices`: are not what"),
        ("/matrices/0/input_order", json!("00"), "input_order`, U32 of shape"),
        ("/matrices/0/parts/0/name", json!("other"), "is not in"),
        ("/matrices/0/parts/0/rows", json!(u64::MAX), "its parts do not have them"),
    ];
    for (field, value, word) in lies {
        let mut manifest = sample.manifest.clone();
        let (object, key) = field.rsplit_once('/').unwrap();
        manifest.pointer_mut(object).unwrap()[key] = value.clone();
        sample.write(&manifest, &sample.weights);
        let message = sample.error();
        assert!(message.contains(word) && message.contains(MANIFEST), "{field} {value}: {message}");
    }
    let mut manifest = sample.manifest.clone();
    let matrices = manifest["matrices"].as_array_mut().unwrap();
    let pair = matrices.iter_mut().find(|matrix| matrix["paired"] == true).unwrap();
    pair["paired"] = json!(false);
    sample.write(&manifest, &sample.weights);
    let message = sample.error();
    assert!(
        message.contains("up_proj.weight`: has paired false, but for a matrix of 2 tensors"),
        "{message}"
    );
    for field in ["layout", "matrices", "vectors_sha256", "origin", "kind", "search_scales"] {
        let mut manifest = sample.manifest.clone();
        manifest.as_object_mut().unwrap().remove(field);
        sample.write(&manifest, &sample.weights);
        assert!(sample.error().contains(field), "{field}");
    }
}

#[test]
fn the_weights_of_another_model_are_refused() {
    let (sample, other) = (Sample::new(), tempfile::tempdir().unwrap());
    let packed = PackedModel::new(
        &RandomSource::new(&spec(), 8),
        ARCH,
        &spec(),
        options(WeightFormat::Int8Group(64)),
        Kernels::detect(),
        Par::seq(),
        &|_| {},
    );
    let origin = Origin { name: "other".to_owned(), path: None, files: Vec::new() };
    packed.unwrap().write(other.path(), origin, OriginKind::Random, "scalar", &mut |_| Ok(())).unwrap();
    let weights = fs::read(other.path().join(WEIGHTS)).unwrap();
    assert_eq!(weights.len(), sample.weights.len());
    sample.write(&sample.manifest, &weights);
    assert!(sample.error().contains("does not belong to"));
}
