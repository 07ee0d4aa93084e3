//! [`EngineMetrics`]: what an engine is doing, at a glance.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::scheduler::KvBudget;

/// A snapshot of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineMetrics {
    /// Requests that wait for their turn.
    pub waiting: usize,
    /// Sequences that run.
    pub running: usize,
    /// Prompt tokens computed so far; those of reused caches do not count.
    pub prompt_tokens: u64,
    /// New tokens made so far.
    pub new_tokens: u64,
    /// Forwards so far.
    pub steps: u64,
    /// Bytes that the KV caches hold now; those of running sequences alone.
    pub kv_bytes: u64,
    /// Bytes set aside for what the KV caches may come to hold, those that callers keep included.
    pub kv_reserved: u64,
    /// Bytes that may be set aside at most.
    pub kv_limit: u64,
}

/// What the engine's thread counts and its handles read.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) waiting: AtomicUsize,
    pub(crate) running: AtomicUsize,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) new_tokens: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) kv_bytes: AtomicU64,
    pub(crate) kv: Arc<KvBudget>,
}

impl Counters {
    /// Nothing yet; the caches may hold `kv_limit` bytes.
    pub(crate) fn new(kv_limit: u64) -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            prompt_tokens: AtomicU64::new(0),
            new_tokens: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            kv_bytes: AtomicU64::new(0),
            kv: Arc::new(KvBudget::new(kv_limit)),
        }
    }

    pub(crate) fn snapshot(&self) -> EngineMetrics {
        let wide = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        EngineMetrics {
            waiting: count(&self.waiting),
            running: count(&self.running),
            prompt_tokens: wide(&self.prompt_tokens),
            new_tokens: wide(&self.new_tokens),
            steps: wide(&self.steps),
            kv_bytes: wide(&self.kv_bytes),
            kv_reserved: self.kv.held(),
            kv_limit: self.kv.limit(),
        }
    }
}
