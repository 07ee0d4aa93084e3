//! The engine as its callers see it: batches, cancelling, stopping, bad requests.

// Helpers unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::mpsc::channel;

use pace_kernels::DType;
use pace_ops::{LayerKind, MClass};
use pace_runtime::kv_cache::{BmcConfig, KvCacheKind, KvConfig};
use pace_runtime::sampler::SamplingParams;
use pace_runtime::{
    Batching, EngineConfig, EngineHandle, ErrorKind, FinishReason, ModelRef, Request, RuntimeError,
    ScoreRequest, TokenEvent,
};

use common::{config, fixtures, generate, model, score, start};

fn tiny() -> EngineHandle {
    start(&ModelRef::Random("tiny".to_owned()), config(DType::Bf16, 2)).unwrap()
}

fn request(prompt: &[u32], n: usize) -> Request {
    Request { prompt: prompt.to_vec(), max_new_tokens: n, ..Request::default() }
}

#[test]
fn requests_that_run_together_give_what_each_gives_alone() {
    let engine = tiny();
    let prompts: Vec<Vec<u32>> =
        (1..6u32).map(|i| (0..i * 5).map(|t| (t * 37 + i) % 259).collect()).collect();
    let alone: Vec<_> = prompts.iter().map(|p| generate(&engine, request(p, 12)).unwrap().0).collect();
    let streams: Vec<_> = prompts.iter().map(|p| engine.submit(request(p, 12)).unwrap()).collect();
    for (stream, want) in streams.into_iter().zip(&alone) {
        let ids: Vec<u32> = stream
            .filter_map(|e| if let TokenEvent::Token { id, .. } = e { Some(id) } else { None })
            .collect();
        assert_eq!(&ids, want);
    }
}

#[test]
fn a_prompt_longer_than_one_step_is_fed_in_chunks() {
    let engine = start(&ModelRef::Random("smollm2-135m".to_owned()), config(DType::Bf16, 2)).unwrap();
    let prompt: Vec<u32> = (0..700u32).map(|t| t * 61 % 49152).collect();
    let (ids, _, finish) = generate(&engine, request(&prompt, 2)).unwrap();
    assert_eq!((ids.len(), finish.prefill_steps, finish.prompt_n), (2, 2, 700));
    assert_eq!(finish.kv.kind, "bmc");
    assert!(finish.kv.capacity_rows >= 701 && finish.kv.bytes > 0);
}

#[test]
fn a_fixture_scores_the_same_bits_in_every_cache() {
    let (dir, expected) = fixtures().into_iter().find(|(_, e)| e.name == "gqa-tied").unwrap();
    for dtype in [DType::F32, DType::Bf16] {
        let scores = KvCacheKind::ALL.map(|kind| {
            let config = EngineConfig { kv_cache: kind.into(), ..config(dtype, 2) };
            let engine = start(&model(&dir, &expected), config).unwrap();
            expected.cases.iter().map(|case| score(&engine, &case.prompt)).collect::<Vec<_>>()
        });
        assert!(scores.iter().all(|s| *s == scores[0]), "{dtype}");
    }
}

#[test]
fn a_cache_that_shall_have_more_parts_than_the_context_is_refused_before_anything_runs() {
    let bmc = BmcConfig { splits: Some(512), ..BmcConfig::default() };
    let kv_cache = KvConfig { kind: KvCacheKind::Bmc, bmc, ..KvConfig::default() };
    let tiny = ModelRef::Random("tiny".to_owned());
    let engine = start(&tiny, EngineConfig { kv_cache, ..config(DType::Bf16, 1) }).unwrap();
    assert!(engine.submit(request(&[1, 2, 3], 5)).is_ok(), "a short sequence has fewer parts");
    let shorter = Request { ctx_size: Some(511), ..request(&[1, 2, 3], 5) };
    let error = engine.submit(shorter).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("--bmc-splits"), "{error}");
}

#[test]
fn the_same_seed_gives_the_same_tokens_whatever_else_runs() {
    let engine = tiny();
    let sampled = |seed: u64| Request {
        sampling: SamplingParams {
            do_sample: true,
            temperature: 1.3,
            seed: Some(seed),
            ..SamplingParams::default()
        },
        ..request(&[3, 1, 4, 1, 5], 24)
    };
    let (first, _, finish) = generate(&engine, sampled(7)).unwrap();
    assert_eq!(finish.seed, 7);
    let _other = engine.submit(sampled(8)).unwrap();
    assert_eq!(generate(&engine, sampled(7)).unwrap().0, first);
    assert_ne!(generate(&engine, sampled(9)).unwrap().0, first);
}

#[test]
fn an_end_token_ends_the_answer_and_is_part_of_its_ids() {
    let engine = tiny();
    let (ids, _, finish) = generate(&engine, request(&[1, 2, 3], 10)).unwrap();
    assert_eq!((ids.len(), finish.reason), (10, FinishReason::Length));
    let eos = ids[4];
    let first = ids.iter().position(|&id| id == eos).unwrap();
    let (cut, _, finish) = generate(&engine, Request { eos: vec![eos], ..request(&[1, 2, 3], 10) }).unwrap();
    assert_eq!((&cut[..], finish.reason), (&ids[..=first], FinishReason::Stop));
}

#[test]
fn a_cancelled_answer_ends_and_the_engine_goes_on() {
    let engine = tiny();
    let mut stream = engine.submit(request(&[1, 2, 3], 400)).unwrap();
    assert!(matches!(stream.next(), Some(TokenEvent::Token { .. })));
    stream.cancel();
    let Some(TokenEvent::Finished(finish)) = stream.by_ref().find(|e| !matches!(e, TokenEvent::Token { .. }))
    else {
        panic!("a cancelled stream finishes")
    };
    assert_eq!(finish.reason, FinishReason::Cancelled);
    assert!(finish.predicted_n < 400, "it was not cancelled in time");
    assert!(stream.next().is_none());
    drop(engine.submit(request(&[1], 400)).unwrap());
    assert_eq!(generate(&engine, request(&[1, 2], 3)).unwrap().0.len(), 3);
}

#[test]
fn bad_requests_are_refused_before_anything_is_computed() {
    let engine = tiny();
    let refused = |request: Request| engine.submit(request).err().expect("it is refused");
    assert!(matches!(refused(request(&[], 1)), RuntimeError::EmptyPrompt));
    let unknown = refused(request(&[1, 259], 1)).to_string();
    assert!(unknown.contains("259") && unknown.contains("position 1"), "{unknown}");
    let long = vec![1; 512];
    assert!(matches!(refused(request(&long, 1)), RuntimeError::PromptTooLong { prompt: 512, max: 512, .. }));
    let context = Request { ctx_size: Some(513), ..request(&[1], 1) };
    assert!(matches!(refused(context), RuntimeError::ContextTooLong { asked: 513, max: 512 }));
    let sampling = SamplingParams { top_p: f32::NAN, ..SamplingParams::default() };
    assert!(matches!(refused(Request { sampling, ..request(&[1], 1) }), RuntimeError::Param(_)));
    let stop = Request { stop: vec!["x".to_owned()], ..request(&[1], 1) };
    assert!(matches!(refused(stop), RuntimeError::NoTokenizer { .. }));
    let empty = ScoreRequest { tokens: Vec::new(), top: 1, from: 0 };
    assert!(matches!(engine.score(empty).err(), Some(RuntimeError::EmptyPrompt)));
}

#[test]
fn an_answer_stops_at_the_end_of_the_context() {
    let engine = tiny();
    let (ids, _, finish) = generate(&engine, request(&vec![5; 505], 100)).unwrap();
    assert_eq!((ids.len(), finish.reason), (7, FinishReason::Length));
    let (ids, _, finish) = generate(&engine, request(&vec![5; 512], 0)).unwrap();
    assert_eq!((ids.len(), finish.reason), (0, FinishReason::Length));
}

#[test]
fn a_larger_context_only_makes_room() {
    let kv_cache = KvConfig { kind: KvCacheKind::Static, ..KvConfig::default() };
    let config = EngineConfig { kv_cache, ..config(DType::Bf16, 2) };
    let engine = start(&ModelRef::Random("tiny".to_owned()), config).unwrap();
    let roomy = Request { ctx_size: Some(300), ..request(&[1, 2], 3) };
    let (ids, _, finish) = generate(&engine, roomy).unwrap();
    assert!(finish.kv.capacity_rows >= 300);
    assert_eq!(ids, generate(&engine, request(&[1, 2], 3)).unwrap().0);
}

#[test]
fn a_score_has_the_same_bits_at_any_chunk_and_thread_count_and_in_any_company() {
    let tokens: Vec<u32> = (0..150u32).map(|t| (t * 53 + 11) % 259).collect();
    for dtype in [DType::F32, DType::Bf16] {
        let first = start(&ModelRef::Random("small".to_owned()), config(dtype, 1)).unwrap();
        assert!(first.info().bit_equal);
        let want = score(&first, &tokens);
        let cases = [(1, 2, 0), (7, 3, 0), (64, 1, 3), (100, 2, 5), (150, 3, 1), (149, 2, 2)];
        for (chunk, threads, company) in cases {
            let batching = Batching { prefill_chunk: chunk.try_into().unwrap(), ..Batching::default() };
            let engine = first.share(EngineConfig { batching, ..config(dtype, threads) }).unwrap();
            let other = |i: u32| engine.submit(request(&vec![i; 9 * i as usize + 1], 200)).unwrap();
            let others: Vec<_> = (0..company).map(other).collect();
            assert_eq!(score(&engine, &tokens), want, "{dtype} {chunk} {threads} {company}");
            drop(others);
        }
    }
}

#[test]
fn a_score_agrees_with_generation() {
    let tokens: Vec<u32> = (0..90u32).map(|t| (t * 53 + 11) % 259).collect();
    let engine = tiny();
    let (ids, ..) = generate(&engine, request(&tokens, 1)).unwrap();
    assert_eq!(ids[0], score(&engine, &tokens).next[0].0, "the greedy token is the most likely one");
}

#[test]
fn stop_texts_are_found_and_trimmed() {
    let Some((dir, expected)) = fixtures().into_iter().find(|(dir, _)| dir.join("tokenizer.json").exists())
    else {
        panic!("no fixture has a tokenizer")
    };
    let engine = start(&model(&dir, &expected), config(DType::F32, 1)).unwrap();
    let prompt = expected.cases[1].prompt.clone();
    let (ids, text, _) = generate(&engine, request(&prompt, 24)).unwrap();
    let chars: Vec<char> = text.chars().collect();
    let stop: String = chars[chars.len() / 2..chars.len() / 2 + 2].iter().collect();
    let stopped = Request { stop: vec![stop.clone()], ..request(&prompt, 24) };
    let (cut_ids, cut, finish) = generate(&engine, stopped).unwrap();
    assert_eq!(cut, text[..text.find(&stop).unwrap()]);
    assert_eq!(finish.reason, FinishReason::Stop);
    assert!(cut_ids.len() < ids.len());
}

#[test]
fn a_later_request_goes_on_from_an_earlier_cache() {
    let engine = tiny();
    let first = Request { ctx_size: Some(200), keep_cache: true, ..request(&[9, 8, 7, 6, 5, 4, 3, 2, 1], 6) };
    let (ids, _, finish) = generate(&engine, first).unwrap();
    let cache = finish.cache.unwrap();
    assert_eq!((finish.reused_n, cache.len()), (0, 9 + 5), "the last new token was never fed");
    let mut prompt = vec![9, 8, 7, 6, 5, 4, 3, 2, 1];
    prompt.extend(&ids);
    prompt.extend([44, 55, 66]);
    let alone = generate(&engine, request(&prompt, 8)).unwrap().0;
    let (again, _, finish) =
        generate(&engine, Request { reuse: Some(cache), keep_cache: true, ..request(&prompt, 8) }).unwrap();
    assert_eq!((&again, finish.reused_n, finish.prompt_n), (&alone, 14, prompt.len()));
    // The same prompt again: everything but its last token is there.
    let cache = finish.cache;
    let (again, _, finish) =
        generate(&engine, Request { reuse: cache, keep_cache: true, ..request(&prompt, 8) }).unwrap();
    assert_eq!((&again, finish.reused_n), (&alone, prompt.len() - 1));
    // Another beginning, and another engine's cache: nothing is reused.
    let cache = finish.cache;
    let (_, _, finish) =
        generate(&engine, Request { reuse: cache, keep_cache: true, ..request(&[1, 2, 3], 2) }).unwrap();
    assert_eq!(finish.reused_n, 0);
    let (other, _, finish) =
        generate(&tiny(), Request { reuse: finish.cache, ..request(&prompt, 8) }).unwrap();
    assert_eq!((&other, finish.reused_n), (&alone, 0));
}

#[test]
fn a_score_can_begin_late() {
    let engine = tiny();
    let tokens: Vec<u32> = (0..90u32).map(|t| (t * 53 + 11) % 259).collect();
    let whole = score(&engine, &tokens);
    let late = ScoreRequest { tokens, top: 3, from: 60 };
    let late = engine.score(late).unwrap().wait(|_| {}).unwrap();
    assert_eq!(late.logprobs[..60], [None; 60]);
    assert_eq!(late.logprobs[60..], whole.logprobs[60..]);
    assert_eq!(late.next[..], whole.next[..3]);
}

#[test]
fn a_score_hands_out_its_rows_of_logits() {
    let engine = tiny();
    let tokens: Vec<u32> = (0..90u32).map(|t| (t * 53 + 11) % 259).collect();
    let (kept, rows) = channel();
    let read = move |position: usize, logits: &[f32]| kept.send((position, logits.to_vec())).unwrap();
    let request = ScoreRequest { tokens: tokens.clone(), top: 0, from: 60 };
    let score = engine.score_with(request, read).unwrap().wait(|_| {}).unwrap();
    let rows: Vec<(usize, Vec<f32>)> = rows.try_iter().collect();
    assert!(rows.iter().map(|(position, _)| *position).eq(59..90));
    for (position, row) in &rows[..30] {
        let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        let logprob = f64::from(row[tokens[position + 1] as usize]) - sum.ln();
        let given = score.logprobs[position + 1].unwrap();
        assert!((logprob - given).abs() < 1e-5, "token {}: {logprob}, {given}", position + 1);
    }
}

#[test]
fn an_engine_says_where_its_time_went() {
    let profiling = EngineConfig { profile: true, ..config(DType::Bf16, 2) };
    let engine = start(&ModelRef::Random("tiny".to_owned()), profiling).unwrap();
    generate(&engine, request(&[5; 30], 4)).unwrap();
    let report = engine.profile().unwrap().unwrap();
    let layers = engine.info().spec.n_layers as u64;
    let appends = |m_class: MClass| {
        let all = &report.operators;
        let row = all.iter().find(|r| (r.operator, r.m_class) == ("kv_append", m_class)).unwrap();
        assert_eq!(row.layer, LayerKind::Decoder);
        (row.calls, row.rows)
    };
    assert_eq!(appends(MClass::Many), (layers, 30 * layers), "the prompt");
    assert_eq!(appends(MClass::One), (3 * layers, 3 * layers), "each new token but the last");
    let spans: f64 = report.operators.iter().map(|r| r.seconds).sum();
    assert!(spans > 0.0 && (spans + report.other_seconds - report.seconds).abs() < 1e-9);
    assert!(engine.trace().unwrap().unwrap().len() as u64 >= 4 * layers);

    engine.reset_trace().unwrap();
    assert!(engine.trace().unwrap().unwrap().is_empty());
    assert!(!engine.profile().unwrap().unwrap().operators.is_empty());
    engine.reset_profile().unwrap();
    let report = engine.profile().unwrap().unwrap();
    assert_eq!((report.operators.len(), report.seconds), (0, 0.0));
}

#[test]
fn an_engine_that_does_not_profile_has_none() {
    let engine = tiny();
    generate(&engine, request(&[1, 2, 3], 2)).unwrap();
    engine.reset_profile().unwrap();
    assert!(engine.profile().unwrap().is_none() && engine.trace().unwrap().is_none());
}
