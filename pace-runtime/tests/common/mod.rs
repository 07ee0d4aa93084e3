//! Fixtures and engines for the integration tests.

// Each test binary uses a part of it, and a test that cannot read its fixture has failed.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pace_kernels::DType;
use pace_runtime::{
    EngineConfig, EngineHandle, Finish, ModelFiles, ModelRef, Request, RuntimeError, Score, ScoreRequest,
    TokenEvent,
};
use serde::Deserialize;

/// What HF transformers computed for one fixture; made by `tools/reference/make_fixtures.py`.
#[derive(Deserialize)]
pub(crate) struct Expected {
    pub(crate) name: String,
    pub(crate) model: String,
    pub(crate) cases: Vec<Case>,
}

/// One prompt.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) prompt: Vec<u32>,
    pub(crate) logprobs: Vec<Option<f64>>,
    pub(crate) next_logprobs: Vec<f64>,
    pub(crate) greedy: Vec<u32>,
}

/// Every committed fixture: its directory and what is expected of it.
pub(crate) fn fixtures() -> Vec<(PathBuf, Expected)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.retain(|path| path.is_dir());
    dirs.sort();
    assert!(dirs.len() >= 10, "fixtures are missing");
    let read = |dir: PathBuf| {
        let text = std::fs::read_to_string(dir.join("expected.json")).unwrap();
        (dir, serde_json::from_str(&text).unwrap())
    };
    dirs.into_iter().map(read).collect()
}

/// The engine configuration that computes everything in `dtype`.
pub(crate) fn config(dtype: DType, threads: usize) -> EngineConfig {
    EngineConfig { pin: false, ..EngineConfig::detect(dtype, Some(threads)).unwrap() }
}

/// Opens and starts `model`.
pub(crate) fn start(model: &ModelRef, config: EngineConfig) -> Result<EngineHandle, RuntimeError> {
    EngineHandle::start(&Arc::new(ModelFiles::open(model)?), config, Box::new(|_, _| {}))
}

/// The model of a fixture.
pub(crate) fn model(dir: &Path, expected: &Expected) -> ModelRef {
    ModelRef::parse(&dir.join(&expected.model).to_string_lossy()).unwrap()
}

/// Runs a request to its end.
pub(crate) fn generate(
    engine: &EngineHandle,
    request: Request,
) -> Result<(Vec<u32>, String, Finish), RuntimeError> {
    let (mut ids, mut all) = (Vec::new(), String::new());
    for event in engine.submit(request)? {
        match event {
            TokenEvent::Token { id, text } => {
                ids.push(id);
                all += &text;
            }
            TokenEvent::Finished(finish) => return Ok((ids, all + &finish.text, *finish)),
            TokenEvent::Failed(error) => return Err(error),
        }
    }
    unreachable!("a stream ends with Finished or Failed")
}

/// Scores `tokens` with the whole vocabulary behind them.
pub(crate) fn score(engine: &EngineHandle, tokens: &[u32]) -> Score {
    let top = engine.info().spec.vocab_size;
    engine.score(ScoreRequest { tokens: tokens.to_vec(), top, from: 0 }).unwrap().wait(|_| {}).unwrap()
}

/// Asserts that log-probabilities computed in `dtype` are off by no more than that type explains. `differences` are
/// those of one model from transformers in f32.
pub(crate) fn assert_close(what: &str, dtype: DType, differences: &[f64]) {
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    let worst = differences.iter().copied().fold(0.0, f64::max);
    // Rounding to bf16 may move single tokens far; sums in f32 may not.
    let (off, limit) = if dtype == DType::F32 { (worst, 1e-3) } else { (mean, 0.03) };
    assert!(
        off < limit,
        "{what}: log-probabilities in {dtype} are off by {mean} on average, {worst} at most"
    );
}
