//! The engine's thread. It is member 0 of its pools, so the memory that it packs and the scratch that it takes are
//! touched first by the threads that use them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use pace_kernels::{Pool, Scratch};
use pace_models::{Model, WeightMemory};
use pace_ops::{OpCx, Profile};

use super::{EngineConfig, EngineInfo, LoadProgress, Message, Ready};
use crate::metrics::Counters;
use crate::platform::MemoryLimit;
use crate::platform::numa::{self, NumaMemory};
use crate::platform::topology;
use crate::scheduler::Scheduler;
use crate::{ModelFiles, RuntimeError};

/// How long an engine sleeps whose answers all wait for their readers.
const UNREAD_PAUSE: Duration = Duration::from_millis(1);

/// Where an engine's weights come from.
pub(super) enum Weights {
    /// Files, to be loaded on the engine's threads.
    Files(Arc<ModelFiles>, LoadProgress),
    /// Another engine, which is described.
    Shared(Arc<dyn Model>, Box<EngineInfo>),
}

/// Loads, reports, then steps until every handle is gone.
pub(super) fn run(
    weights: Weights,
    config: &EngineConfig,
    ready: &Sender<Result<Ready, RuntimeError>>,
    messages: &Receiver<Message>,
    stopping: &AtomicBool,
) {
    let (info, model, pools) = match load(weights, config) {
        Ok(loaded) => loaded,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let counters = Arc::new(Counters::new(kv_limit(config)));
    let scheduler = Scheduler::new(model.as_ref(), config.batching, config.kv_plan(), Arc::clone(&counters));
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
    let kernels = model.selection().build().kernels();
    let [prefill, decode] = [&pools.prefill, pools.decode.as_ref().unwrap_or(&pools.prefill)]
        .map(|pool| OpCx { kernels, par: pool.par(), scratch: &scratch, profile: profile.as_ref() });
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
        let span = profile.as_ref().map(Profile::step);
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

type Loaded = (EngineInfo, Arc<dyn Model>, Pools);

fn load(weights: Weights, config: &EngineConfig) -> Result<Loaded, RuntimeError> {
    let need = match &weights {
        Weights::Files(files, _) => files.spec().weight_bytes(config.load.weights) as u64,
        Weights::Shared(..) => 0,
    };
    // The pools' threads inherit it.
    numa::place(config.numa_memory, &config.memory_nodes(), need);
    let pools = Pools::start(config)?;
    let (threads, pinned) = (pools.all().threads(), pools.all().pinned());
    let (files, progress) = match weights {
        Weights::Shared(model, info) => return Ok((EngineInfo { threads, pinned, ..*info }, model, pools)),
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
        huge_share: weights.huge_share,
        weight_layout: weights.layout,
        remote_share: remote_share(config, &weights),
        operators: selection.chosen().to_vec(),
        demotions: selection.demotions().to_vec(),
        bit_equal: selection.is_bit_equal(),
    };
    Ok((info, model.into(), pools))
}

/// How much of the weights the threads reach only through another node; more than a little is a warning.
fn remote_share(config: &EngineConfig, weights: &WeightMemory) -> Option<f64> {
    let share = numa::remote_share(&weights.addresses, &config.memory_nodes())?;
    if share > 0.05 && config.numa_memory != NumaMemory::Interleave {
        let nodes = topology::format_cpu_list(&config.memory_nodes());
        tracing::warn!(
            "{:.0} % of the weights lie on other NUMA nodes than they should ({nodes}): free memory there, or choose \
             another by --numa-node",
            100.0 * share
        );
    }
    Some(share)
}

/// What all KV caches may hold: what the user said, or what is available now that the weights are there.
fn kv_limit(config: &EngineConfig) -> u64 {
    let available = || MemoryLimit::detect().map(|limit| limit.available);
    config.batching.kv_memory.or_else(available).unwrap_or(u64::MAX)
}

/// The threads that compute, of which the engine's is the first.
struct Pools {
    prefill: Pool,
    /// For forwards without tokens of a prompt, if those have another number of threads.
    decode: Option<Pool>,
}

impl Pools {
    fn start(config: &EngineConfig) -> Result<Self, RuntimeError> {
        let count = |asked: Option<usize>| asked.unwrap_or(config.cpus.len()).clamp(1, config.cpus.len());
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
