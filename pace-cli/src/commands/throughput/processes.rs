//! The parent of `throughput --processes`: it packs the weights into shared memory, starts a process for each instance,
//! hands out prompts, and starts those again that die.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::ProgressBar;
use pace_kernels::SharedMemory;
use pace_runtime::{EngineConfig, EngineHandle, ModelFiles, Part, WorkQueue};
use rustix::io::{FdFlags, fcntl_setfd};

use super::report::{Done, InstanceReport, Report, pss};
use super::worker::{FromWorker, Orders, ToWorker};
use crate::session::load_progress;

/// How often an instance is started again before it counts as broken.
const MAX_RESTARTS: usize = 3;

pub(super) fn run(
    files: &Arc<ModelFiles>,
    config: &EngineConfig,
    parts: &[Part],
    prompts: Vec<Vec<u32>>,
    bar: &ProgressBar,
) -> Result<Report> {
    let weights = pack(files, config, parts)?;
    let places = prompts.len().div_ceil(parts.len());
    let queue = WorkQueue::new(prompts);
    let instances = parts.iter().enumerate().map(|(i, part)| {
        let Weights { memory, layout, .. } = &weights[&part.node];
        Instance {
            number: i,
            orders: Orders {
                instance: i,
                instances: parts.len(),
                cpus: part.cpus.clone(),
                node: part.node,
                weights: memory.as_fd().as_raw_fd(),
                layout: *layout,
            },
            restarts: 0,
            outstanding: BTreeMap::new(),
            places,
        }
    });
    let instances: Vec<Instance> = instances.collect();
    // All are up before the clock starts.
    let started: Vec<(Instance, Process)> = std::thread::scope(|scope| {
        let start =
            |instance: Instance| scope.spawn(move || Process::start(&instance.orders).map(|p| (instance, p)));
        let starting: Vec<_> = instances.into_iter().map(start).collect();
        starting.into_iter().map(joined).collect::<Result<_>>()
    })?;
    let done = Mutex::new(Vec::new());
    let report = |answer: Done| {
        bar.inc(1);
        done.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
    };
    let start = Instant::now();
    let mut finished: Vec<(Instance, Process)> = std::thread::scope(|scope| {
        let (queue, report) = (&queue, &report);
        let work = |(instance, process): (Instance, Process)| {
            scope.spawn(move || instance.work(process, queue, report))
        };
        let working: Vec<_> = started.into_iter().map(work).collect();
        working.into_iter().map(joined).collect::<Result<_>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    // All live until the last one is asked: what they share counts in equal parts.
    let instances = finished.iter_mut().zip(parts).map(|(own, part)| report_of(own, part));
    let instances = instances.collect::<Result<_>>()?;
    Ok(Report {
        model: files.name().to_owned(),
        instances,
        done: done.into_inner().unwrap_or_else(PoisonError::into_inner),
        seconds,
        weight_bytes: weights.values().map(|w| w.bytes).max().unwrap_or(0),
        weight_copies: weights.len(),
        pss_bytes: pss(),
        processes: true,
    })
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread of the parent panicked")))
}

/// Asks a process for its memory.
fn report_of((instance, process): &mut (Instance, Process), part: &Part) -> Result<InstanceReport> {
    process.send(&ToWorker::Memory)?;
    let pss_bytes = match process.receive()? {
        FromWorker::Memory(bytes) => bytes,
        other => bail!("instance {}: unexpected answer {other:?}", instance.number),
    };
    let pid = process.child.id();
    Ok(InstanceReport { pid, restarts: instance.restarts, pss_bytes, ..InstanceReport::of(part) })
}

/// The packed weights of one NUMA node.
struct Weights {
    memory: Arc<SharedMemory>,
    layout: u64,
    bytes: usize,
}

/// Packs the weights once for each node, on that node's CPUs.
fn pack(
    files: &Arc<ModelFiles>,
    config: &EngineConfig,
    parts: &[Part],
) -> Result<BTreeMap<Option<usize>, Weights>> {
    let mut packed = BTreeMap::new();
    for part in parts {
        if packed.contains_key(&part.node) {
            continue;
        }
        let on_node = parts.iter().filter(|other| other.node == part.node);
        let cpus = on_node.flat_map(|other| &other.cpus).copied().collect();
        let memory = Arc::new(SharedMemory::create().context("memory to share between processes")?);
        // The children inherit it.
        fcntl_setfd(memory.as_fd(), FdFlags::empty()).context("memory to share between processes")?;
        let mut own = Part { cpus, node: part.node }.configure(config, 1);
        own.load.shared = Some(Arc::clone(&memory));
        let engine = EngineHandle::start(files, own, load_progress())?;
        memory.seal().context("memory to share between processes")?;
        let (layout, bytes) = (engine.info().weight_layout, engine.info().weight_bytes);
        packed.insert(part.node, Weights { memory, layout, bytes });
    }
    Ok(packed)
}

/// An instance, whichever process it has at the moment.
struct Instance {
    number: usize,
    orders: Orders,
    restarts: usize,
    /// Prompts that its process has and has not answered.
    outstanding: BTreeMap<usize, Vec<u32>>,
    places: usize,
}

impl Instance {
    /// Answers prompts until all are answered, by whomever.
    fn work(
        mut self,
        mut process: Process,
        queue: &WorkQueue<Vec<u32>>,
        report: &(impl Fn(Done) + Sync),
    ) -> Result<(Self, Process)> {
        loop {
            let Err(error) = self.serve(&mut process, queue, report) else { return Ok((self, process)) };
            let (pid, left) = (process.child.id(), self.outstanding.len());
            for (index, ids) in std::mem::take(&mut self.outstanding).into_iter().rev() {
                queue.put_back(index, ids);
            }
            let how = process.end();
            let number = self.number;
            self.restarts += 1;
            if self.restarts > MAX_RESTARTS {
                queue.clear();
                return Err(error.context(format!("instance {number} was started {} times", self.restarts)));
            }
            tracing::warn!(
                "instance {number} (process {pid}) died, {how}: {error:#}; {left} prompts go to whoever is free, and \
                 it is started again"
            );
            process = Process::start(&self.orders)?;
        }
    }

    fn serve(
        &mut self,
        process: &mut Process,
        queue: &WorkQueue<Vec<u32>>,
        report: &impl Fn(Done),
    ) -> Result<()> {
        loop {
            while self.outstanding.len() < self.places {
                let idle = self.outstanding.is_empty();
                let Some((index, ids)) = (if idle { queue.take_or_wait() } else { queue.take() }) else {
                    break;
                };
                let prompt = ToWorker::Prompt { index, ids: ids.clone() };
                self.outstanding.insert(index, ids);
                process.send(&prompt)?;
            }
            if self.outstanding.is_empty() {
                return Ok(());
            }
            match process.receive()? {
                FromWorker::Done(done) => {
                    self.outstanding.remove(&done.index);
                    report(done);
                    queue.done();
                }
                FromWorker::Failed(why) => bail!("{why}"),
                other => bail!("unexpected answer {other:?}"),
            }
        }
    }
}

/// A running process and its pipes.
struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Starts this program again with its own arguments and its orders; returns when the model is loaded.
    fn start(orders: &Orders) -> Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        let mut child = Command::new(program)
            .args(std::env::args_os().skip(1))
            .arg("--worker")
            .arg(serde_json::to_string(orders)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a process")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("a process without pipes");
        };
        let mut process = Self { child, input: Some(input), output: BufReader::new(output) };
        match process.receive()? {
            FromWorker::Ready => Ok(process),
            FromWorker::Failed(why) => bail!("instance {}: {why}", orders.instance),
            other => bail!("instance {}: unexpected answer {other:?}", orders.instance),
        }
    }

    fn send(&mut self, message: &ToWorker) -> Result<()> {
        let mut line = serde_json::to_string(message)?;
        line.push('\n');
        let input = self.input.as_mut().context("the process was told to end")?;
        input.write_all(line.as_bytes()).context("it takes no more prompts")
    }

    fn receive(&mut self) -> Result<FromWorker> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("it cannot be heard")?;
        if line.is_empty() {
            bail!("it ended before its work was done");
        }
        serde_json::from_str(&line).context("it answers nonsense")
    }

    /// Ends it, and says how it ended.
    fn end(&mut self) -> String {
        drop(self.input.take());
        // One that no longer answers may still run; one that is dead cannot be killed, and need not.
        let _ = self.child.kill();
        self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
