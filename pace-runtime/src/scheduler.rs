//! [`Scheduler`]: which sequences run in the next forward, and what becomes of its logits.
//!
//! Every step is one ragged forward: each running answer adds its newest token, and prompts share what is left of
//! the token budget in the order of their arrival. Sequences join and leave between steps.

mod generation;
mod scoring;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use pace_kernels::{DType, KvLayout, MatMut};
use pace_models::{DecoderSpec, Model, RopeScaling, Sequence, Workspace};
use pace_ops::{KvCache, OpCx};

pub(crate) use self::generation::{Generation, Run};
pub(crate) use self::scoring::Scoring;
use crate::RuntimeError;
use crate::kv_cache::{KvCacheKind, KvShape};
use crate::platform::MemoryLimit;
use crate::request::SequenceCache;

/// Prompt tokens per forward at most: bounds the memory of activations.
const PROMPT_TOKENS_PER_STEP: usize = 512;
/// Sequences that run at the same time at most.
const MAX_RUNNING: usize = 64;
/// Rows of logits computed at a time: bounds the memory of `[rows, vocab]`.
const LOGIT_ROWS: usize = 16;

/// One request on its way through the engine.
pub(crate) struct Task {
    /// Tokens to feed before anything new is made.
    pub(crate) prompt: Vec<u32>,
    /// Room in the cache, in tokens.
    pub(crate) max_len: usize,
    /// Set by the caller.
    pub(crate) cancelled: Arc<AtomicBool>,
    /// What the logits are for.
    pub(crate) goal: Goal,
    /// A cache that may hold the beginning of the prompt.
    pub(crate) reuse: Option<SequenceCache>,
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
            cancelled,
            goal,
            reuse: None,
            fed: 0,
            reused: 0,
            started: None,
            prefill_steps: 0,
        }
    }

    /// Tells the caller that the request failed.
    pub(crate) fn fail(self, error: RuntimeError) {
        match self.goal {
            Goal::Generate(g) => g.fail(error),
            Goal::Score(s) => s.fail(error),
        }
    }

    fn prompt_left(&self) -> usize {
        self.prompt.len() - self.fed
    }
}

/// The running and waiting requests of one engine.
pub(crate) struct Scheduler {
    kv_cache: KvCacheKind,
    kv_dtype: DType,
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
}

impl Scheduler {
    pub(crate) fn new(model: &dyn Model, kv_cache: KvCacheKind, kv_dtype: DType) -> Self {
        Self {
            kv_cache,
            kv_dtype,
            waiting: VecDeque::new(),
            running: Vec::new(),
            batch: Vec::new(),
            ws: Workspace::new(model.spec(), model.activations()),
            logits: vec![0.0; LOGIT_ROWS * model.spec().vocab_size],
            owners: Vec::new(),
            finished: Vec::new(),
            owner: Arc::new(()),
        }
    }

    pub(crate) fn submit(&mut self, task: Task) {
        self.waiting.push_back(task);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Runs one forward over everything that can run.
    pub(crate) fn step(&mut self, model: &dyn Model, cx: &OpCx<'_>) {
        self.admit(model.spec());
        self.retire_cancelled();
        self.fill_inputs();
        if self.batch.iter().all(|s| s.input.is_empty()) {
            return;
        }
        self.list_owners();
        model.forward(cx, &mut self.ws, &mut self.batch);
        self.read_logits(model, cx);
        self.retire_finished();
    }

    /// Fails everything: a forward panicked, and its caches hold who knows what.
    pub(crate) fn fail_running(&mut self, what: &str) {
        self.batch.clear();
        for task in self.running.drain(..) {
            task.fail(RuntimeError::Internal(what.to_owned()));
        }
    }

    fn retire_cancelled(&mut self) {
        for i in (0..self.running.len()).rev() {
            if self.running[i].cancelled.load(Ordering::Relaxed) {
                self.retire(i);
            }
        }
    }

    fn admit(&mut self, spec: &DecoderSpec) {
        while self.running.len() < MAX_RUNNING {
            let Some(mut task) = self.waiting.pop_front() else { return };
            let sequence = match self.resume(&mut task, spec) {
                Some(sequence) => Ok(sequence),
                None => self.new_sequence(&task, spec),
            };
            match sequence {
                Ok(sequence) => {
                    self.running.push(task);
                    self.batch.push(sequence);
                }
                Err(error) => task.fail(error),
            }
        }
    }

    /// The sequence of the task's earlier cache, cut back to what it has in common with the prompt; none if there
    /// is no such cache, or it cannot hold the whole task.
    fn resume(&self, task: &mut Task, spec: &DecoderSpec) -> Option<Sequence> {
        let SequenceCache { tokens, mut kv, owner } = task.reuse.take()?;
        if !Arc::ptr_eq(&owner, &self.owner) || kv.reserve(task.max_len).is_err() {
            return None;
        }
        let common = tokens.iter().zip(&task.prompt).take_while(|(a, b)| a == b).count();
        // One token is fed at least: its logits are the answer's first.
        let common = common.min(task.prompt.len() - 1);
        if common == 0 || !rope_allows_reuse(spec, tokens.len().max(task.prompt.len())) {
            return None;
        }
        kv.set_len(common);
        task.fed = common;
        task.reused = common;
        Some(sequence(task, kv))
    }

    /// A sequence with room for the whole task.
    fn new_sequence(&self, task: &Task, spec: &DecoderSpec) -> Result<Sequence, RuntimeError> {
        let need = (spec.kv_bytes_per_token(self.kv_dtype) * task.max_len) as u64;
        check_memory(need, || format!("KV cache for {} tokens", task.max_len))?;
        let shape = KvShape {
            n_layers: spec.n_layers,
            n_kv_heads: spec.n_kv_heads,
            layout: KvLayout::new(self.kv_dtype, spec.head_dim),
            max_len: task.max_len,
        };
        let mut kv = self.kv_cache.build(shape)?;
        kv.reserve(task.prompt.len())?;
        Ok(sequence(task, kv))
    }

    /// Gives every sequence its tokens of this step.
    fn fill_inputs(&mut self) {
        let mut budget = PROMPT_TOKENS_PER_STEP;
        for (task, seq) in self.running.iter_mut().zip(&mut self.batch) {
            task.started.get_or_insert_with(Instant::now);
            let take = task.prompt_left().min(budget);
            budget -= take;
            if take > 0 {
                seq.input.extend_from_slice(&task.prompt[task.fed..task.fed + take]);
                task.fed += take;
                task.prefill_steps += 1;
                seq.outputs = task.goal.outputs(task.fed, task.prompt_left() == 0);
            } else if task.prompt_left() == 0
                && let Goal::Generate(generation) = &task.goal
                && let Some(token) = generation.last_token()
            {
                seq.input.push(token);
            }
        }
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
                    Goal::Generate(g) => g.take_logits(row),
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
        let sequence = self.batch.remove(i);
        let Task { prompt, goal, reused, started, prefill_steps, .. } = self.running.remove(i);
        match goal {
            Goal::Generate(g) => {
                g.finish(Run { prompt, reused, started, prefill_steps }, sequence.kv, &self.owner);
            }
            Goal::Score(s) => s.finish(),
        }
    }
}

fn sequence(task: &Task, kv: Box<dyn KvCache>) -> Sequence {
    Sequence { kv, input: Vec::new(), rope_len: task.prompt.len(), outputs: 1 }
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

/// Errors when `need` bytes are more than this process may still take.
pub(crate) fn check_memory(need: u64, terms: impl FnOnce() -> String) -> Result<(), RuntimeError> {
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
