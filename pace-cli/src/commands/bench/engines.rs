//! [`Setup`]: one combination of the flags that engines are started with, and [`Engines`], which run it.

use std::sync::Arc;
use std::thread;

use anyhow::Result;
use pace_kernels::DType;
use pace_runtime::config::Env;
use pace_runtime::{EngineConfig, EngineHandle, Limits, ModelFiles, RuntimeError};

use super::memory;
use super::workload::Workload;
use crate::args::{BenchArgs, EngineArgs};
use crate::exit::Usage;
use crate::session::{self, Session};

/// How engines are to be started.
pub(super) struct Setup {
    pub(super) files: Arc<ModelFiles>,
    pub(super) config: EngineConfig,
    pub(super) instances: usize,
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
            config.choose(files.spec())?;
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
        Ok(Self { files, config, instances })
    }

    /// The name of the weights' type.
    pub(super) const fn dtype(&self) -> &'static str {
        match self.config.load.activations {
            DType::F32 => "f32",
            DType::F16 | DType::Bf16 => "bf16",
        }
    }
}

/// Engines that compute a setup at the same time, on one copy of the weights.
pub(super) struct Engines {
    pub(super) session: Session,
    pub(super) instances: Vec<EngineHandle>,
    /// What the hardware gives to all of them together.
    pub(super) limits: Limits,
    /// The most memory that loading the model took, in bytes.
    load_peak: u64,
}

impl Engines {
    /// Loads the model on all threads, then measures what the hardware gives to those of the instances.
    ///
    /// # Errors
    /// The model cannot be loaded, or there is no memory.
    pub(super) fn start(setup: &Setup) -> Result<Self> {
        memory::forget_peak();
        let session = Session::with(Arc::clone(&setup.files), setup.config.clone())?;
        let instances = if setup.instances == 1 {
            vec![session.engine.clone()]
        } else {
            let parts = divide(&setup.config.cpus, setup.instances).into_iter();
            let part = |cpus| session.engine.share(EngineConfig { cpus, ..setup.config.clone() });
            parts.map(part).collect::<Result<_, _>>()?
        };
        let load_peak = memory::peak_bytes();
        let limits = together(&instances)?;
        // What was allocated to measure is not the engines'.
        memory::forget_peak();
        Ok(Self { session, instances, limits, load_peak })
    }

    /// The most memory that the engines have taken so far, in bytes.
    pub(super) fn peak_bytes(&self) -> u64 {
        memory::peak_bytes().max(self.load_peak)
    }
}

fn config(env: &Env, engine: &EngineArgs, workloads: &[Workload], profile: bool) -> Result<EngineConfig> {
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

/// `cpus`, in their order, in `parts` runs whose lengths differ by one at most.
fn divide(cpus: &[usize], parts: usize) -> Vec<Vec<usize>> {
    let end = |part: usize| part * cpus.len() / parts;
    (0..parts).map(|part| cpus[end(part)..end(part + 1)].to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_divided_evenly_and_in_order() {
        assert_eq!(divide(&[4, 5, 6, 7], 2), [vec![4, 5], vec![6, 7]]);
        let uneven = divide(&[0, 1, 2, 3, 4, 5, 6], 3);
        assert_eq!(uneven.concat(), [0, 1, 2, 3, 4, 5, 6]);
        assert!(uneven.iter().all(|part| part.len() == 2 || part.len() == 3), "{uneven:?}");
        assert_eq!(divide(&[3], 1), [vec![3]]);
    }
}
