//! Every fixture against what HF transformers computes for it.

mod common;

use pace_kernels::DType;
use pace_models::Architecture;
use pace_runtime::Request;

use common::{Case, assert_close, config, fixtures, generate, model, score, start};

/// |difference| of every log-probability that a case has, given and next.
fn differences(case: &Case, engine: &pace_runtime::EngineHandle) -> Vec<f64> {
    let got = score(engine, &case.prompt);
    assert_eq!(got.logprobs.len(), case.logprobs.len());
    assert_eq!(got.next.len(), case.next_logprobs.len());
    let given =
        got.logprobs.iter().zip(&case.logprobs).filter_map(|(a, b)| Some((a.as_ref()? - b.as_ref()?).abs()));
    let next = got.next.iter().map(|&(id, logprob)| (logprob - case.next_logprobs[id as usize]).abs());
    given.chain(next).collect()
}

#[test]
fn f32_gives_the_log_probabilities_and_the_greedy_ids_of_transformers() {
    for (dir, expected) in fixtures() {
        let engine = start(&model(&dir, &expected), config(DType::F32, 2)).unwrap();
        for case in &expected.cases {
            assert_close(&expected.name, DType::F32, &differences(case, &engine));
            let request = Request {
                prompt: case.prompt.clone(),
                max_new_tokens: case.greedy.len(),
                ..Request::default()
            };
            let (ids, _, finish) = generate(&engine, request).unwrap();
            assert_eq!(ids, case.greedy, "{}", expected.name);
            assert_eq!((finish.prompt_n, finish.prefill_steps), (case.prompt.len(), 1));
        }
    }
}

#[test]
fn bf16_stays_close_to_transformers() {
    for (dir, expected) in fixtures() {
        let engine = start(&model(&dir, &expected), config(DType::Bf16, 2)).unwrap();
        let all: Vec<f64> = expected.cases.iter().flat_map(|case| differences(case, &engine)).collect();
        assert_close(&expected.name, DType::Bf16, &all);
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        assert!(mean > 1e-6, "{}: bf16 was not used", expected.name);
    }
}

/// Activations that are rounded to integers move log-probabilities of models this small by about as much as bf16.
#[test]
fn integers_of_the_files_stay_close_to_transformers() {
    let mut quantised = 0;
    for (dir, expected) in fixtures() {
        let model = model(&dir, &expected);
        let files = pace_runtime::ModelFiles::open(&model).unwrap();
        if files.source().tensors().iter().all(|info| files.source().codes(&info.name).is_none()) {
            continue;
        }
        quantised += 1;
        let mut config = config(DType::F32, 2);
        config.load.own_formats = true;
        let engine = start(&model, config).unwrap();
        let layers = &engine.info().formats.layers;
        let mut matrices = layers.iter().flat_map(|layer| [layer.qkv, layer.out, layer.up, layer.down]);
        assert!(matrices.all(|format| format.is_quantised()), "{}: {layers:?}", expected.name);
        let all: Vec<f64> = expected.cases.iter().flat_map(|case| differences(case, &engine)).collect();
        assert_close(&expected.name, DType::Bf16, &all);
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        assert!(mean > 1e-5, "{}: integers were not used", expected.name);
    }
    assert!(quantised >= 7, "{quantised} fixtures hold integers");
}

#[test]
fn every_architecture_has_a_fixture() {
    let found: Vec<Architecture> = fixtures()
        .iter()
        .map(|(dir, e)| pace_runtime::ModelFiles::open(&model(dir, e)).unwrap().architecture())
        .collect();
    for architecture in Architecture::ALL {
        assert!(found.contains(&architecture), "{} has no fixture", architecture.name());
    }
}
