//! [`Setup`]: one combination of the flags that engines are started with, and [`Engines`], which run it.

use std::cell::Cell;
use std::sync::Arc;
use std::thread;

use anyhow::Result;
use pace_runtime::config::Env;
use pace_runtime::platform::topology::Topology;
use pace_runtime::{
    EngineConfig, EngineHandle, EngineInfo, Instances, Limits, ModelFiles, Part, RuntimeError, partition,
};

use super::memory;
use super::workload::Workload;
use crate::args::{BenchArgs, EngineArgs};
use crate::exit::Usage;
use crate::session::{self, Session};

/// How engines are to be started.
pub(super) struct Setup {
    pub(super) files: Arc<ModelFiles>,
    pub(super) config: EngineConfig,
    /// What each instance has of the machine.
    pub(super) parts: Vec<Part>,
}

impl Setup {
    /// Every combination, checked against its model as far as that goes without weights.
    ///
    /// # Errors
    /// A model cannot be opened, a test does not fit it, or the flags contradict each other or the machine.
    pub(super) fn list(
        env: &Env,
        args: &BenchArgs,
        workloads: &[Workload],
        profile: bool,
    ) -> Result<Vec<Self>> {
        let mut all: Vec<Self> = Vec::new();
        let mut opened: Option<(&Option<String>, Arc<ModelFiles>)> = None;
        for engine in &args.engines.0 {
            let files = match &opened {
                Some((model, files)) if *model == &engine.model => Arc::clone(files),
                _ => Arc::new(session::open(env, engine.model.as_deref())?),
            };
            opened = Some((&engine.model, Arc::clone(&files)));
            workloads.iter().try_for_each(|workload| workload.check(files.spec().max_positions))?;
            let config = config(env, engine, workloads, profile)?;
            config.choose(&files)?;
            for workload in workloads {
                config.kv_cache.check(workload.room()).map_err(|e| Usage(format!("{workload}: {e}")))?;
            }
            for &instances in &args.instances {
                let (files, config) = (Arc::clone(&files), config.clone());
                all.push(Self::new(files, config, instances as usize)?);
            }
        }
        Ok(all)
    }

    fn new(files: Arc<ModelFiles>, config: EngineConfig, instances: usize) -> Result<Self> {
        let threads = config.cpus.len();
        if instances > threads {
            return Err(
                Usage(format!("--instances {instances}: there are {threads} threads to divide")).into()
            );
        }
        let parts = partition(&Topology::detect(), &config.cpus, instances).map_err(RuntimeError::from)?;
        Ok(Self { files, config, parts })
    }

    /// The format of most of the weights.
    pub(super) fn dtype(&self) -> String {
        let formats = self.files.packed_formats(&self.config.load);
        formats.shares(self.files.spec()).first().map_or_else(String::new, |(format, _)| format.to_string())
    }
}

/// Engines that compute a setup at the same time; those on one NUMA node share the weights.
pub(super) struct Engines {
    pub(super) instances: Vec<EngineHandle>,
    /// The most memory that they took until the limits were last measured, in bytes.
    peak_before: Cell<u64>,
}

impl Engines {
    /// Loads the model.
    ///
    /// # Errors
    /// The model cannot be loaded, or there is no memory.
    pub(super) fn start(setup: &Setup) -> Result<Self> {
        memory::forget_peak();
        let (files, config) = (Arc::clone(&setup.files), &setup.config);
        let instances = if setup.parts.len() == 1 {
            vec![Session::with(files, config.clone())?.engine]
        } else {
            Instances::start(&files, config, &setup.parts, session::load_progress)?.engines().to_vec()
        };
        Ok(Self { instances, peak_before: Cell::new(0) })
    }

    /// What the hardware gives to all engines together, measured on their threads now.
    ///
    /// # Errors
    /// There is no memory to measure with.
    pub(super) fn limits(&self) -> Result<Limits, RuntimeError> {
        self.peak_before.set(self.peak_bytes());
        let limits = together(&self.instances);
        // What was allocated to measure is not the engines'.
        memory::forget_peak();
        limits
    }

    /// What the first engine turned out to be; all are alike but for their CPUs.
    pub(super) fn info(&self) -> &EngineInfo {
        self.instances[0].info()
    }

    /// Threads of all engines.
    pub(super) fn threads(&self) -> usize {
        self.instances.iter().map(|engine| engine.info().threads).sum()
    }

    /// The most memory that the engines have taken so far, in bytes.
    pub(super) fn peak_bytes(&self) -> u64 {
        memory::peak_bytes().max(self.peak_before.get())
    }
}

fn config(env: &Env, engine: &EngineArgs, workloads: &[Workload], profile: bool) -> Result<EngineConfig> {
    engine.platform.expect_one_instance()?;
    let mut config = EngineConfig { profile, ..engine.config(env)? };
    for batch in workloads.iter().filter_map(|workload| workload.batch.try_into().ok()) {
        config.batching.max_running = config.batching.max_running.max(batch);
        config.batching.max_waiting = config.batching.max_waiting.max(batch.get());
    }
    Ok(config)
}

/// The limits of all `engines`, measured at the same time.
fn together(engines: &[EngineHandle]) -> Result<Limits, RuntimeError> {
    let each: Vec<Limits> = thread::scope(|scope| {
        let running: Vec<_> = engines.iter().map(|engine| scope.spawn(|| engine.limits())).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|_| Err(RuntimeError::Internal("measuring the limits panicked".to_owned())))
        };
        running.into_iter().map(join).collect::<Result<_, _>>()
    })?;
    let sum = |limit: fn(&Limits) -> f64| each.iter().map(limit).sum();
    Ok(Limits {
        f32_flops: sum(|l| l.f32_flops),
        bf16_flops: sum(|l| l.bf16_flops),
        int8_ops: sum(|l| l.int8_ops),
        bytes: sum(|l| l.bytes),
    })
}
