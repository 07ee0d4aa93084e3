//! A whole model on the engine: prefill of 128 tokens and 16 decode steps of `random:smollm2-135m`.

// The harness's macros make undocumented items.
#![allow(missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pace_kernels::DType;
use pace_runtime::{EngineConfig, EngineHandle, ModelFiles, ModelRef, Request, TokenEvent};

const PROMPT: usize = 128;
const NEW: usize = 16;

fn engine() -> EngineHandle {
    let files = ModelFiles::open(&ModelRef::Random("smollm2-135m".to_owned())).expect("it is in the list");
    let config = EngineConfig::detect(DType::Bf16, None).unwrap_or_else(|e| panic!("{e}"));
    EngineHandle::start(&Arc::new(files), config, Box::new(|_, _| {})).unwrap_or_else(|e| panic!("{e}"))
}

/// (time of the prompt, time of the answer, ids)
fn run(engine: &EngineHandle, prompt: usize, new: usize) -> (Duration, Duration, Vec<u32>) {
    let prompt = (0..prompt as u32).map(|i| i * 331 % 49152).collect();
    let request = Request { prompt, max_new_tokens: new, ..Request::default() };
    let mut ids = Vec::new();
    for event in engine.submit(request).expect("the request is valid") {
        match event {
            TokenEvent::Token { id, .. } => ids.push(id),
            TokenEvent::Finished(finish) => return (finish.prompt_time, finish.predicted_time, ids),
            TokenEvent::Failed(error) => panic!("{error}"),
        }
    }
    unreachable!("a stream ends with Finished or Failed")
}

fn model(c: &mut Criterion) {
    let engine = engine();
    let (_, _, ids) = run(&engine, PROMPT, NEW);
    assert_eq!(run(&engine, PROMPT, NEW).2, ids, "the same request gives the same tokens");
    let mut group = c.benchmark_group("model");
    group.sample_size(10);
    group.throughput(Throughput::Elements(PROMPT as u64));
    group.bench_function("prefill128", |b| {
        b.iter_custom(|n| (0..n).map(|_| run(&engine, PROMPT, 1).0).sum());
    });
    group.throughput(Throughput::Elements(NEW as u64));
    group.bench_function("decode16", |b| {
        b.iter_custom(|n| (0..n).map(|_| run(&engine, 1, NEW)).map(|(first, rest, _)| first + rest).sum());
    });
    group.finish();
}

criterion_group!(benches, model);
criterion_main!(benches);
