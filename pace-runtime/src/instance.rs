//! [`Instances`]: several engines on parts of one machine, which share the packed weights and one queue of work.
//!
//! A part that stays on one NUMA node and behind one L3 cache neither fetches weights over the link between sockets nor
//! waits for cores on the other side of it. Engines on the same node share one copy of the packed weights, so that an
//! instance more costs its KV caches and scratch memory only.
//!
//! ```
//! use std::sync::Arc;
//!
//! use pace_runtime::platform::topology::Topology;
//! use pace_runtime::{DType, EngineConfig, Instances, ModelFiles, ModelRef, Request, partition};
//!
//! # fn main() -> Result<(), pace_runtime::RuntimeError> {
//! let files = Arc::new(ModelFiles::open(&ModelRef::parse("random:tiny")?)?);
//! let config = EngineConfig::detect(DType::Bf16, None)?;
//! let parts = partition(&Topology::detect(), &config.cpus, 1)?;
//! let instances = Instances::start(&files, &config, &parts, || Box::new(|_, _| {}))?;
//! let request = |id| Request { prompt: vec![id], max_new_tokens: 8, ..Request::default() };
//! instances.run((0..6).map(request).collect(), |answer| {
//!     println!("{}: {:?} by instance {}", answer.index, answer.tokens, answer.instance);
//! })?;
//! # Ok(())
//! # }
//! ```

mod partition;
mod queue;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

pub use self::partition::{Part, PartitionError, partition};
pub use self::queue::WorkQueue;
use crate::{
    EngineConfig, EngineHandle, Finish, LoadProgress, ModelFiles, Request, RuntimeError, TokenEvent,
};

/// Engines that answer from one queue.
pub struct Instances {
    engines: Vec<EngineHandle>,
}

/// The answer to one of several requests.
#[derive(Debug)]
pub struct Completion {
    /// Which request, counted from 0.
    pub index: usize,
    /// Which instance answered it.
    pub instance: usize,
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// Their text, if the model has a tokenizer.
    pub text: String,
    /// How it ended and what it took.
    pub finish: Finish,
}

impl Instances {
    /// Starts an engine on each part. The weights are loaded once for each NUMA node, by the first engine there; `progress`
    /// makes what each loading reports to.
    ///
    /// # Errors
    /// There are no parts; the model cannot be loaded, or does not fit the memory.
    pub fn start(
        files: &Arc<ModelFiles>,
        config: &EngineConfig,
        parts: &[Part],
        mut progress: impl FnMut() -> LoadProgress,
    ) -> Result<Self, RuntimeError> {
        if parts.is_empty() {
            return Err(PartitionError::NoInstances.into());
        }
        let mut by_node: BTreeMap<Option<usize>, EngineHandle> = BTreeMap::new();
        let mut engines = Vec::with_capacity(parts.len());
        for part in parts {
            let own = part.configure(config, parts.len());
            let engine = match by_node.get(&part.node) {
                Some(first) => first.share(own)?,
                None => EngineHandle::start(files, own, progress())?,
            };
            by_node.entry(part.node).or_insert_with(|| engine.clone());
            engines.push(engine);
        }
        Ok(Self { engines })
    }

    /// The engines, in the order of their parts.
    pub fn engines(&self) -> &[EngineHandle] {
        &self.engines
    }

    /// Answers every request. Each engine takes the oldest that waits as soon as it has a place, so that a slow one gets
    /// fewer; `done` is called with each answer as it is complete, from the instances' threads, one at a time.
    ///
    /// # Errors
    /// The first request that failed; those that had not begun by then are dropped.
    pub fn run(
        &self,
        requests: Vec<Request>,
        done: impl FnMut(Completion) + Send,
    ) -> Result<(), RuntimeError> {
        let queue = WorkQueue::new(requests);
        // Places for an even share: fewer would leave the memory's bandwidth to few sequences, more would let the first
        // engine take what the others then lack.
        let places = queue.len().div_ceil(self.engines.len()).max(1);
        let (done, failed) = (Mutex::new(done), Mutex::new(None));
        std::thread::scope(|scope| {
            for (instance, engine) in self.engines.iter().enumerate() {
                let (queue, done, failed) = (&queue, &done, &failed);
                scope.spawn(move || {
                    let report =
                        |completion| (done.lock().unwrap_or_else(PoisonError::into_inner))(completion);
                    if let Err(error) = drain(instance, engine, places, queue, report) {
                        queue.clear();
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                });
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// A request that an engine works on.
struct Running {
    stream: crate::TokenStream,
    index: usize,
    tokens: Vec<u32>,
    text: String,
}

/// Keeps `places` requests of the queue running until none is left.
fn drain(
    instance: usize,
    engine: &EngineHandle,
    places: usize,
    queue: &WorkQueue<Request>,
    mut done: impl FnMut(Completion),
) -> Result<(), RuntimeError> {
    let mut running: Vec<Running> = Vec::new();
    loop {
        while running.len() < places
            && let Some((index, request)) = queue.take()
        {
            let stream = engine.submit(request)?;
            running.push(Running { stream, index, tokens: Vec::new(), text: String::new() });
        }
        if running.is_empty() {
            return Ok(());
        }
        // Sequences that run together make a token each in every step, so reading them in turn keeps up with all.
        for i in (0..running.len()).rev() {
            match running[i].stream.next() {
                Some(TokenEvent::Token { id, text }) => {
                    running[i].tokens.push(id);
                    running[i].text += &text;
                }
                Some(TokenEvent::Finished(finish)) => {
                    let Running { index, tokens, text, .. } = running.swap_remove(i);
                    queue.done();
                    done(Completion { index, instance, tokens, text: text + &finish.text, finish });
                }
                Some(TokenEvent::Failed(error)) => return Err(error),
                None => return Err(RuntimeError::Stopped),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, ModelRef};

    #[test]
    fn instances_answer_every_request_once_and_as_one_engine_does() {
        let files = Arc::new(ModelFiles::open(&ModelRef::Random("tiny".to_owned())).unwrap());
        let config = EngineConfig { pin: false, ..EngineConfig::detect(DType::Bf16, Some(2)).unwrap() };
        let parts = [0, 1, 0].map(|cpu| Part { cpus: vec![cpu], node: Some(0) });
        let instances = Instances::start(&files, &config, &parts, || Box::new(|_, _| {})).unwrap();
        assert_eq!(instances.engines().iter().map(|e| e.info().threads).collect::<Vec<_>>(), [1, 1, 1]);
        let requests = || -> Vec<Request> {
            let request =
                |i: u32| Request { prompt: vec![i; 7 + i as usize], max_new_tokens: 9, ..Request::default() };
            (0..20).map(request).collect()
        };
        let mut answers = vec![Vec::new(); 20];
        instances
            .run(requests(), |c| {
                assert!(answers[c.index].is_empty() && c.instance < 3);
                answers[c.index] = c.tokens;
            })
            .unwrap();
        let alone = EngineHandle::start(&files, config, Box::new(|_, _| {})).unwrap();
        for (i, request) in requests().into_iter().enumerate() {
            let token = |e| if let TokenEvent::Token { id, .. } = e { Some(id) } else { None };
            let ids: Vec<u32> = alone.submit(request).unwrap().filter_map(token).collect();
            assert_eq!(answers[i], ids, "{i}");
        }
    }

    #[test]
    fn a_bad_request_ends_the_run_with_its_error() {
        let files = Arc::new(ModelFiles::open(&ModelRef::Random("tiny".to_owned())).unwrap());
        let config = EngineConfig { pin: false, ..EngineConfig::detect(DType::Bf16, Some(1)).unwrap() };
        let parts = [Part { cpus: vec![0], node: None }];
        let instances = Instances::start(&files, &config, &parts, || Box::new(|_, _| {})).unwrap();
        let error = instances.run(vec![Request::default()], |_| {}).unwrap_err();
        assert!(matches!(error, RuntimeError::EmptyPrompt), "{error}");
        assert!(Instances::start(&files, &config, &[], || Box::new(|_, _| {})).is_err());
    }
}
