use std::sync::Arc;

use pace_kernels::{DType, Kernels, Par, WeightFormat};
use pace_ops::{Backend, OpShape, Operator};

use super::*;
use crate::tensor_loader::TensorLoader;
use crate::weights::packed::{Origin, OriginKind, PackedModel, PackedSource};
use crate::weights::random::{RandomSource, random_spec};
use crate::{Architecture, Decoder, LoadOptions};

fn spec() -> DecoderSpec {
    random_spec("tiny").unwrap()
}

/// Other numbers for each product, of very different sizes.
fn inputs(spec: &DecoderSpec) -> Vec<InputMeans> {
    let one = |(layer, product, k): (Option<usize>, Product, usize)| {
        let salt = layer.map_or(7, |layer| 10 * layer) + product as usize;
        let mean_squares = (0..k).map(|i| (((i * 37 + salt) % 23) as f32 - 8.0).exp2()).collect();
        InputMeans { layer, product, rows: 12, mean_squares }
    };
    products(spec).map(one).collect()
}

fn importance() -> Importance {
    Importance::new("a \"model\"\n", &spec(), inputs(&spec())).unwrap()
}

fn open_bytes(bytes: &[u8]) -> Result<Importance, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("imatrix");
    std::fs::write(&path, bytes).unwrap();
    Importance::open(&path)
}

/// A file of one tensor; `metadata` and `entry` are JSON.
fn file(metadata: &str, entry: &str, numbers: &[f32]) -> Vec<u8> {
    let header = format!(r#"{{"__metadata__":{metadata},"lm_head":{entry}}}"#);
    let data: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

const METADATA: &str = r#"{"format":"pace-imatrix","version":"1","tokens":"5","model":"m"}"#;
const TWO: &str = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;

fn assert_names(error: &ModelError, words: &[&str]) {
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

#[test]
fn a_file_holds_what_was_collected() {
    let own = importance();
    assert_eq!((own.tokens(), own.means().len()), (12, 4 * spec().n_layers + 1));
    let read = open_bytes(&own.to_bytes()).unwrap();
    assert_eq!(Importance { path: PathBuf::new(), ..read.clone() }, own);
    assert_eq!(read.model(), "a \"model\"\n");
    read.check(&spec()).unwrap();
    let first = read.means().next().unwrap();
    assert_eq!((first.0, first.1.len()), ("layers.0.down", spec().ffn));
}

#[test]
fn inputs_that_were_not_seen_or_are_not_finite_are_refused() {
    let spec = spec();
    let refused = |change: &dyn Fn(&mut Vec<InputMeans>)| {
        let mut inputs = inputs(&spec);
        change(&mut inputs);
        Importance::new("m", &spec, inputs).unwrap_err()
    };
    assert_names(&refused(&|all| drop(all.remove(1))), &["`layers.0.out`", "not seen"]);
    assert_names(&refused(&|all| all[0].rows = 0), &["`layers.0.qkv`", "not seen"]);
    assert_names(
        &refused(&|all| all[3].mean_squares[5] = f32::NAN),
        &["`layers.0.down`", "element 5 is NaN"],
    );
    assert_names(&refused(&|all| all[3].mean_squares[0] = f32::INFINITY), &["element 0 is inf"]);
}

#[test]
fn files_that_lie_are_refused_by_name() {
    open_bytes(&file(METADATA, TWO, &[0.0, 3.0])).unwrap();
    let with = |from: &str, to: &str| file(&METADATA.replace(from, to), TWO, &[1.0, 2.0]);
    let entry = |from: &str, to: &str, n: usize| file(METADATA, &TWO.replace(from, to), &vec![1.0; n]);
    let number = |x: f32| file(METADATA, TWO, &[1.0, x]);
    let cases: [(Vec<u8>, &[&str]); 13] = [
        (Vec::new(), &["has 0 bytes"]),
        (file("{}", TWO, &[1.0, 2.0]), &["field `__metadata__.format`", "missing"]),
        (with("pace-imatrix", "pt"), &["field `__metadata__.format`", "`pt`", "`pace-imatrix`"]),
        (with(r#""1""#, r#""2""#), &["field `__metadata__.version`", "`2`", "`1`"]),
        (with(r#""5""#, r#""-5""#), &["field `__metadata__.tokens`", "whole number"]),
        (entry("[2]", "[2,1]", 2), &["tensor `lm_head`", "[2, 1]", "vector"]),
        (entry("[2]", "[3]", 2), &["tensor `lm_head`", "[3]"]),
        (entry("F32", "I32", 2), &["tensor `lm_head`", "I32", "F32"]),
        (entry("[0,8]", "[0,16]", 2), &["tensor `lm_head`", "[0, 16]"]),
        (number(f32::NAN), &["tensor `lm_head`", "element 1 is NaN"]),
        (number(-1.0), &["tensor `lm_head`", "element 1 is -1e0"]),
        (number(f32::INFINITY), &["tensor `lm_head`", "element 1 is inf"]),
        (number(1e30), &["tensor `lm_head`", "element 1 is 1e30"]),
    ];
    for (bytes, words) in &cases {
        let error = open_bytes(bytes).unwrap_err();
        assert_names(&error, &["imatrix: "]);
        assert_names(&error, words);
    }
    assert_names(&Importance::open(Path::new("/")).unwrap_err(), &["is a directory"]);
}

#[test]
fn a_file_of_another_model_is_refused_before_weights_are_read() {
    let spec = spec();
    let longer = DecoderSpec { n_layers: spec.n_layers + 1, ..spec.clone() };
    let wider = DecoderSpec { ffn: 2 * spec.ffn, ..spec.clone() };
    let last = format!("layers.{}.down", spec.n_layers);
    let load = |importance: Importance, spec: &DecoderSpec| {
        let options = LoadOptions {
            importance: Some(Arc::new(importance)),
            ..LoadOptions::new(WeightFormat::Int4(32), DType::Bf16)
        };
        let source = RandomSource::new(spec, 1);
        let kernels = Kernels::detect();
        Decoder::load(&source, Architecture::Llama, spec, options, kernels, Par::seq(), &|_| {}).map(|_| ())
    };
    load(importance(), &spec).unwrap();
    assert_names(&load(importance(), &longer).unwrap_err(), &[&last, "missing"]);
    assert_names(&load(importance(), &wider).unwrap_err(), &["layers.0.down", "inputs"]);
    let of_longer = Importance::new("m", &longer, inputs(&longer)).unwrap();
    assert_names(&load(of_longer, &spec).unwrap_err(), &[&last, "no product of the model"]);
}

#[test]
fn each_matrix_has_the_importance_of_its_input() {
    let own = importance();
    let layer = |part| own.of(Role::Layer(1, part), true);
    let same = [LayerRole::Q, LayerRole::K, LayerRole::V].map(layer);
    assert!(same.iter().all(|one| *one == same[0]) && same[0].is_some());
    assert_eq!(layer(LayerRole::Gate), layer(LayerRole::Up));
    assert_ne!(layer(LayerRole::Q), layer(LayerRole::Up));
    assert_eq!(layer(LayerRole::Down).unwrap().len(), spec().ffn);
    assert_eq!((layer(LayerRole::QBias), own.of(Role::FinalNorm, true)), (None, None));
    assert_eq!(own.of(Role::Embedding, true), own.of(Role::LmHead, true));
    assert_eq!(own.of(Role::Embedding, false), None);
    let head = own.of(Role::LmHead, false).unwrap();
    let mean = head.iter().sum::<f32>() / head.len() as f32;
    assert!((mean - 1.0).abs() < 1e-4 && head.iter().all(|&x| x > 0.0), "{mean}");
    // Inputs that are all 0 count alike.
    let mut zeros = inputs(&spec());
    zeros.iter_mut().for_each(|i| i.mean_squares.fill(0.0));
    let zeros = Importance::new("m", &spec(), zeros).unwrap().of(Role::LmHead, true).unwrap();
    assert!(zeros.iter().all(|&x| x == zeros[0] && x > 0.0));
}

/// The error of a packed matrix of layer 1 beside the source's weights, each square times `counts`.
fn error(options: LoadOptions, role: LayerRole, k: usize, format: WeightFormat, counts: &[f32]) -> f64 {
    let (spec, arch, kernels) = (spec(), Architecture::Llama, Kernels::detect());
    let source = RandomSource::new(&spec, 1);
    let mut loader = TensorLoader::new(&source, arch, &spec, options, kernels, Par::seq(), &|_| {}).unwrap();
    let role = Role::Layer(1, role);
    let name = arch.tensor_name(source.naming(), role);
    let n = source.info(&name).unwrap().shape[0];
    let shape = OpShape::matrix(Operator::Linear, format.into(), n, k);
    let pack = loader.build().pack_spec(shape, Backend::Tpp.into(), format);
    let packed = loader.matrix(&[role], k, pack).unwrap();
    let (mut exact, mut rounded, mut error) = (vec![0.0; k], vec![0.0; k], 0.0);
    for row in 0..n {
        source.read_f32(&name, row * k, &mut exact).unwrap();
        packed.row(row, &kernels, &mut rounded);
        for ((x, y), &count) in exact.iter().zip(&rounded).zip(counts) {
            error += f64::from(count) * f64::from(x - y).powi(2);
        }
    }
    error
}

#[test]
fn a_matrix_loses_less_where_it_counts() {
    let spec = spec();
    let importance = Arc::new(importance());
    for format in [WeightFormat::Int4(32), WeightFormat::Int4(128), WeightFormat::Int4Min(32)] {
        for (role, k) in [(LayerRole::Down, spec.ffn), (LayerRole::O, spec.n_heads * spec.head_dim)] {
            let counts = importance.of(Role::Layer(1, role), spec.tied_embeddings).unwrap();
            let options = LoadOptions::new(format, DType::Bf16);
            let with = LoadOptions { importance: Some(Arc::clone(&importance)), ..options.clone() };
            let nearest = LoadOptions { search_scales: false, ..options.clone() };
            let [with, without, nearest] =
                [with, options, nearest].map(|o| error(o, role, k, format, &counts));
            assert!(with < 0.97 * without && with < nearest, "{format}: {with}, {without}, {nearest}");
        }
    }
}

#[test]
fn a_packed_model_says_whose_inputs_it_was_rounded_for_and_is_not_rounded_again() {
    let (spec, dir) = (spec(), tempfile::tempdir().unwrap());
    let options = || LoadOptions {
        importance: Some(Arc::new(importance())),
        ..LoadOptions::new(WeightFormat::Int4(32), DType::Bf16)
    };
    let (source, arch, kernels) = (RandomSource::new(&spec, 1), Architecture::Llama, Kernels::detect());
    let packed = PackedModel::new(&source, arch, &spec, options(), kernels, Par::seq(), &|_| {}).unwrap();
    let origin = Origin { name: "m".to_owned(), path: None, files: Vec::new() };
    packed.write(dir.path(), origin, OriginKind::Random, "scalar", &mut |_| Ok(())).unwrap();
    let packed = PackedSource::open(dir.path()).unwrap();
    assert_eq!(packed.manifest().importance.as_deref(), Some("a \"model\"\n"));
    let load =
        |options| Decoder::load(&packed, arch, &spec, options, kernels, Par::seq(), &|_| {}).map(|_| ());
    load(LoadOptions { importance: None, ..options() }).unwrap();
    assert_names(&load(options()).unwrap_err(), &["pace.json", "--imatrix"]);
}
