//! The engine's thread. It is member 0 of its pools, so the memory that it packs and the scratch that it takes are
//! touched first by the threads that use them.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use pace_kernels::{Pool, Scratch};
use pace_models::{DecoderSpec, Model, WeightMemory};
use pace_ops::{InputSquares, OpCx, Profile};

use super::{EngineConfig, EngineInfo, LoadProgress, Message, Ready};
use crate::metrics::Counters;
use crate::platform::MemoryLimit;
use crate::platform::numa::{self, NumaMemory};
use crate::scheduler::Scheduler;
use crate::{ModelFiles, RuntimeError};

/// How long an engine sleeps whose answers all wait for their readers.
const UNREAD_PAUSE: Duration = Duration::from_millis(1);

/// One part in so many of the memory is left to everything else.
const SPARE: u64 = 20;

/// Where an engine's weights come from.
pub(super) enum Weights {
    /// Files, to be loaded on the engine's threads.
    Files(Arc<ModelFiles>, LoadProgress),
    /// Another engine, which is described.
    Shared(Arc<dyn Model>, Box<EngineInfo>),
}

impl Weights {
    /// The model's shape.
    pub(super) fn spec(&self) -> &DecoderSpec {
        match self {
            Self::Files(files, _) => files.spec(),
            Self::Shared(model, _) => model.spec(),
        }
    }
}

/// Loads, reports, then steps until every handle is gone.
pub(super) fn run(
    weights: Weights,
    config: &EngineConfig,
    ready: &Sender<Result<Ready, RuntimeError>>,
    messages: &Receiver<Message>,
    stopping: &AtomicBool,
) {
    pace_kernels::default_float_mode();
    let Loaded { info, model, pools, bound } = match load(weights, config) {
        Ok(loaded) => loaded,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let counters = Arc::new(Counters::new(kv_limit(config, model.spec(), &bound)));
    let nodes = nodes_to_verify(config);
    let scheduler =
        Scheduler::new(model.as_ref(), config.batching, config.kv_plan(), Arc::clone(&counters), nodes);
    let report = Ready { info, model: Arc::clone(&model), counters };
    if ready.send(Ok(report)).is_ok() {
        serve(model.as_ref(), config, &pools, scheduler, messages, stopping);
    }
}

fn serve(
    model: &dyn Model,
    config: &EngineConfig,
    pools: &Pools,
    mut scheduler: Scheduler,
    messages: &Receiver<Message>,
    stopping: &AtomicBool,
) {
    let scratch = Scratch::new();
    let profile = config.profile.then(Profile::new);
    let inputs = config.observe_inputs.then(InputSquares::new);
    let kernels = model.selection().build().kernels();
    let (profile, inputs) = (profile.as_ref(), inputs.as_ref());
    let [prefill, decode] = [&pools.prefill, pools.decode.as_ref().unwrap_or(&pools.prefill)]
        .map(|pool| OpCx { kernels, par: pool.par(), scratch: &scratch, profile, inputs });
    while !stopping.load(Ordering::Relaxed) {
        if scheduler.is_idle() {
            let Ok(message) = messages.recv() else { return };
            take(message, &mut scheduler, &prefill);
        }
        while let Ok(message) = messages.try_recv() {
            take(message, &mut scheduler, &prefill);
        }
        if scheduler.is_idle() {
            continue;
        }
        let span = profile.map(Profile::step);
        match catch_unwind(AssertUnwindSafe(|| scheduler.step(model, &prefill, &decode))) {
            Ok(true) => {}
            Ok(false) => {
                drop(span);
                if let Ok(message) = messages.recv_timeout(UNREAD_PAUSE) {
                    take(message, &mut scheduler, &prefill);
                }
            }
            Err(panic) => scheduler.fail_running(&panic_message(panic.as_ref())),
        }
    }
}

fn take(message: Message, scheduler: &mut Scheduler, cx: &OpCx<'_>) {
    match message {
        Message::Task(task) => scheduler.submit(*task),
        Message::Call(f) => f(cx),
    }
}

struct Loaded {
    info: EngineInfo,
    model: Arc<dyn Model>,
    pools: Pools,
    /// The NUMA nodes that all memory comes from, if it may come from no other.
    bound: Vec<usize>,
}

fn load(weights: Weights, config: &EngineConfig) -> Result<Loaded, RuntimeError> {
    let need = match &weights {
        Weights::Files(files, _) => config.weights_need(files),
        Weights::Shared(..) => 0,
    };
    // The pools' threads inherit it.
    let bound = numa::place(config.numa_memory, &config.memory_nodes(), need);
    let pools = Pools::start(config)?;
    let (threads, pinned) = (pools.all().threads(), pools.all().pinned());
    let (files, progress) = match weights {
        Weights::Shared(model, info) => {
            let remote_share = remote_share(config, &model.weights());
            let info = EngineInfo { threads, pinned, remote_share, ..*info };
            return Ok(Loaded { info, model, pools, bound });
        }
        Weights::Files(files, progress) => (files, progress),
    };
    let start = Instant::now();
    let model = files.load(config.load.clone(), config.kernels()?, pools.all().par(), &progress)?;
    let (weights, selection) = (model.weights(), model.selection());
    let info = EngineInfo {
        model: files.name().to_owned(),
        spec: model.spec().clone(),
        isa: config.isa,
        threads,
        pinned,
        load_time: start.elapsed(),
        weight_bytes: weights.bytes,
        formats: files.packed_formats(&config.load),
        losses: weights.losses.clone(),
        huge_share: weights.huge_share,
        weight_layout: weights.layout,
        remote_share: remote_share(config, &weights),
        operators: selection.chosen().to_vec(),
        demotions: selection.demotions().to_vec(),
        bit_equal: selection.is_bit_equal(),
    };
    Ok(Loaded { info, model: model.into(), pools, bound })
}

/// How much of the weights the threads reach only through another node.
fn remote_share(config: &EngineConfig, weights: &WeightMemory) -> Option<f64> {
    numa::verify("the weights", &weights.addresses, &nodes_to_verify(config)?)
}

/// The NUMA nodes that memory should lie on; none if it is to be on all.
fn nodes_to_verify(config: &EngineConfig) -> Option<Vec<usize>> {
    (config.numa_memory != NumaMemory::Interleave).then(|| config.memory_nodes())
}

/// What all KV caches of this engine may hold: its share of what the user said, or else of most of what is available now
/// that the weights are there; never more than the nodes have that its memory is bound to.
fn kv_limit(config: &EngineConfig, spec: &DecoderSpec, bound: &[usize]) -> u64 {
    let share = |bytes: u64, engines: NonZeroUsize| bytes / engines.get() as u64;
    let forward = config.batching.forward_bytes(spec);
    let spare = |bytes: u64, engines| share(bytes - bytes / SPARE, engines).saturating_sub(forward);
    let all = match config.batching.kv_memory {
        Some(bytes) => share(bytes, config.sharing.all),
        None => MemoryLimit::detect().map_or(u64::MAX, |limit| spare(limit.available, config.sharing.all)),
    };
    let free = numa::free_bytes_of(bound).map_or(u64::MAX, |bytes| spare(bytes, config.sharing.nodes));
    all.min(free)
}

/// The threads that compute, of which the engine's is the first.
struct Pools {
    prefill: Pool,
    /// For forwards without tokens of a prompt, if those have another number of threads.
    decode: Option<Pool>,
}

impl Pools {
    fn start(config: &EngineConfig) -> Result<Self, RuntimeError> {
        let all = config.cpus.len();
        let count = |asked: Option<usize>| asked.unwrap_or(all).clamp(1, all.max(1));
        let (prefill, decode) = (count(config.prefill_threads), count(config.decode_threads));
        let other = (decode != prefill).then(|| config.pool(decode)).transpose()?;
        Ok(Self { prefill: config.pool(prefill)?, decode: other })
    }

    /// The pool of the most threads.
    fn all(&self) -> &Pool {
        let larger = self.decode.as_ref().filter(|decode| decode.threads() > self.prefill.threads());
        larger.unwrap_or(&self.prefill)
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a forward panicked".to_owned())
}
