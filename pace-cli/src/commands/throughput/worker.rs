//! One process of `throughput --processes`: prompts come as lines of JSON on standard input, answers leave as lines on
//! standard output.

use std::io::{BufRead, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError::{Disconnected, Empty};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, bail};
use pace_kernels::SharedMemory;
use pace_runtime::{Answers, EngineConfig, EngineHandle, ModelFiles, Part, Sharing};
use serde::{Deserialize, Serialize};

use super::report::{Done, pss};
use crate::args::ThroughputArgs;

/// What the parent tells a process when it starts.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Orders {
    pub(super) instance: usize,
    /// How many instances there are.
    pub(super) all: NonZeroUsize,
    /// How many of them have their memory on its nodes.
    pub(super) on_nodes: NonZeroUsize,
    pub(super) cpus: Vec<usize>,
    pub(super) nodes: Vec<usize>,
    /// The file of the packed weights, as an open file that the process inherits.
    pub(super) weights: i32,
    /// How they are packed.
    pub(super) layout: u64,
}

/// What the parent sends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToWorker {
    Prompt {
        index: usize,
        ids: Vec<u32>,
    },
    /// Tell how much memory you take.
    Memory,
}

/// What a process answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromWorker {
    Ready,
    Done(Done),
    Memory(Option<u64>),
    /// What it was asked for cannot be done; nothing follows.
    Failed {
        why: String,
        /// The exit code for that.
        code: u8,
    },
}

pub(super) fn run(
    files: &Arc<ModelFiles>,
    config: EngineConfig,
    args: &ThroughputArgs,
    orders: &str,
) -> Result<()> {
    let orders: Orders = serde_json::from_str(orders).context("--worker")?;
    let result = serve(files, config, args, &orders);
    if let Err(error) = &result {
        // The parent reports it; whether it still listens does not matter here.
        let _ =
            send(&FromWorker::Failed { why: crate::exit::message(error), code: crate::exit::code(error) });
    }
    result
}

fn serve(
    files: &Arc<ModelFiles>,
    mut config: EngineConfig,
    args: &ThroughputArgs,
    orders: &Orders,
) -> Result<()> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", orders.weights));
    config.load.shared = Some(Arc::new(SharedMemory::open(&path).context("the weights of the parent")?));
    let sharing = Sharing { all: orders.all, nodes: orders.on_nodes };
    let part = Part { cpus: orders.cpus.clone(), nodes: orders.nodes.clone() };
    let engine = EngineHandle::start(files, part.configure(&config, sharing), Box::new(|_, _| {}))?;
    if engine.info().weight_layout != orders.layout {
        bail!("this process would pack weights in another way than its parent did");
    }
    send(&FromWorker::Ready)?;
    let messages = read_lines()?;
    let mut answers = Answers::new(orders.instance);
    loop {
        // With nothing to do, the next message is worth waiting for.
        let idle = answers.is_empty();
        match if idle { messages.recv().map_err(|_| Disconnected) } else { messages.try_recv() } {
            Ok(ToWorker::Prompt { index, ids }) => {
                answers.push(index, engine.submit(super::request(files, args, ids)?)?);
            }
            Ok(ToWorker::Memory) => send(&FromWorker::Memory(pss()))?,
            Err(Empty) => {
                for completion in answers.read()? {
                    send(&FromWorker::Done(completion.into()))?;
                }
            }
            // Nobody is there to answer.
            Err(Disconnected) => return Ok(()),
        }
    }
}

fn send(message: &FromWorker) -> Result<()> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())?;
    Ok(out.flush()?)
}

/// Messages of the parent, read on a thread of their own, so that the parent never waits to be read. They end with the
/// parent.
fn read_lines() -> Result<Receiver<ToWorker>> {
    let (messages, received) = channel();
    let read = move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let Ok(message) = serde_json::from_str(&line) else { return };
            if messages.send(message).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("pace-messages".to_owned())
        .spawn(read)
        .context("cannot start a thread")?;
    Ok(received)
}
