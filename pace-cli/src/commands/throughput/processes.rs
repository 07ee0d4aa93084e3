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
use pace_runtime::{EngineConfig, EngineHandle, ModelFiles, Part, Request, WorkQueue};
use rustix::io::{FdFlags, fcntl_setfd};

use super::report::{Done, InstanceReport, Report, pss};
use super::request;
use super::worker::{FromWorker, Orders, ToWorker};
use crate::args::ThroughputArgs;
use crate::exit::OfProcess;
use crate::session::load_progress;

/// How often an instance is started again before it counts as broken.
const MAX_RESTARTS: usize = 3;

pub(super) fn run(
    files: &Arc<ModelFiles>,
    config: &EngineConfig,
    args: &ThroughputArgs,
    parts: &[Part],
    prompts: Vec<Vec<u32>>,
    bar: &ProgressBar,
) -> Result<Report> {
    let requests = prompts.iter().map(|ids| request(files, args, ids.clone()));
    let weights = pack(files, config, parts, &requests.collect::<Result<Vec<_>>>()?)?;
    let (asked, places) = (prompts.len(), config.batching.places(prompts.len(), parts.len()));
    let queue = WorkQueue::new(prompts);
    let instances = parts.iter().enumerate().map(|(i, part)| {
        let Weights { memory, layout, .. } = &weights[&*part.nodes];
        let orders = Orders {
            instance: i,
            all: part.sharing(parts).all,
            on_nodes: part.sharing(parts).nodes,
            cpus: part.cpus.clone(),
            nodes: part.nodes.clone(),
            weights: memory.as_fd().as_raw_fd(),
            layout: *layout,
        };
        Instance { number: i, orders, restarts: 0, outstanding: BTreeMap::new(), places }
    });
    let instances: Vec<Instance> = instances.collect();
    // All are up before the clock starts.
    let started: Vec<(Instance, Process)> = std::thread::scope(|scope| {
        let start =
            |instance: Instance| scope.spawn(move || Process::start(&instance.orders).map(|p| (instance, p)));
        let starting: Vec<_> = instances.into_iter().map(start).collect();
        starting.into_iter().map(|thread| joined(thread)?).collect::<Result<_>>()
    })?;
    let done = Mutex::new(Vec::new());
    let report = |answer: Done| {
        bar.inc(1);
        done.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
    };
    let start = Instant::now();
    let mut worked: Vec<Worked> = std::thread::scope(|scope| {
        let (queue, report) = (&queue, &report);
        let work = |(instance, process): (Instance, Process)| {
            scope.spawn(move || instance.work(process, queue, report))
        };
        let working: Vec<_> = started.into_iter().map(work).collect();
        working.into_iter().map(joined).collect::<Result<_>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    if done.len() < asked {
        return Err(first_error(worked));
    }
    // All live until the last one is asked: what they share counts in equal parts.
    let instances = worked.iter_mut().zip(parts).map(|(own, part)| own.report(part)).collect();
    Ok(Report {
        model: files.name().to_owned(),
        instances,
        done,
        seconds,
        weight_bytes: weights.values().map(|w| w.bytes).max().unwrap_or(0),
        weight_copies: weights.len(),
        pss_bytes: pss(),
        processes: true,
    })
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the parent panicked"))
}

/// Why not all prompts were answered: rather what cannot be done than that somebody died.
fn first_error(worked: Vec<Worked>) -> anyhow::Error {
    let errors = worked.into_iter().filter_map(|worked| worked.lost);
    errors.min_by_key(|error| !error.is::<OfProcess>()).unwrap_or_else(|| anyhow!("answers are missing"))
}

/// The packed weights of one set of NUMA nodes.
struct Weights {
    memory: Arc<SharedMemory>,
    layout: u64,
    bytes: usize,
}

/// Packs the weights once for each set of nodes, on the CPUs there, and checks that the requests can be answered.
fn pack<'a>(
    files: &Arc<ModelFiles>,
    config: &EngineConfig,
    parts: &'a [Part],
    requests: &[Request],
) -> Result<BTreeMap<&'a [usize], Weights>> {
    let mut packed = BTreeMap::new();
    for part in parts {
        if packed.contains_key(&*part.nodes) {
            continue;
        }
        let there = parts.iter().filter(|other| other.nodes == part.nodes);
        let cpus = there.flat_map(|other| &other.cpus).copied().collect();
        let memory = Arc::new(SharedMemory::create().context("memory to share between processes")?);
        // The children inherit it.
        fcntl_setfd(memory.as_fd(), FdFlags::empty()).context("memory to share between processes")?;
        let together = Part { cpus, nodes: part.nodes.clone() };
        let mut own = together.configure(config, part.sharing(parts));
        own.load.shared = Some(Arc::clone(&memory));
        let engine = EngineHandle::start(files, own, load_progress())?;
        requests.iter().try_for_each(|request| engine.check(request))?;
        let (layout, bytes) = (engine.info().weight_layout, engine.info().weight_bytes);
        // As long as this process could write to it, it cannot be sealed.
        drop(engine);
        memory.seal().context("memory to share between processes")?;
        packed.insert(&*part.nodes, Weights { memory, layout, bytes });
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

/// An instance that has nothing left to do.
struct Worked {
    restarts: usize,
    pid: u32,
    process: Option<Process>,
    /// Why it has no process any more.
    lost: Option<anyhow::Error>,
}

impl Instance {
    /// Answers prompts until all are answered, by whomever, or until it is lost.
    fn work(
        mut self,
        mut process: Process,
        queue: &WorkQueue<Vec<u32>>,
        report: &(impl Fn(Done) + Sync),
    ) -> Worked {
        loop {
            let pid = process.child.id();
            let Err(error) = self.serve(&mut process, queue, report) else {
                return Worked { restarts: self.restarts, pid, process: Some(process), lost: None };
            };
            let left = self.outstanding.len();
            for (index, ids) in std::mem::take(&mut self.outstanding).into_iter().rev() {
                queue.put_back(index, ids);
            }
            match self.restart(process, error, left) {
                Ok(next) => process = next,
                Err(error) => {
                    if error.is::<OfProcess>() {
                        // Nobody else could do better.
                        queue.clear();
                    }
                    return Worked { restarts: self.restarts, pid, process: None, lost: Some(error) };
                }
            }
        }
    }

    /// A new process for one that could not go on because of `error`.
    fn restart(&mut self, mut old: Process, error: anyhow::Error, left: usize) -> Result<Process> {
        let number = self.number;
        if error.is::<OfProcess>() {
            return Err(error);
        }
        let (pid, how) = (old.child.id(), old.end());
        let what = format!("instance {number} (process {pid}) died, {how}: {error:#}");
        if self.restarts == MAX_RESTARTS {
            tracing::warn!("{what}; it was started {} times and is given up", self.restarts + 1);
            return Err(error.context(what));
        }
        tracing::warn!("{what}; {left} prompts go to whoever is free, and it is started again");
        self.restarts += 1;
        Process::start(&self.orders)
            .inspect_err(|error| tracing::warn!("instance {number} cannot be started again: {error:#}"))
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
                other => bail!("unexpected answer {other:?}"),
            }
        }
    }
}

impl Worked {
    /// What became of it; asks its process, if it has one, for its memory.
    fn report(&mut self, part: &Part) -> InstanceReport {
        let pss_bytes = self.process.as_mut().and_then(|process| {
            let asked = process.memory();
            asked.inspect_err(|error| tracing::warn!("memory of process {}: {error:#}", self.pid)).ok()?
        });
        InstanceReport { pid: self.pid, restarts: self.restarts, pss_bytes, ..InstanceReport::of(part) }
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
        match process.receive().with_context(|| format!("instance {}", orders.instance))? {
            FromWorker::Ready => Ok(process),
            other => bail!("instance {}: unexpected answer {other:?}", orders.instance),
        }
    }

    /// Bytes of its memory, if its system tells.
    fn memory(&mut self) -> Result<Option<u64>> {
        self.send(&ToWorker::Memory)?;
        match self.receive()? {
            FromWorker::Memory(bytes) => Ok(bytes),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    fn send(&mut self, message: &ToWorker) -> Result<()> {
        let mut line = serde_json::to_string(message)?;
        line.push('\n');
        let input = self.input.as_mut().context("the process was told to end")?;
        input.write_all(line.as_bytes()).context("it takes no more prompts")
    }

    /// Its next answer.
    ///
    /// # Errors
    /// [`OfProcess`]: it says that something cannot be done. Else it died, or does not make sense.
    fn receive(&mut self) -> Result<FromWorker> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("it cannot be heard")?;
        if line.is_empty() {
            bail!("it ended before its work was done");
        }
        match serde_json::from_str(&line).context("it answers nonsense")? {
            FromWorker::Failed { why, code } => Err(OfProcess { why, code }.into()),
            other => Ok(other),
        }
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
