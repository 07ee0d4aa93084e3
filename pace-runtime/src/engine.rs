//! [`EngineHandle`]: a loaded model on its own threads, answering requests.
//!
//! The engine's thread is member 0 of the pool, so the memory that it packs and the scratch that it takes are
//! touched first by the threads that use them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pace_kernels::{DType, Isa, IsaError, Jit, Kernels, Pool, Scratch, WeightFormat};
use pace_models::{DecoderSpec, LoadOptions, Model, ModelError};
use pace_ops::{Chosen, Demotion, OpCx, OpShape, Profile, Selection};

use crate::kv_cache::KvCacheKind;
use crate::platform::cores::CoreRequest;
use crate::platform::{ThreadBudget, affinity, topology};
use crate::request::{Request, ScoreRequest, ScoreStream, TokenStream};
use crate::scheduler::{Generation, Goal, Scheduler, Scoring, Task, check_memory};
use crate::tokenizer::Tokenizer;
use crate::{ModelFiles, RuntimeError};

/// How a model is loaded and run.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The CPUs to run on, one thread each.
    pub cpus: Vec<usize>,
    /// Whether threads are pinned to their CPU.
    pub pin: bool,
    /// The CPUs that threads must not leave while they are not pinned; empty: wherever the process may run.
    pub within: Vec<usize>,
    /// Threads of a forward with more than one token of some sequence, of all those in `cpus`; none: all.
    pub prefill_threads: Option<usize>,
    /// Threads of a forward with one token of each sequence, of all those in `cpus`; none: all.
    pub decode_threads: Option<usize>,
    /// The instruction sets to use.
    pub isa: Isa,
    /// Formats and operators.
    pub load: LoadOptions,
    /// How caches get their memory.
    pub kv_cache: KvCacheKind,
    /// Whether operators are timed, for [`EngineHandle::profile`] and [`EngineHandle::trace`].
    pub profile: bool,
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
        Ok(Self {
            pin: budget.pin,
            cpus: budget.cpus,
            within: if budget.named { budget.within } else { Vec::new() },
            prefill_threads: None,
            decode_threads: None,
            isa: Isa::from_env()?,
            load: LoadOptions {
                l3_bytes: topology::l3_bytes(Path::new("/")),
                ..LoadOptions::new(weights, activations)
            },
            kv_cache: KvCacheKind::default(),
            profile: false,
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
    pub fn operator_shapes(&self, spec: &DecoderSpec) -> Vec<OpShape> {
        spec.operator_shapes(self.load.weights, self.load.activations, self.load.kv)
    }

    /// What the operators of a model are going to be computed with, unless one fails its self-test at load.
    ///
    /// # Errors
    /// The configuration names a backend that there is not, for a type or on this machine.
    pub fn choose(&self, spec: &DecoderSpec) -> Result<Selection, RuntimeError> {
        let build = self.load.build_cx(self.kernels()?);
        let mut selection = Selection::new(build, self.load.operators, self.load.plan.clone());
        for shape in self.operator_shapes(spec) {
            selection.choose(shape).map_err(ModelError::from)?;
        }
        Ok(selection)
    }

    /// The threads, of which the caller becomes the first.
    pub(crate) fn pool(&self) -> Result<Pool, RuntimeError> {
        // Workers inherit where the thread that makes them may run.
        if !self.pin && !self.within.is_empty() && !affinity::confine(&self.within) {
            tracing::warn!("threads cannot be kept on CPUs {}", topology::format_cpu_list(&self.within));
        }
        let pool = if self.pin { Pool::new(&self.cpus)? } else { Pool::unpinned(self.cpus.len())? };
        if self.pin && !pool.pin_caller() {
            tracing::warn!("the engine's thread cannot be pinned to CPU {}", self.cpus[0]);
        }
        Ok(pool)
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
    /// The part of the weights' memory that lies in huge pages, from 0 to 1; none where the system does not tell.
    pub huge_share: Option<f64>,
    /// What the operators are computed with.
    pub operators: Vec<Chosen>,
    /// Operators that were left to the reference because a backend failed its self-test.
    pub demotions: Vec<Demotion>,
    /// Whether a sequence's bits do not depend on the batch, the chunks and the number of threads.
    pub bit_equal: bool,
}

/// What a handle sends to the engine's thread.
enum Message {
    Task(Task),
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
    jit: Option<Arc<Jit>>,
    tokenizer: Option<Arc<Tokenizer>>,
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
        let need = files.spec().weight_bytes(config.load.weights) as u64;
        check_memory(need, || "packed weights".to_owned())?;
        let (ready_tx, ready_rx) = channel();
        let (messages_tx, messages_rx) = channel();
        let stopping = Arc::new(AtomicBool::new(false));
        let (stop, files_of_thread) = (Arc::clone(&stopping), Arc::clone(files));
        let thread = std::thread::Builder::new()
            .name("pace-engine".to_owned())
            .spawn(move || run(&files_of_thread, &config, &progress, &ready_tx, &messages_rx, &stop))
            .map_err(|e| RuntimeError::Internal(format!("cannot start a thread: {e}")))?;
        match ready_rx.recv() {
            Ok(Ok((info, jit))) => Ok(Self {
                inner: Arc::new(Inner {
                    messages: Mutex::new(Some(messages_tx)),
                    thread: Mutex::new(Some(thread)),
                    stopping,
                    info,
                    jit,
                    tokenizer: files.tokenizer().cloned(),
                }),
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(RuntimeError::Internal("the engine's thread died while loading".to_owned())),
        }
    }

    /// What the engine turned out to be.
    pub fn info(&self) -> &EngineInfo {
        &self.inner.info
    }

    /// The kernels that were generated for the model; none where the CPU or the system does not let any be.
    pub fn jit(&self) -> Option<&Arc<Jit>> {
        self.inner.jit.as_ref()
    }

    /// Queues a completion. `max_new_tokens` is cut to what the model's context leaves.
    ///
    /// # Errors
    /// The prompt is empty, too long or holds ids beyond the vocabulary; a parameter is out of range; the engine
    /// has stopped. Nothing has been computed then.
    pub fn submit(&self, mut request: Request) -> Result<TokenStream, RuntimeError> {
        let spec = self.spec();
        request.check(spec)?;
        if !request.stop.is_empty() && self.inner.tokenizer.is_none() {
            return Err(RuntimeError::NoTokenizer { model: self.inner.info.model.clone() });
        }
        request.max_new_tokens = request.max_new_tokens.min(spec.max_positions - request.prompt.len());
        let needed = request.prompt.len() + request.max_new_tokens;
        let max_len = needed.max(request.ctx_size.unwrap_or(0));
        let (events_tx, events) = channel();
        let tokenizer = self.inner.tokenizer.as_ref();
        let generation = Generation::new(&request, spec.vocab_size, tokenizer, events_tx)?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let goal = Goal::Generate(Box::new(generation));
        let mut task = Task::new(request.prompt, max_len, Arc::clone(&cancelled), goal);
        task.reuse = request.reuse;
        self.send(Message::Task(task))?;
        Ok(TokenStream { events, cancelled, done: false })
    }

    /// Queues a text to score.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn score(&self, request: ScoreRequest) -> Result<ScoreStream, RuntimeError> {
        request.check(self.spec())?;
        let (updates_tx, updates) = channel();
        let n = request.tokens.len();
        let scoring = Scoring::new(&request, updates_tx);
        let cancelled = Arc::new(AtomicBool::new(false));
        let task = Task::new(request.tokens, n, Arc::clone(&cancelled), Goal::Score(scoring));
        self.send(Message::Task(task))?;
        Ok(ScoreStream { updates, cancelled })
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

/// The engine's thread: load, report, then step until every handle is gone.
fn run(
    files: &ModelFiles,
    config: &EngineConfig,
    progress: &LoadProgress,
    ready: &Sender<Result<Ready, RuntimeError>>,
    messages: &Receiver<Message>,
    stopping: &AtomicBool,
) {
    let loaded = load(files, config, progress);
    let (model, pool, kernels, info) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let scratch = Scratch::new();
    let profile = config.profile.then(Profile::new);
    let cx = OpCx { kernels, par: pool.par(), scratch: &scratch, profile: profile.as_ref() };
    let mut scheduler = Scheduler::new(model.as_ref(), config.kv_cache, config.load.kv);
    let jit = model.selection().build().jit().ok().cloned();
    if ready.send(Ok((info, jit))).is_err() {
        return;
    }
    while !stopping.load(Ordering::Relaxed) {
        if scheduler.is_idle() {
            let Ok(message) = messages.recv() else { return };
            take(message, &mut scheduler, &cx);
        }
        while let Ok(message) = messages.try_recv() {
            take(message, &mut scheduler, &cx);
        }
        if scheduler.is_idle() {
            continue;
        }
        let _step = profile.as_ref().map(Profile::step);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| scheduler.step(model.as_ref(), &cx))) {
            scheduler.fail_running(&panic_message(panic.as_ref()));
        }
    }
}

fn take(message: Message, scheduler: &mut Scheduler, cx: &OpCx<'_>) {
    match message {
        Message::Task(task) => scheduler.submit(task),
        Message::Call(f) => f(cx),
    }
}

/// What the engine's thread tells of itself once the model is loaded.
type Ready = (EngineInfo, Option<Arc<Jit>>);

type Loaded = (Box<dyn Model>, Pool, Kernels, EngineInfo);

fn load(files: &ModelFiles, config: &EngineConfig, progress: &LoadProgress) -> Result<Loaded, RuntimeError> {
    let (kernels, pool) = (config.kernels()?, config.pool()?);
    let start = Instant::now();
    let model = files.load(config.load.clone(), kernels, pool.par(), progress)?;
    let (weights, selection) = (model.weights(), model.selection());
    let info = EngineInfo {
        model: files.name().to_owned(),
        spec: model.spec().clone(),
        isa: kernels.isa(),
        threads: pool.threads(),
        pinned: pool.pinned(),
        load_time: start.elapsed(),
        weight_bytes: weights.bytes,
        huge_share: weights.huge_share,
        operators: selection.chosen().to_vec(),
        demotions: selection.demotions().to_vec(),
        bit_equal: selection.is_bit_equal(),
    };
    Ok((model, pool, kernels, info))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a forward panicked".to_owned())
}
