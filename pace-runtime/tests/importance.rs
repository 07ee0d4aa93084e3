//! What an engine learns of its products' inputs.

#![allow(clippy::unwrap_used)]

mod common;

use std::num::NonZeroUsize;

use pace_kernels::DType;
use pace_models::Importance;
use pace_models::arch::{Architecture, LayerRole, Role};
use pace_models::weights::WeightSource;
use pace_models::weights::random::RandomSource;
use pace_ops::{Backend, OperatorConfig};
use pace_runtime::{EngineConfig, ModelFiles, ModelRef, ScoreRequest};

use common::{config, start};

fn tiny() -> ModelRef {
    ModelRef::Random("tiny".to_owned())
}

/// The importance after `texts`.
fn collect(config: EngineConfig, texts: &[&[u32]]) -> Importance {
    let engine = start(&tiny(), EngineConfig { observe_inputs: true, ..config }).unwrap();
    for text in texts {
        let request = ScoreRequest { tokens: text.to_vec(), top: 0, from: 0 };
        engine.score(request).unwrap().wait(|_| {}).unwrap();
    }
    engine.importance().unwrap().unwrap()
}

fn assert_close(got: &Importance, want: &Importance, tolerance: f32) {
    assert_eq!((got.tokens(), got.means().len()), (want.tokens(), want.means().len()));
    for ((name, got), (_, want)) in got.means().zip(want.means()) {
        let largest = want.iter().copied().fold(0.0, f32::max);
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((got - want).abs() <= tolerance * largest, "{name} {i}: {got}, not {want}");
        }
    }
}

#[test]
fn the_first_layer_reads_normalised_embeddings() {
    let files = ModelFiles::open(&tiny()).unwrap();
    let (spec, tokens) = (files.spec(), [5u32, 80, 5, 200, 17]);
    // As ModelFiles makes it.
    let source = RandomSource::new(spec, 0x5eed);
    let read = |role, row: usize| {
        let mut out = vec![0.0; spec.hidden];
        let name = Architecture::Llama.tensor_name(source.naming(), role);
        source.read_f32(&name, row * spec.hidden, &mut out).unwrap();
        out
    };
    let norm = read(Role::Layer(0, LayerRole::AttnNorm), 0);
    let mut want = vec![0.0; spec.hidden];
    for &token in &tokens {
        let x: Vec<f64> = read(Role::Embedding, token as usize).into_iter().map(f64::from).collect();
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + f64::from(spec.norm_eps);
        for ((want, x), w) in want.iter_mut().zip(&x).zip(&norm) {
            *want += (x * f64::from(*w)).powi(2) / mean / tokens.len() as f64;
        }
    }
    let own = collect(config(DType::F32, 2), &[&tokens]);
    let (_, got) = own.means().find(|(name, _)| *name == "layers.0.qkv").unwrap();
    for (got, want) in got.iter().zip(&want) {
        assert!((f64::from(*got) - want).abs() < 1e-5 * (want + 0.01), "{got}, not {want}");
    }
}

#[test]
fn backends_texts_and_chunks_do_not_matter() {
    let text: Vec<u32> = (0..70).map(|i| (i * 53 + 11) % 259).collect();
    let own = collect(config(DType::F32, 2), &[&text]);
    assert_eq!(own.tokens(), 70);
    let mut chunks = config(DType::F32, 1);
    chunks.batching.prefill_chunk = NonZeroUsize::new(16).unwrap();
    assert_close(&collect(chunks, &[&text]), &own, 1e-6);
    // Twice the same text has the same means.
    let twice = collect(config(DType::F32, 2), &[&text, &text]);
    assert_eq!(twice.tokens(), 140);
    for ((name, twice), (_, once)) in twice.means().zip(own.means()) {
        assert!(twice.iter().zip(once).all(|(a, b)| (a - b).abs() <= 1e-6 * b), "{name}");
    }
    let mut native = config(DType::F32, 2);
    native.load.operators = OperatorConfig::native();
    assert_close(&collect(native, &[&text]), &own, 1e-4);
    let mut imbps = config(DType::F32, 2);
    imbps.load.operators.mlp = Backend::Imbps;
    imbps.load.imbps_chunks = Some(3);
    assert_close(&collect(imbps, &[&text]), &own, 1e-6);
}

#[test]
fn nothing_is_seen_unless_asked_for_or_before_a_token() {
    let engine = start(&tiny(), config(DType::F32, 1)).unwrap();
    assert_eq!(engine.importance().unwrap(), None);
    let observing = EngineConfig { observe_inputs: true, ..config(DType::F32, 1) };
    let error = start(&tiny(), observing).unwrap().importance().unwrap_err();
    assert!(error.to_string().contains("inputs of `layers.0.qkv`: were not seen"), "{error}");
}
