//! Running a workload: [`measure`].

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use pace_runtime::{
    Answers, EngineHandle, Finish, Limits, ProfileReport, Request, RuntimeError, SequenceCache, Trace,
};

use super::engines::Engines;
use super::workload::Workload;
use crate::exit::Usage;

/// What the counted runs of a test gave.
pub(super) struct Measured {
    /// Tokens per second of each run, of all sequences of all instances together.
    pub(super) samples: Vec<f64>,
    /// Seconds until every sequence had its first token, median.
    pub(super) ttft: f64,
    /// What the hardware gave before and after the runs, whichever was more: it changes where a machine is shared.
    pub(super) limits: Limits,
    /// The part of a KV cache, as full as it becomes, that lies in huge pages, if the system tells.
    pub(super) kv_huge_share: Option<f64>,
    /// Where the time of the counted runs went, in the first instance.
    pub(super) profile: Option<ProfileReport>,
    /// The calls of the last run, in the first instance.
    pub(super) trace: Option<Trace>,
}

/// Runs `workload` `runs` times after one run that is not counted; `tick` hears of each.
///
/// # Errors
/// A request failed, or the model cannot start from a filled cache.
pub(super) fn measure(
    engines: &Engines,
    workload: &Workload,
    runs: usize,
    tick: impl Fn(),
) -> Result<Measured> {
    let (instances, first) = (&engines.instances, &engines.instances[0]);
    let mut caches = at_once(vec![(); instances.len()], |i, ()| fill(&instances[i], workload))?;
    let (mut samples, mut ttft) = (Vec::with_capacity(runs), Vec::with_capacity(runs));
    let tokens = (instances.len() * workload.tokens()) as f64;
    let mut kv_huge_share = None;
    let before = engines.limits()?;
    for run in 0..=runs {
        match run {
            1 => first.reset_profile()?,
            _ if run == runs => first.reset_trace()?,
            _ => {}
        }
        let start = Barrier::new(instances.len());
        let done = at_once(caches, |i, caches| once(&instances[i], workload, run as u64, caches, &start))?;
        tick();
        let longest =
            |time: fn(&Timing) -> Duration| done.iter().map(|(t, _)| time(t)).max().unwrap_or_default();
        if run > 0 {
            samples.push(tokens / longest(|t| t.whole).as_secs_f64());
            ttft.push(longest(|t| t.first_token).as_secs_f64());
        }
        caches = done.into_iter().map(|(_, caches)| caches).collect();
        if run == 0 {
            kv_huge_share = first.kv_huge_share(&caches[0]);
            // It was kept to be looked at.
            caches.iter_mut().filter(|_| workload.depth == 0).for_each(Vec::clear);
        }
    }
    ttft.sort_by(f64::total_cmp);
    let (profile, trace) = (first.profile()?, first.trace()?);
    let limits = before.max(engines.limits()?);
    Ok(Measured { samples, ttft: ttft[ttft.len() / 2], limits, kv_huge_share, profile, trace })
}

/// How long one engine took.
struct Timing {
    whole: Duration,
    first_token: Duration,
}

/// The caches of the workload's sequences with the tokens that they hold before a run; none if those are none.
fn fill(engine: &EngineHandle, workload: &Workload) -> Result<Vec<SequenceCache>> {
    if workload.depth == 0 {
        return Ok(Vec::new());
    }
    let vocab = engine.info().spec.vocab_size;
    let request = || Request {
        prompt: ids(vocab, 0..workload.depth, 0).collect(),
        ctx_size: Some(workload.room()),
        keep_cache: true,
        ..Request::default()
    };
    let finished = finish_all(engine, (0..workload.batch).map(|_| request()))?;
    Ok(finished.into_iter().filter_map(|finish| finish.cache).collect())
}

/// One run on one engine, together with the others that wait at `start`. Gives the caches back.
fn once(
    engine: &EngineHandle,
    workload: &Workload,
    run: u64,
    caches: Vec<SequenceCache>,
    start: &Barrier,
) -> Result<(Timing, Vec<SequenceCache>)> {
    let vocab = engine.info().spec.vocab_size;
    let mut caches = caches.into_iter();
    let mut requests: Vec<Request> =
        (0..workload.batch).map(|_| request(workload, vocab, run, caches.next())).collect();
    // One is looked at after the first run. The last one: if not all run at a time, nobody waits for its memory.
    if let Some(last) = requests.last_mut().filter(|_| run == 0) {
        last.keep_cache = true;
    }
    start.wait();
    let began = Instant::now();
    let finished = finish_all(engine, requests)?;
    let wall = began.elapsed();
    if let Some(finish) = finished.iter().find(|finish| finish.reused_n != workload.depth) {
        let (reused, depth) = (finish.reused_n, workload.depth);
        return Err(Usage(format!("-d {depth}: this model goes on from {reused} cached tokens only")).into());
    }
    let most = |time: fn(&Finish) -> Duration| finished.iter().map(time).max().unwrap_or_default();
    // One sequence has exact times. Several prompts share forwards, and some wait for others; several answers run side
    // by side.
    let whole = if workload.batch == 1 || workload.n_prompt == 0 {
        most(|finish| finish.prompt_time + finish.predicted_time)
    } else {
        wall
    };
    let timing = Timing { whole, first_token: most(|finish| finish.prompt_time) };
    Ok((timing, finished.into_iter().filter_map(|finish| finish.cache).collect()))
}

/// A sequence of the workload. Each new token is a forward: without a prompt, one token stands for it, and the forward
/// that reads it makes the first new one; after a prompt, its own forward makes one more.
fn request(workload: &Workload, vocab: usize, run: u64, cache: Option<SequenceCache>) -> Request {
    let Workload { n_prompt, n_gen, depth, .. } = *workload;
    let new = ids(vocab, depth..depth + n_prompt.max(1), run);
    Request {
        prompt: ids(vocab, 0..depth, 0).chain(new).collect(),
        max_new_tokens: if n_prompt == 0 { n_gen } else { n_gen + 1 },
        ctx_size: Some(workload.room()),
        keep_cache: depth > 0,
        reuse: cache,
        ..Request::default()
    }
}

/// Fixed ids, spread over the vocabulary, others in every `run`; the numbers do not depend on which.
fn ids(vocab: usize, positions: std::ops::Range<usize>, run: u64) -> impl Iterator<Item = u32> {
    let id = move |i: usize| u32::try_from((i as u64 * 7919 + run * 104_729) % vocab as u64).unwrap_or(0);
    positions.map(id)
}

/// Submits `requests` one right after the other and reads all answers to their end.
fn finish_all(
    engine: &EngineHandle,
    requests: impl IntoIterator<Item = Request>,
) -> Result<Vec<Finish>, RuntimeError> {
    let mut answers = Answers::new(0);
    for (i, request) in requests.into_iter().enumerate() {
        answers.push(i, engine.submit(request)?);
    }
    let mut finished = Vec::with_capacity(answers.len());
    while !answers.is_empty() {
        finished.extend(answers.read()?.into_iter().map(|completion| completion.finish));
    }
    Ok(finished)
}

/// Calls `f` with each index and input, each on a thread of its own if there are several.
fn at_once<I: Send, O: Send>(inputs: Vec<I>, f: impl Fn(usize, I) -> Result<O> + Sync) -> Result<Vec<O>> {
    if inputs.len() == 1 {
        return inputs.into_iter().map(|input| f(0, input)).collect();
    }
    let f = &f;
    thread::scope(|scope| {
        let spawn = |(i, input)| scope.spawn(move || f(i, input));
        let threads: Vec<_> = inputs.into_iter().enumerate().map(spawn).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<O>>| {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a benchmark's thread panicked")))
        };
        threads.into_iter().map(join).collect()
    })
}
