//! One process of `throughput --processes`: prompts come as lines of JSON on standard input, answers leave as lines on
//! standard output.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, bail};
use pace_kernels::SharedMemory;
use pace_runtime::{Completion, EngineConfig, EngineHandle, ModelFiles, Part, TokenEvent, TokenStream};
use serde::{Deserialize, Serialize};

use super::report::{Done, pss};
use crate::args::ThroughputArgs;

/// What the parent tells a process when it starts.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Orders {
    pub(super) instance: usize,
    /// How many instances there are.
    pub(super) instances: usize,
    pub(super) cpus: Vec<usize>,
    pub(super) node: Option<usize>,
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
    /// Nothing follows.
    Failed(String),
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
        let _ = send(&FromWorker::Failed(crate::exit::message(error)));
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
    let part = Part { cpus: orders.cpus.clone(), node: orders.node };
    let engine = EngineHandle::start(files, part.configure(&config, orders.instances), Box::new(|_, _| {}))?;
    if engine.info().weight_layout != orders.layout {
        bail!("this process would pack weights in another way than its parent did");
    }
    send(&FromWorker::Ready)?;
    let messages = read_lines();
    let mut running: Vec<Running> = Vec::new();
    loop {
        // With nothing to do, the next message is worth waiting for.
        let message = if running.is_empty() { messages.recv().ok() } else { messages.try_recv().ok() };
        match message {
            Some(ToWorker::Prompt { index, ids }) => {
                let stream = engine.submit(super::request(files, args, ids)?)?;
                running.push(Running { index, stream, tokens: Vec::new(), text: String::new() });
            }
            Some(ToWorker::Memory) => send(&FromWorker::Memory(pss()))?,
            None if running.is_empty() => return Ok(()),
            None => step(orders.instance, &mut running)?,
        }
    }
}

struct Running {
    index: usize,
    stream: TokenStream,
    tokens: Vec<u32>,
    text: String,
}

/// Reads one event of every answer.
fn step(instance: usize, running: &mut Vec<Running>) -> Result<()> {
    for i in (0..running.len()).rev() {
        match running[i].stream.next() {
            Some(TokenEvent::Token { id, text }) => {
                running[i].tokens.push(id);
                running[i].text += &text;
            }
            Some(TokenEvent::Finished(finish)) => {
                let Running { index, tokens, text, .. } = running.swap_remove(i);
                let text = text + &finish.text;
                send(&FromWorker::Done(Completion { index, instance, tokens, text, finish }.into()))?;
            }
            Some(TokenEvent::Failed(error)) => return Err(error.into()),
            None => bail!("an answer ended without an end"),
        }
    }
    Ok(())
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
fn read_lines() -> Receiver<ToWorker> {
    let (messages, received) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let Ok(message) = serde_json::from_str(&line) else { return };
            if messages.send(message).is_err() {
                return;
            }
        }
    });
    received
}
