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

mod answers;
mod partition;
mod queue;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

pub use self::answers::{Answers, Completion};
pub use self::partition::{Part, PartitionError, partition};
pub use self::queue::WorkQueue;
use crate::{Batching, EngineConfig, EngineHandle, LoadProgress, ModelFiles, Request, RuntimeError};

/// Engines that answer from one queue.
pub struct Instances {
    engines: Vec<EngineHandle>,
    batching: Batching,
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
        let mut by_nodes: BTreeMap<&[usize], EngineHandle> = BTreeMap::new();
        let mut engines = Vec::with_capacity(parts.len());
        for part in parts {
            let own = part.configure(config, part.sharing(parts));
            let engine = match by_nodes.get(&*part.nodes) {
                Some(first) => first.share(own)?,
                None => EngineHandle::start(files, own, progress())?,
            };
            by_nodes.entry(&part.nodes).or_insert_with(|| engine.clone());
            engines.push(engine);
        }
        Ok(Self { engines, batching: config.batching })
    }

    /// The engines, in the order of their parts.
    pub fn engines(&self) -> &[EngineHandle] {
        &self.engines
    }

    /// Answers every request. Each engine takes an even share, as far as it runs them at the same time, and then the
    /// oldest that waits as soon as it has a place, so that a slow one gets fewer; `done` is called with each answer as
    /// it is complete, from the instances' threads, one at a time.
    ///
    /// # Errors
    /// A request that no engine could ever answer: none has begun then. Else the first that failed; those that had not
    /// begun by then are dropped.
    pub fn run(
        &self,
        requests: Vec<Request>,
        done: impl FnMut(Completion) + Send,
    ) -> Result<(), RuntimeError> {
        for engine in &self.engines {
            requests.iter().try_for_each(|request| engine.check(request))?;
        }
        let places = self.batching.places(requests.len(), self.engines.len());
        let queue = WorkQueue::new(requests);
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

/// Keeps `places` requests of the queue running until none is left.
fn drain(
    instance: usize,
    engine: &EngineHandle,
    places: usize,
    queue: &WorkQueue<Request>,
    mut done: impl FnMut(Completion),
) -> Result<(), RuntimeError> {
    let mut answers = Answers::new(instance);
    loop {
        while answers.len() < places
            && let Some((index, request)) = queue.take()
        {
            answers.push(index, engine.submit(request)?);
        }
        if answers.is_empty() {
            return Ok(());
        }
        for completion in answers.read()? {
            queue.done();
            done(completion);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_cache::KvShape;
    use crate::{DType, ModelRef, TokenEvent};

    #[test]
    fn instances_answer_every_request_once_and_as_one_engine_does() {
        let files = Arc::new(ModelFiles::open(&ModelRef::Random("tiny".to_owned())).unwrap());
        let config = EngineConfig { pin: false, ..EngineConfig::detect(DType::Bf16, Some(2)).unwrap() };
        let parts = [0, 1, 0].map(|cpu| Part { cpus: vec![cpu], nodes: vec![0] });
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
    fn long_answers_that_wait_for_memory_do_not_wait_for_each_other() {
        let files = Arc::new(ModelFiles::open(&ModelRef::Random("tiny".to_owned())).unwrap());
        let mut config = EngineConfig { pin: false, ..EngineConfig::detect(DType::Bf16, Some(1)).unwrap() };
        let shape = KvShape::new(files.spec(), config.load.kv, 60);
        // Room for one at a time, and more tokens each than may wait to be read.
        config.batching.kv_memory = Some(config.kv_cache.peak_bytes(&shape) as u64);
        let parts = [Part { cpus: vec![0], nodes: vec![0] }];
        let instances = Instances::start(&files, &config, &parts, || Box::new(|_, _| {})).unwrap();
        let request = |i: u32| Request { prompt: vec![i; 10], max_new_tokens: 50, ..Request::default() };
        let mut lengths = Vec::new();
        instances.run((0..6).map(request).collect(), |c| lengths.push(c.tokens.len())).unwrap();
        assert_eq!(lengths, [50; 6]);
        let longer = Request { max_new_tokens: 200, ..request(0) };
        let error = instances.run(vec![request(0), longer], |_| panic!("nothing runs")).unwrap_err();
        assert!(matches!(error, RuntimeError::KvMemory { .. }), "{error}");
    }

    #[test]
    fn a_bad_request_ends_the_run_with_its_error() {
        let files = Arc::new(ModelFiles::open(&ModelRef::Random("tiny".to_owned())).unwrap());
        let config = EngineConfig { pin: false, ..EngineConfig::detect(DType::Bf16, Some(1)).unwrap() };
        let parts = [Part { cpus: vec![0], nodes: vec![0] }];
        let instances = Instances::start(&files, &config, &parts, || Box::new(|_, _| {})).unwrap();
        let error = instances.run(vec![Request::default()], |_| {}).unwrap_err();
        assert!(matches!(error, RuntimeError::EmptyPrompt), "{error}");
        assert!(Instances::start(&files, &config, &[], || Box::new(|_, _| {})).is_err());
    }
}
