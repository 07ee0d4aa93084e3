//! A decode step allocates nothing once it is warm.

#![allow(clippy::unwrap_used)]

mod common;

use pace_kernels::{DType, KvDType};
use pace_runtime::kv_cache::KvShape;
use pace_runtime::sampler::SamplingParams;
use pace_runtime::{ModelFiles, ModelRef, Request, TokenEvent, TokenStream};
use peak_alloc::PeakAlloc;

use common::{config, start};

/// The system's allocator, counted. This test has a process of its own, so that nobody else allocates.
#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

#[test]
fn a_warm_decode_step_allocates_nothing() {
    for kv in [KvDType::Bf16, KvDType::Int8] {
        check(kv);
    }
}

fn check(kv: KvDType) {
    let small = ModelRef::Random("small".to_owned());
    let mut config = config(DType::Bf16, 2);
    config.load.kv = kv;
    let files = ModelFiles::open(&small).unwrap();
    // An engine is never so far ahead of who reads that an answer ends meanwhile.
    let (prompt, new) = (20, 1500);
    let shape = KvShape::new(files.spec(), config.load.kv, prompt + new);
    // Three run, and the fourth asks at every step whether there is room now.
    config.batching.kv_memory = Some(3 * config.kv_cache.peak_bytes(&shape) as u64);
    let engine = start(&small, config).unwrap();
    for do_sample in [false, true] {
        let sampling = SamplingParams { do_sample, seed: Some(1), ..SamplingParams::default() };
        // The first round leaves work space of the size that such sequences need.
        for warm in [false, true] {
            let request =
                || Request { prompt: vec![3; prompt], max_new_tokens: new, sampling, ..Request::default() };
            let mut streams = [0, 1, 2].map(|_| engine.submit(request()).unwrap());
            let waiting = engine.submit(request()).unwrap();
            read(&mut streams, 50);
            HEAP.reset_peak_usage();
            let before = HEAP.current_usage();
            read(&mut streams, 240);
            assert_eq!((engine.metrics().running, engine.metrics().waiting), (3, 1));
            if warm {
                let after = (HEAP.peak_usage(), HEAP.current_usage());
                assert_eq!(after, (before, before), "{kv}, sampling: {do_sample}");
            }
            for stream in streams.into_iter().chain([waiting]) {
                stream.cancel();
                assert!(matches!(stream.last(), Some(TokenEvent::Finished(_))));
            }
        }
    }
}

/// Reads `tokens` tokens of each. A reader that sleeps would allocate, the first time that it does.
fn read(streams: &mut [TokenStream], tokens: usize) {
    for _ in 0..tokens {
        for stream in &mut *streams {
            let event = loop {
                match stream.try_next() {
                    Some(event) => break event,
                    None => std::thread::yield_now(),
                }
            };
            assert!(matches!(event, TokenEvent::Token { .. }));
        }
    }
}
