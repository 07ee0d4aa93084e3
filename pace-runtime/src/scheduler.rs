//! [`Scheduler`]: which sequences run in the next forward, and what becomes of its logits.
//!
//! Every step is one ragged forward: each running answer adds its newest token, and prompts share a budget of
//! tokens. Sequences join and leave between steps, in the order of their arrival: the oldest request waits for memory
//! alone, and no later one overtakes it. The oldest prompt has at least half of the budget, so that it is not starved,
//! and what it leaves goes to the ones behind it, so that a short prompt does not wait for the end of a long one.

mod budget;
mod chunk;
mod generation;
mod scoring;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use pace_kernels::{KvDType, MatMut};
use pace_models::{DecoderSpec, Model, RopeScaling, Sequence, Workspace};
use pace_ops::{KvCache, OpCx};

pub(crate) use self::budget::{KvBudget, KvLease};
use self::chunk::Chunk;
pub(crate) use self::generation::{Events, Generation, Run};
pub(crate) use self::scoring::{ReadLogits, Scoring};
use crate::RuntimeError;
use crate::kv_cache::{KvConfig, KvShape};
use crate::metrics::Counters;
use crate::platform::{MemoryLimit, numa};
use crate::request::SequenceCache;

/// Rows of logits computed at a time: bounds the memory of `[rows, vocab]`.
const LOGIT_ROWS: usize = 16;

/// How the requests of one engine share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// Prompt tokens that one forward takes at most, over all sequences. It bounds the memory of activations and how
    /// long running answers wait for their next token.
    pub prefill_chunk: NonZeroUsize,
    /// Sequences that run at the same time at most.
    pub max_running: NonZeroUsize,
    /// Requests that wait at most; more are refused.
    pub max_waiting: usize,
    /// Bytes that the KV caches of all sequences, in all instances, may come to hold; none: what is available once the
    /// model is loaded.
    pub kv_memory: Option<u64>,
}

impl Default for Batching {
    /// 512 prompt tokens a forward, 64 sequences, 1024 requests that wait.
    fn default() -> Self {
        let number = |n| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
        Self { prefill_chunk: number(512), max_running: number(64), max_waiting: 1024, kv_memory: None }
    }
}

impl Batching {
    /// Bytes that activations and logits of the largest forward take, about: its rows are a chunk and one token of each
    /// other sequence, and a row is what a layer has of it at a time, in f32.
    pub(crate) fn forward_bytes(&self, spec: &DecoderSpec) -> u64 {
        let rows = self.prefill_chunk.get().min(spec.max_positions).saturating_add(self.max_running.get());
        let heads = (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim;
        let row = 4 * spec.hidden + 2 * heads + 3 * spec.ffn;
        let elements = rows.saturating_mul(row).saturating_add(LOGIT_ROWS * spec.vocab_size);
        elements.saturating_mul(size_of::<f32>()) as u64
    }

    /// How many of `requests` each of `engines` should have at a time: an even share, as far as an engine runs them at
    /// the same time. Fewer would leave the memory's bandwidth to few sequences, more would let the first engine take
    /// what the others then lack.
    pub fn places(&self, requests: usize, engines: usize) -> usize {
        let most = self.max_running.get().min(self.max_waiting).max(1);
        requests.div_ceil(engines.max(1)).clamp(1, most)
    }
}

/// How caches are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvPlan {
    pub(crate) config: KvConfig,
    pub(crate) dtype: KvDType,
}

impl KvPlan {
    pub(crate) fn shape(&self, spec: &DecoderSpec, max_len: usize) -> KvShape {
        KvShape::new(spec, self.dtype, max_len)
    }

    /// What a sequence of `max_len` tokens may come to need.
    ///
    /// # Errors
    /// It is more than all sequences together may have.
    pub(crate) fn need(
        &self,
        spec: &DecoderSpec,
        max_len: usize,
        budget: &KvBudget,
    ) -> Result<u64, RuntimeError> {
        let need = self.config.peak_bytes(&self.shape(spec, max_len)) as u64;
        if need > budget.limit() {
            return Err(RuntimeError::KvMemory { need, tokens: max_len, held: 0, limit: budget.limit() });
        }
        Ok(need)
    }
}

/// One request on its way through the engine.
pub(crate) struct Task {
    /// Tokens to feed before anything new is made.
    pub(crate) prompt: Vec<u32>,
    /// Room in the cache, in tokens.
    pub(crate) max_len: usize,
    /// Bytes that its cache may come to hold.
    pub(crate) kv_bytes: u64,
    /// Set by the caller.
    pub(crate) cancelled: Arc<AtomicBool>,
    /// What the logits are for.
    pub(crate) goal: Goal,
    /// A cache that may hold the beginning of the prompt.
    pub(crate) reuse: Option<SequenceCache>,
    /// The memory set aside for the cache, once the task runs.
    lease: Option<KvLease>,
    /// Tokens of the prompt that the cache holds, or will after the current step.
    fed: usize,
    reused: usize,
    started: Option<Instant>,
    prefill_steps: usize,
}

/// What a task wants of the logits.
pub(crate) enum Goal {
    /// New tokens.
    Generate(Box<Generation>),
    /// The log-probabilities of the prompt.
    Score(Scoring),
}

impl Task {
    pub(crate) fn new(prompt: Vec<u32>, max_len: usize, cancelled: Arc<AtomicBool>, goal: Goal) -> Self {
        Self {
            prompt,
            max_len,
            kv_bytes: 0,
            cancelled,
            goal,
            reuse: None,
            lease: None,
            fed: 0,
            reused: 0,
            started: None,
            prefill_steps: 0,
        }
    }

    /// Tells the caller that the request failed.
    pub(crate) fn fail(self, error: RuntimeError) {
        let Self { goal, lease, reuse, .. } = self;
        // The memory is free before the caller hears of the end.
        drop((lease, reuse));
        match goal {
            Goal::Generate(g) => g.fail(error),
            Goal::Score(s) => s.fail(error),
        }
    }

    fn prompt_left(&self) -> usize {
        self.prompt.len() - self.fed
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Feeds the next `n` tokens of the prompt.
    fn feed(&mut self, n: usize, seq: &mut Sequence) {
        seq.input.extend_from_slice(&self.prompt[self.fed..self.fed + n]);
        self.fed += n;
        self.prefill_steps += 1;
        seq.outputs = self.goal.outputs(self.fed, self.prompt_left() == 0);
    }

    /// Tells the caller that the request is over; `kv` is its cache if it ever ran.
    fn finish(self, kv: Option<Box<dyn KvCache>>, owner: &Arc<()>) {
        let Self { prompt, max_len, goal, lease, reused, started, prefill_steps, .. } = self;
        match goal {
            Goal::Generate(g) => {
                let cache = kv.map(|kv| SequenceCache {
                    tokens: Vec::new(),
                    kv,
                    owner: Arc::clone(owner),
                    lease,
                    max_len,
                });
                g.finish(Run { prompt, reused, started, prefill_steps }, cache);
            }
            Goal::Score(s) => {
                drop((kv, lease));
                s.finish();
            }
        }
    }
}

/// The running and waiting requests of one engine.
pub(crate) struct Scheduler {
    batching: Batching,
    kv: KvPlan,
    counters: Arc<Counters>,
    waiting: VecDeque<Task>,
    /// `running[i]` drives `batch[i]`.
    running: Vec<Task>,
    batch: Vec<Sequence>,
    ws: Workspace,
    logits: Vec<f32>,
    /// For each output row of the current forward: its sequence and its position there.
    owners: Vec<(usize, usize)>,
    finished: Vec<bool>,
    /// Marks this engine's caches.
    owner: Arc<()>,
    /// The NUMA nodes on which the caches should lie, and the caches' layers and heads; none once that was looked up, and
    /// where it does not matter.
    verify: Option<(Vec<usize>, KvShape)>,
}

impl Scheduler {
    /// For `model`; `nodes` are the NUMA nodes on which its caches should lie, if any.
    pub(crate) fn new(
        model: &dyn Model,
        batching: Batching,
        kv: KvPlan,
        counters: Arc<Counters>,
        nodes: Option<Vec<usize>>,
    ) -> Self {
        let sequences = batching.max_running.get();
        Self {
            batching,
            kv,
            counters,
            waiting: VecDeque::new(),
            running: Vec::with_capacity(sequences),
            batch: Vec::with_capacity(sequences),
            ws: Workspace::new(model.spec(), model.activations()),
            logits: vec![0.0; LOGIT_ROWS * model.spec().vocab_size],
            owners: Vec::with_capacity(sequences),
            finished: Vec::with_capacity(sequences),
            owner: Arc::new(()),
            verify: nodes.map(|nodes| (nodes, kv.shape(model.spec(), 0))),
        }
    }

    /// Takes a task that [`Counters::waiting`] counts already.
    pub(crate) fn submit(&mut self, task: Task) {
        self.waiting.push_back(task);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Runs one forward over everything that can run: with `prefill` if it holds tokens of a prompt, else with
    /// `decode`. False if nothing can run before somebody reads an answer.
    pub(crate) fn step(&mut self, model: &dyn Model, prefill: &OpCx<'_>, decode: &OpCx<'_>) -> bool {
        self.retire_cancelled();
        self.admit(model.spec());
        let prompt_tokens = self.fill_inputs();
        let new_tokens = self.batch.iter().any(|s| !s.input.is_empty());
        if new_tokens {
            let cx = if prompt_tokens > 0 { prefill } else { decode };
            self.list_owners();
            model.forward(cx, &mut self.ws, &mut self.batch);
            self.read_logits(model, cx);
            self.retire_finished();
            self.counters.steps.fetch_add(1, Ordering::Relaxed);
            self.counters.prompt_tokens.fetch_add(prompt_tokens as u64, Ordering::Relaxed);
        }
        self.count_running();
        new_tokens
    }

    /// Fails everything: a forward panicked, and its caches hold who knows what.
    pub(crate) fn fail_running(&mut self, what: &str) {
        self.batch.clear();
        for task in self.running.drain(..) {
            task.fail(RuntimeError::Internal(what.to_owned()));
        }
        self.count_running();
    }

    fn count_running(&self) {
        let bytes: usize = self.batch.iter().map(|s| s.kv.usage().bytes).sum();
        self.counters.running.store(self.running.len(), Ordering::Relaxed);
        self.counters.kv_bytes.store(bytes as u64, Ordering::Relaxed);
    }

    fn retire_cancelled(&mut self) {
        for i in (0..self.running.len()).rev() {
            if self.running[i].is_cancelled() {
                self.retire(i);
            }
        }
        while let Some(i) = self.waiting.iter().position(Task::is_cancelled) {
            if let Some(task) = self.leave_queue(i) {
                task.finish(None, &self.owner);
            }
        }
    }

    /// Lets requests in, the oldest first, while there are places and memory.
    fn admit(&mut self, spec: &DecoderSpec) {
        while self.running.len() < self.batching.max_running.get() {
            let Some(mut task) = self.waiting.pop_front() else { return };
            let admitted = self.sequence_for(&mut task, spec);
            if admitted.as_ref().is_err_and(RuntimeError::may_pass) && !self.running.is_empty() {
                // It counts as waiting all the time, whoever looks.
                self.waiting.push_front(task);
                return;
            }
            self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
            match admitted {
                Ok(sequence) => {
                    self.running.push(task);
                    self.batch.push(sequence);
                }
                Err(error) => task.fail(error),
            }
        }
    }

    fn sequence_for(&self, task: &mut Task, spec: &DecoderSpec) -> Result<Sequence, RuntimeError> {
        self.resume(task, spec).map_or_else(|| self.new_sequence(task, spec), Ok)
    }

    fn leave_queue(&mut self, index: usize) -> Option<Task> {
        let task = self.waiting.remove(index)?;
        self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(task)
    }

    /// The sequence of the task's earlier cache, cut back to what it has in common with the prompt; none if there
    /// is no such cache, or it cannot hold the whole task.
    fn resume(&self, task: &mut Task, spec: &DecoderSpec) -> Option<Sequence> {
        let SequenceCache { tokens, mut kv, owner, lease, max_len } = task.reuse.take()?;
        if !Arc::ptr_eq(&owner, &self.owner) || max_len < task.max_len {
            return None;
        }
        let common = tokens.iter().zip(&task.prompt).take_while(|(a, b)| a == b).count();
        // One token is fed at least: its logits are the answer's first.
        let common = common.min(task.prompt.len() - 1);
        if common == 0 || !rope_allows_reuse(spec, tokens.len().max(task.prompt.len())) {
            return None;
        }
        kv.set_len(common);
        kv.reserve(task.prompt.len()).ok()?;
        (task.fed, task.reused, task.lease, task.max_len) = (common, common, lease, max_len);
        Some(sequence(task, kv))
    }

    /// A sequence with memory set aside for the whole task.
    fn new_sequence(&self, task: &mut Task, spec: &DecoderSpec) -> Result<Sequence, RuntimeError> {
        let budget = &self.counters.kv;
        let (tokens, need) = (task.max_len, task.kv_bytes);
        let lease = budget.lease(need).ok_or_else(|| RuntimeError::KvMemory {
            need,
            tokens,
            held: budget.held(),
            limit: budget.limit(),
        })?;
        check_memory(need, || format!("KV cache for {tokens} tokens"))?;
        let mut kv = self.kv.config.build(self.kv.shape(spec, tokens))?;
        kv.reserve(task.prompt.len())?;
        task.lease = Some(lease);
        Ok(sequence(task, kv))
    }

    /// Gives every sequence its tokens of this step, and returns how many are of prompts.
    fn fill_inputs(&mut self) -> usize {
        let lacking = self.running.iter().map(Task::prompt_left).sum();
        let mut chunk = Chunk::new(self.batching.prefill_chunk.get(), lacking);
        for (task, seq) in self.running.iter_mut().zip(&mut self.batch) {
            task.started.get_or_insert_with(Instant::now);
            let own = task.prompt_left();
            let take = chunk.take(own);
            if take > 0 {
                task.feed(take, seq);
            } else if own == 0
                && let Goal::Generate(generation) = &task.goal
                && let Some(token) = generation.next_input()
            {
                seq.input.push(token);
            }
        }
        chunk.taken()
    }

    fn list_owners(&mut self) {
        self.owners.clear();
        for (i, seq) in self.batch.iter().enumerate() {
            let end = seq.kv.len() + seq.input.len();
            self.owners.extend((end - seq.output_rows()..end).map(|position| (i, position)));
        }
    }

    /// Hands every output row of the forward to its task.
    fn read_logits(&mut self, model: &dyn Model, cx: &OpCx<'_>) {
        let vocab = model.spec().vocab_size;
        self.finished.clear();
        self.finished.resize(self.running.len(), false);
        for (tile, owners) in self.owners.chunks(LOGIT_ROWS).enumerate() {
            let first = tile * LOGIT_ROWS;
            let rows = self.ws.outputs().rows_range(first..first + owners.len());
            let logits = &mut self.logits[..owners.len() * vocab];
            model.logits(cx, rows, MatMut::new(logits, owners.len(), vocab));
            for (&(i, position), row) in owners.iter().zip(logits.chunks_exact_mut(vocab)) {
                let task = &mut self.running[i];
                self.finished[i] |= match &mut task.goal {
                    Goal::Generate(g) => {
                        self.counters.new_tokens.fetch_add(1, Ordering::Relaxed);
                        g.take_logits(row)
                    }
                    Goal::Score(s) => s.take_logits(cx.kernels, &task.prompt, position, row),
                };
            }
        }
        for (i, task) in self.running.iter().enumerate() {
            self.finished[i] |= task.prompt_left() == 0 && !task.goal.wants_more();
        }
    }

    fn retire_finished(&mut self) {
        for i in (0..self.running.len()).rev() {
            if self.finished[i] {
                self.retire(i);
                continue;
            }
            let kv = &mut self.batch[i].kv;
            let next = kv.len() + 1;
            if let Err(error) = kv.reserve(next) {
                self.batch.remove(i);
                self.running.remove(i).fail(error.into());
            }
        }
    }

    /// Ends task `i` and frees its cache.
    fn retire(&mut self, i: usize) {
        let (sequence, task) = (self.batch.remove(i), self.running.remove(i));
        if let Some((nodes, shape)) = self.verify.take_if(|_| !sequence.kv.is_empty()) {
            let lies = addresses(sequence.kv.as_ref(), shape.n_layers, shape.n_kv_heads);
            numa::verify("the KV cache", &lies, &nodes);
        }
        // Before the caller hears of the end: whoever asks then must not find it running.
        self.count_running();
        task.finish(Some(sequence.kv), &self.owner);
    }
}

fn sequence(task: &Task, kv: Box<dyn KvCache>) -> Sequence {
    Sequence { kv, input: Vec::new(), rope_len: task.prompt.len(), outputs: 1 }
}

/// Where the keys and values of a sequence lie.
pub(crate) fn addresses(cache: &dyn KvCache, n_layers: usize, n_kv_heads: usize) -> Vec<Range<usize>> {
    let mut all = Vec::new();
    for (layer, head) in (0..n_layers).flat_map(|layer| (0..n_kv_heads).map(move |head| (layer, head))) {
        cache.for_each_run(layer, head, cache.len(), &mut |run| all.push(run.addresses()));
    }
    all
}

/// Whether keys rotated for one length are right for another, up to `longest`: `dynamic` RoPE changes its
/// frequencies with the length once that exceeds what the model was trained on.
fn rope_allows_reuse(spec: &DecoderSpec, longest: usize) -> bool {
    match spec.rope.scaling {
        RopeScaling::Dynamic { original_max, .. } => longest <= original_max,
        _ => true,
    }
}

impl Goal {
    /// How many of the last tokens need logits of a chunk that ends before token `end` of the prompt.
    fn outputs(&self, end: usize, last_chunk: bool) -> usize {
        match self {
            Self::Score(s) => s.outputs(end),
            Self::Generate(g) => usize::from(last_chunk && g.wants_more()),
        }
    }

    fn wants_more(&self) -> bool {
        match self {
            Self::Generate(g) => g.wants_more(),
            Self::Score(_) => false,
        }
    }
}

/// Checks that this process may still take `need` bytes; `terms` says what for.
///
/// # Errors
/// They are more than are available.
pub fn check_memory(need: u64, terms: impl FnOnce() -> String) -> Result<(), RuntimeError> {
    match MemoryLimit::detect() {
        Some(limit) if need > limit.available => Err(RuntimeError::OutOfMemory {
            need,
            terms: terms(),
            available: limit.available,
            source_of_limit: limit.source,
        }),
        _ => Ok(()),
    }
}
