//! [`EngineHandle`]: a loaded model on its own threads, answering requests.

mod worker;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use pace_kernels::{DType, Isa, IsaError, Jit, Kernels, Pool, WeightFormat, huge_share};
use pace_models::{DecoderSpec, LoadOptions, Model, ModelError, ModelFormats, QuantLoss};
use pace_ops::{Chosen, Demotion, OpCx, OpShape, Selection};

use self::worker::Weights;
use crate::kv_cache::KvConfig;
use crate::metrics::{Counters, EngineMetrics};
use crate::platform::cores::CoreRequest;
use crate::platform::numa::NumaMemory;
use crate::platform::topology::Topology;
use crate::platform::{ThreadBudget, affinity, topology};
use crate::request::{Request, ScoreRequest, ScoreStream, SequenceCache, TokenStream};
use crate::scheduler::{
    Batching, Events, Generation, Goal, KvPlan, ReadLogits, Scoring, Task, addresses, check_memory,
};
use crate::tokenizer::Tokenizer;
use crate::{ModelFiles, RuntimeError};

/// How a model is loaded and run.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The CPUs to run on, one thread each.
    pub cpus: Vec<usize>,
    /// How many of `cpus`, the first ones, compute forwards that hold tokens of a prompt; none: all.
    pub prefill_threads: Option<usize>,
    /// How many of `cpus`, the first ones, compute all other forwards; none: all. [`on_cores`](Self::on_cores) sets it where
    /// a CPU quota leaves a part of a CPU to prompts.
    pub decode_threads: Option<usize>,
    /// Whether threads are pinned to their CPU.
    pub pin: bool,
    /// The CPUs that threads must not leave while they are not pinned; empty: wherever the process may run.
    pub within: Vec<usize>,
    /// Where memory goes on a machine with several NUMA nodes.
    pub numa_memory: NumaMemory,
    /// The NUMA nodes for the engine's memory; none: those of its CPUs.
    pub memory_nodes: Vec<usize>,
    /// Who else has caches in the same memory.
    pub sharing: Sharing,
    /// The instruction sets to use.
    pub isa: Isa,
    /// Formats and operators.
    pub load: LoadOptions,
    /// How caches get their memory.
    pub kv_cache: KvConfig,
    /// How requests share the engine.
    pub batching: Batching,
    /// Whether operators are timed, for [`EngineHandle::profile`] and [`EngineHandle::trace`].
    pub profile: bool,
    /// Whether the inputs of all products are summed up, for [`EngineHandle::importance`].
    pub observe_inputs: bool,
}

impl EngineConfig {
    /// Everything in `dtype` (f32 or bf16: weights, activations, keys and values), on `threads` threads of the
    /// process's [`ThreadBudget`], at the tier that [`Isa::from_env`] allows. Threads are pinned when there is one
    /// for each core that the process may use.
    ///
    /// # Errors
    /// `PACE_ISA` asks for what there is not.
    pub fn detect(dtype: DType, threads: Option<usize>) -> Result<Self, RuntimeError> {
        Self::on_cores(dtype, &CoreRequest::threads(threads))
    }

    /// As [`detect`](Self::detect), on the CPUs of a request. CPUs that are named are taken to be this engine's own, so
    /// its threads are pinned there.
    ///
    /// # Errors
    /// As [`detect`](Self::detect); a CPU is named that the process may not use, or a NUMA node that there is not.
    pub fn on_cores(dtype: DType, request: &CoreRequest) -> Result<Self, RuntimeError> {
        let budget = ThreadBudget::for_request(request)?;
        tracing::info!("{} threads: {}", budget.cpus.len(), budget.reason);
        if budget.oversubscribed {
            tracing::warn!(
                "{} threads are more than there are cores for: {}",
                budget.cpus.len(),
                budget.reason
            );
        }
        let (weights, activations) = match dtype {
            DType::F32 => (WeightFormat::F32, DType::F32),
            DType::F16 | DType::Bf16 => (WeightFormat::Bf16, DType::Bf16),
        };
        let smallest_l3 = topology::smallest_l3(Path::new("/"), &budget.cpus);
        Ok(Self {
            pin: budget.pin,
            cpus: budget.cpus,
            within: if budget.named { budget.within } else { Vec::new() },
            prefill_threads: None,
            decode_threads: budget.decode_threads,
            numa_memory: NumaMemory::default(),
            memory_nodes: Vec::new(),
            sharing: Sharing::default(),
            isa: Isa::from_env()?,
            load: LoadOptions {
                l3_bytes: topology::l3_bytes(Path::new("/")),
                smallest_l3,
                ..LoadOptions::new(weights, activations)
            },
            kv_cache: KvConfig::default(),
            batching: Batching::default(),
            profile: false,
            observe_inputs: false,
        })
    }

    /// The kernels of the configured tier.
    ///
    /// # Errors
    /// The CPU lacks it.
    pub fn kernels(&self) -> Result<Kernels, RuntimeError> {
        Ok(Kernels::new(self.isa).ok_or(IsaError::Unsupported(self.isa))?)
    }

    /// The distinct shapes of the operators of a model.
    pub fn operator_shapes(&self, files: &ModelFiles) -> Vec<OpShape> {
        let formats = files.packed_formats(&self.load);
        formats.operator_shapes(files.spec(), self.load.activations, self.load.kv)
    }

    /// What the operators of a model are going to be computed with, unless one fails its self-test at load.
    ///
    /// # Errors
    /// The configuration names a backend that there is not, for a type or on this machine.
    pub fn choose(&self, files: &ModelFiles) -> Result<Selection, RuntimeError> {
        let build = self.load.build_cx(self.kernels()?);
        let mut selection = Selection::new(build, self.load.operators, self.load.plan.clone());
        for shape in self.operator_shapes(files) {
            selection.choose(shape).map_err(ModelError::from)?;
        }
        Ok(selection)
    }

    /// The first `threads` threads, of which the caller becomes the first.
    pub(crate) fn pool(&self, threads: usize) -> Result<Pool, RuntimeError> {
        // None at all is the pool's error.
        let cpus = self.cpus.get(..threads).unwrap_or(&self.cpus);
        // Workers inherit where the thread that makes them may run.
        if !self.pin && !self.within.is_empty() && !affinity::confine(&self.within) {
            tracing::warn!("threads cannot be kept on CPUs {}", topology::format_cpu_list(&self.within));
        }
        let pool = if self.pin { Pool::new(cpus)? } else { Pool::unpinned(cpus.len())? };
        if self.pin && !pool.pin_caller() {
            tracing::warn!("the engine's thread cannot be pinned to CPU {:?}", cpus.first());
        }
        Ok(pool)
    }

    /// Whether its threads stay on its CPUs.
    pub(crate) const fn is_confined(&self) -> bool {
        self.pin || !self.within.is_empty()
    }

    /// The NUMA nodes that the engine's memory belongs to: where its threads may run, unless others are given.
    fn memory_nodes(&self) -> Vec<usize> {
        if !self.memory_nodes.is_empty() {
            return self.memory_nodes.clone();
        }
        let topology = Topology::detect();
        if self.is_confined() {
            return topology.nodes_of(&self.cpus);
        }
        topology.nodes_of(&affinity::process_affinity())
    }

    /// Bytes that the packed weights of a model are going to take of this process's memory.
    fn weights_need(&self, files: &ModelFiles) -> u64 {
        match &self.load.shared {
            Some(memory) if memory.is_filled() => 0,
            // A mapping is the system's memory for files, which it takes back.
            _ if self.load.mmap && files.source().packed().is_some() => 0,
            _ => files.packed_formats(&self.load).bytes(files.spec()) as u64,
        }
    }

    /// How caches are made.
    const fn kv_plan(&self) -> KvPlan {
        KvPlan { config: self.kv_cache, dtype: self.load.kv }
    }
}

/// Engines that share memory for KV caches evenly, the engine itself included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// All of the process's memory, or of the machine's.
    pub all: NonZeroUsize,
    /// The memory of its NUMA nodes.
    pub nodes: NonZeroUsize,
}

impl Default for Sharing {
    /// Nobody else.
    fn default() -> Self {
        Self { all: NonZeroUsize::MIN, nodes: NonZeroUsize::MIN }
    }
}

/// Called while weights are packed with (weights done, weights in all), from any thread.
pub type LoadProgress = Box<dyn Fn(usize, usize) + Send + Sync>;

/// What an engine turned out to be.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// What the user called the model.
    pub model: String,
    /// The model's shape.
    pub spec: DecoderSpec,
    /// The instruction sets in use.
    pub isa: Isa,
    /// Threads.
    pub threads: usize,
    /// Threads that could be pinned to their CPU.
    pub pinned: usize,
    /// Reading and packing the weights.
    pub load_time: Duration,
    /// Bytes of packed weights.
    pub weight_bytes: usize,
    /// In which format each matrix is kept.
    pub formats: ModelFormats,
    /// What weights lost when they became integers, by format.
    pub losses: Vec<QuantLoss>,
    /// The part of the weights' memory that lies in huge pages, from 0 to 1; none where the system does not tell.
    pub huge_share: Option<f64>,
    /// Tells apart how weights may be packed; processes that share weights have the same.
    pub weight_layout: u64,
    /// The part of the weights' memory, from 0 to 1, that lies on other NUMA nodes than those of the threads; none on
    /// a machine of one node, and where the system does not tell.
    pub remote_share: Option<f64>,
    /// What the operators are computed with.
    pub operators: Vec<Chosen>,
    /// Operators that were left to the reference because a backend failed its self-test.
    pub demotions: Vec<Demotion>,
    /// Whether a sequence's bits do not depend on the batch, the chunks and the number of threads.
    pub bit_equal: bool,
}

/// What a handle sends to the engine's thread.
enum Message {
    Task(Box<Task>),
    /// Something to do between two steps.
    Call(Box<dyn FnOnce(&OpCx<'_>) + Send>),
}

/// A running engine. Clones share it; the engine stops when the last one is dropped.
#[derive(Clone)]
pub struct EngineHandle {
    inner: Arc<Inner>,
}

struct Inner {
    /// Taken when the last handle is dropped, which ends the engine's thread.
    messages: Mutex<Option<Sender<Message>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    stopping: Arc<AtomicBool>,
    info: EngineInfo,
    config: EngineConfig,
    counters: Arc<Counters>,
    model: Arc<dyn Model>,
    tokenizer: Option<Arc<Tokenizer>>,
}

/// What a started engine has.
struct Ready {
    info: EngineInfo,
    model: Arc<dyn Model>,
    counters: Arc<Counters>,
}

impl EngineHandle {
    /// Loads `files` on the engine's own threads and starts it. Blocks until the model is ready.
    ///
    /// # Errors
    /// The model cannot be loaded, or does not fit the memory.
    pub fn start(
        files: &Arc<ModelFiles>,
        config: EngineConfig,
        progress: LoadProgress,
    ) -> Result<Self, RuntimeError> {
        let spec = files.spec();
        let (packed, forward) = (config.weights_need(files), config.batching.forward_bytes(spec));
        check_memory(packed.saturating_add(forward), || {
            format!("packed weights {packed}, activations of a forward {forward}")
        })?;
        let weights = Weights::Files(Arc::clone(files), progress);
        Self::run(weights, config, files.tokenizer().cloned())
    }

    /// Starts another engine on the weights of this one: its own threads, queue, caches and scratch memory, and the
    /// same packed weights. Of `config`, what says how weights are loaded and computed is this engine's own. Blocks
    /// until the engine's threads are there.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub fn share(&self, config: EngineConfig) -> Result<Self, RuntimeError> {
        let own = &self.inner.config;
        let config = EngineConfig { isa: own.isa, load: own.load.clone(), ..config };
        let weights = Weights::Shared(Arc::clone(&self.inner.model), Box::new(self.inner.info.clone()));
        Self::run(weights, config, self.inner.tokenizer.clone())
    }

    fn run(
        weights: Weights,
        mut config: EngineConfig,
        tokenizer: Option<Arc<Tokenizer>>,
    ) -> Result<Self, RuntimeError> {
        let shape = config.kv_plan().shape(weights.spec(), weights.spec().max_positions);
        config.kv_cache = config.kv_cache.settled(&shape);
        let (ready_tx, ready_rx) = channel();
        let (messages_tx, messages_rx) = channel();
        let stopping = Arc::new(AtomicBool::new(false));
        let (stop, own_config) = (Arc::clone(&stopping), config.clone());
        let thread = std::thread::Builder::new()
            .name("pace-engine".to_owned())
            .spawn(move || worker::run(weights, &own_config, &ready_tx, &messages_rx, &stop))
            .map_err(|e| RuntimeError::Internal(format!("cannot start a thread: {e}")))?;
        let died = |_| RuntimeError::Internal("the engine's thread died while loading".to_owned());
        let Ready { info, model, counters } = ready_rx.recv().map_err(died)??;
        let messages = Mutex::new(Some(messages_tx));
        let thread = Mutex::new(Some(thread));
        let inner = Inner { messages, thread, stopping, info, config, counters, model, tokenizer };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What the engine turned out to be.
    pub fn info(&self) -> &EngineInfo {
        &self.inner.info
    }

    /// How the engine's caches get their memory.
    pub fn kv_cache(&self) -> KvConfig {
        self.inner.config.kv_cache
    }

    /// The kernels that were generated for the model; none where the CPU or the system does not let any be.
    pub fn jit(&self) -> Option<&Arc<Jit>> {
        self.inner.model.selection().build().jit().ok()
    }

    /// What the engine is doing now.
    pub fn metrics(&self) -> EngineMetrics {
        self.inner.counters.snapshot()
    }

    /// The part of the memory of `caches`, which this engine filled, that lies in huge pages, from 0 to 1; none where the
    /// system does not tell. It reads the system's list of all memory of the process, which takes its time.
    pub fn kv_huge_share(&self, caches: &[SequenceCache]) -> Option<f64> {
        let spec = &self.info().spec;
        let lies = |cache: &SequenceCache| addresses(cache.kv.as_ref(), spec.n_layers, spec.n_kv_heads);
        huge_share(&caches.iter().flat_map(lies).collect::<Vec<_>>())
    }

    /// Checks whether a completion can ever run here.
    ///
    /// # Errors
    /// As [`Self::submit`], but for how busy the engine is.
    pub fn check(&self, request: &Request) -> Result<(), RuntimeError> {
        let Inner { info, config, counters, tokenizer, .. } = &*self.inner;
        request.check(&info.spec)?;
        if !request.stop.is_empty() && tokenizer.is_none() {
            return Err(RuntimeError::NoTokenizer { model: info.model.clone() });
        }
        let room = request.room(&info.spec);
        config.kv_cache.check(request.ctx_size.map_or(info.spec.max_positions, |_| room))?;
        config.kv_plan().need(&info.spec, room, &counters.kv).map(|_| ())
    }

    /// Queues a completion. `max_new_tokens` is cut to what the model's context leaves.
    ///
    /// # Errors
    /// The prompt is empty, too long or holds ids beyond the vocabulary; a parameter is out of range; its KV cache
    /// exceeds the memory of all caches; too many requests wait; the engine has stopped. Nothing has been computed then.
    pub fn submit(&self, mut request: Request) -> Result<TokenStream, RuntimeError> {
        self.check(&request)?;
        let spec = self.spec();
        let max_len = request.room(spec);
        request.max_new_tokens = request.max_new_tokens.min(spec.max_positions - request.prompt.len());
        let tokenizer = self.inner.tokenizer.as_ref();
        let cancelled = Arc::new(AtomicBool::new(false));
        let (events, stream) = Events::new(request.max_new_tokens, Arc::clone(&cancelled));
        let generation = Generation::new(&request, spec.vocab_size, tokenizer, events)?;
        let goal = Goal::Generate(Box::new(generation));
        let mut task = Task::new(request.prompt, max_len, cancelled, goal);
        task.reuse = request.reuse;
        self.enqueue(task)?;
        Ok(stream)
    }

    /// Queues a text to score.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn score(&self, request: ScoreRequest) -> Result<ScoreStream, RuntimeError> {
        self.queue_score(request, None)
    }

    /// As [`score`](Self::score), and `read` gets every row of logits that is computed for it: a position of the text, from
    /// the one before [`ScoreRequest::from`] to the last, and the `[vocab]` logits of the token after it. It is called on
    /// the engine's thread, which waits for it, and is dropped before the stream's end.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn score_with(
        &self,
        request: ScoreRequest,
        read: impl FnMut(usize, &[f32]) + Send + 'static,
    ) -> Result<ScoreStream, RuntimeError> {
        self.queue_score(request, Some(Box::new(read)))
    }

    fn queue_score(
        &self,
        request: ScoreRequest,
        read: Option<ReadLogits>,
    ) -> Result<ScoreStream, RuntimeError> {
        request.check(self.spec())?;
        self.kv_cache().check(self.spec().max_positions)?;
        let (updates_tx, updates) = channel();
        let n = request.tokens.len();
        let scoring = Scoring::new(&request, read, updates_tx);
        let cancelled = Arc::new(AtomicBool::new(false));
        let task = Task::new(request.tokens, n, Arc::clone(&cancelled), Goal::Score(scoring));
        self.enqueue(task)?;
        Ok(ScoreStream { updates, cancelled })
    }

    /// Puts a task into the queue, if it can ever run and there is a place.
    fn enqueue(&self, mut task: Task) -> Result<(), RuntimeError> {
        let Inner { config, counters, .. } = &*self.inner;
        task.kv_bytes = config.kv_plan().need(self.spec(), task.max_len, &counters.kv)?;
        let max = config.batching.max_waiting;
        let one_more = |waiting: usize| (waiting < max).then_some(waiting + 1);
        if counters.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            return Err(RuntimeError::QueueFull { max });
        }
        let sent = self.send(Message::Task(Box::new(task)));
        if sent.is_err() {
            counters.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        sent
    }

    fn spec(&self) -> &DecoderSpec {
        &self.inner.info.spec
    }

    /// Calls `f` on the engine's thread between two steps, and waits for its result.
    ///
    /// # Errors
    /// The engine has stopped.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        f: impl FnOnce(&OpCx<'_>) -> T + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let (result_tx, result) = channel();
        self.send(Message::Call(Box::new(move |cx| {
            // Whoever asked waits below.
            let _ = result_tx.send(f(cx));
        })))?;
        result.recv().map_err(|_| RuntimeError::Stopped)
    }

    fn send(&self, message: Message) -> Result<(), RuntimeError> {
        let messages = self.inner.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.as_ref().ok_or(RuntimeError::Stopped)?.send(message).map_err(|_| RuntimeError::Stopped)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        drop(self.messages.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            // A panic of the engine's thread has been reported by the streams that it left behind.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
