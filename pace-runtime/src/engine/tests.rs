use std::num::NonZeroUsize;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use super::*;
use crate::{FinishReason, ModelRef, TokenEvent};

fn tiny(batching: Batching) -> EngineHandle {
    let files = ModelFiles::open(&ModelRef::Random("tiny".to_owned())).unwrap();
    let config = EngineConfig { pin: false, batching, ..EngineConfig::detect(DType::Bf16, Some(2)).unwrap() };
    EngineHandle::start(&Arc::new(files), config, Box::new(|_, _| {})).unwrap()
}

fn request(prompt: &[u32], n: usize) -> Request {
    Request { prompt: prompt.to_vec(), max_new_tokens: n, ..Request::default() }
}

/// Stops the engine between two steps until the sender is dropped.
fn hold(engine: &EngineHandle) -> (Sender<()>, JoinHandle<()>) {
    let (held_tx, held) = channel();
    let (release, released) = channel::<()>();
    let engine = engine.clone();
    let caller = std::thread::spawn(move || {
        let wait = move |_: &OpCx<'_>| {
            held_tx.send(()).unwrap();
            let _ = released.recv();
        };
        engine.call(wait).unwrap();
    });
    held.recv().unwrap();
    (release, caller)
}

fn finish(stream: TokenStream) -> crate::Finish {
    match stream.last() {
        Some(TokenEvent::Finished(finish)) => *finish,
        other => panic!("{other:?}"),
    }
}

/// Bytes of the cache of `tokens` tokens.
fn bytes(engine: &EngineHandle, tokens: usize) -> u64 {
    let Inner { config, counters, .. } = &*engine.inner;
    config.kv_plan().need(engine.spec(), tokens, &counters.kv).unwrap()
}

#[test]
fn a_full_queue_refuses_more_and_has_places_again_later() {
    let engine = tiny(Batching { max_waiting: 2, ..Batching::default() });
    let (release, caller) = hold(&engine);
    let waiting = [0, 1].map(|i| engine.submit(request(&[i, 2], 3)).unwrap());
    assert!(matches!(engine.submit(request(&[1], 3)), Err(RuntimeError::QueueFull { max: 2 })));
    assert_eq!((engine.metrics().waiting, engine.metrics().running), (2, 0));
    drop(release);
    caller.join().unwrap();
    for stream in waiting {
        assert_eq!(finish(stream).predicted_n, 3);
    }
    assert_eq!(finish(engine.submit(request(&[1], 3)).unwrap()).predicted_n, 3);
}

#[test]
fn a_short_prompt_overtakes_a_long_one_but_does_not_stop_it() {
    let prefill_chunk = NonZeroUsize::new(10).unwrap();
    let engine = tiny(Batching { prefill_chunk, ..Batching::default() });
    let (release, caller) = hold(&engine);
    let long = engine.submit(request(&[7; 400], 1)).unwrap();
    let short = engine.submit(request(&[1; 12], 1)).unwrap();
    drop(release);
    caller.join().unwrap();
    // Five tokens a step for each, then two; the long one has the rest.
    assert_eq!(finish(short).prefill_steps, 3);
    assert_eq!(finish(long).prefill_steps, 42);
}

#[test]
fn memory_for_keys_and_values_is_set_aside_before_a_sequence_runs() {
    let sizes = tiny(Batching::default());
    let kv_memory = Some(bytes(&sizes, 128));
    let engine = tiny(Batching { kv_memory, ..Batching::default() });
    let refused = engine.submit(request(&[1; 100], 100)).err().unwrap();
    assert!(matches!(refused, RuntimeError::KvMemory { tokens: 200, held: 0, .. }), "{refused}");
    assert!(refused.to_string().contains("--kv-memory"), "{refused}");
    // Each of the three fits, no two do: they run one after the other.
    let (release, caller) = hold(&engine);
    let streams = [1, 2, 3].map(|i| engine.submit(request(&[i; 60], 8)).unwrap());
    drop(release);
    caller.join().unwrap();
    for stream in streams {
        assert_eq!(finish(stream).predicted_n, 8);
    }
    assert_eq!(engine.metrics().kv_reserved, 0, "nobody keeps the caches of these answers");
    // What a caller keeps counts, and nobody can wait for it.
    let keep = Request { keep_cache: true, ..request(&[1; 60], 8) };
    let kept = finish(engine.submit(keep).unwrap());
    assert_eq!(engine.metrics().kv_reserved, bytes(&engine, 68));
    let failed = engine.submit(request(&[2; 60], 8)).unwrap().last();
    assert!(
        matches!(failed, Some(TokenEvent::Failed(RuntimeError::KvMemory { held: 1.., .. }))),
        "{failed:?}"
    );
    let again = finish(engine.submit(Request { reuse: kept.cache, ..request(&[1; 61], 7) }).unwrap());
    assert_eq!((again.predicted_n, again.reused_n), (7, 60));
}

#[test]
fn a_request_cancelled_while_it_waits_never_runs() {
    let engine = tiny(Batching::default());
    let (release, caller) = hold(&engine);
    let stream = engine.submit(request(&[1, 2], 3)).unwrap();
    stream.cancel();
    drop(release);
    caller.join().unwrap();
    let finish = finish(stream);
    assert_eq!((finish.reason, finish.predicted_n), (FinishReason::Cancelled, 0));
    assert!(finish.cache.is_none());
    let metrics = engine.metrics();
    assert_eq!((metrics.waiting, metrics.steps, metrics.kv_reserved), (0, 0, 0));
}

#[test]
fn memory_of_a_cancelled_answer_is_free_within_a_step() {
    let engine = tiny(Batching::default());
    let mut stream = engine.submit(request(&[1, 2, 3], 400)).unwrap();
    assert!(matches!(stream.next(), Some(TokenEvent::Token { .. })));
    let (release, caller) = hold(&engine);
    stream.cancel();
    let steps = engine.metrics().steps;
    assert!(engine.metrics().kv_reserved > 0);
    drop(release);
    caller.join().unwrap();
    drop(finish(stream));
    let metrics = engine.metrics();
    assert_eq!((metrics.running, metrics.kv_reserved, metrics.kv_bytes), (0, 0, 0));
    assert!(metrics.steps <= steps + 1, "{} {steps}", metrics.steps);
}

#[test]
fn engines_that_share_weights_answer_alike_and_do_not_copy_them() {
    let first = tiny(Batching::default());
    let one_thread = EngineConfig { pin: false, ..EngineConfig::detect(DType::Bf16, Some(1)).unwrap() };
    let second = first.share(one_thread).unwrap();
    assert!(Arc::ptr_eq(&first.inner.model, &second.inner.model));
    assert_eq!((first.info().threads, second.info().threads), (2, 1));
    let ids = |engine: &EngineHandle| -> Vec<u32> {
        let token = |e| if let TokenEvent::Token { id, .. } = e { Some(id) } else { None };
        engine.submit(request(&[3, 1, 4, 1, 5], 20)).unwrap().filter_map(token).collect()
    };
    let want = ids(&first);
    drop(first);
    assert_eq!(ids(&second), want);
}

#[test]
fn prompts_and_answers_may_have_different_threads() {
    let files = Arc::new(ModelFiles::open(&ModelRef::Random("tiny".to_owned())).unwrap());
    let ids = |prefill_threads, decode_threads| -> Vec<u32> {
        let detected = EngineConfig::detect(DType::Bf16, Some(3)).unwrap();
        let config = EngineConfig { pin: false, prefill_threads, decode_threads, ..detected };
        let engine = EngineHandle::start(&files, config, Box::new(|_, _| {})).unwrap();
        assert_eq!(engine.info().threads, prefill_threads.unwrap_or(3).max(decode_threads.unwrap_or(3)));
        let token = |e| if let TokenEvent::Token { id, .. } = e { Some(id) } else { None };
        engine.submit(request(&[3; 70], 20)).unwrap().filter_map(token).collect()
    };
    let want = ids(None, None);
    for (prefill, decode) in [(Some(2), Some(1)), (Some(1), Some(2)), (Some(1), None)] {
        assert_eq!(ids(prefill, decode), want);
    }
}
