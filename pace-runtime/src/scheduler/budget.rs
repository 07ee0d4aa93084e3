//! [`KvBudget`]: how many bytes the caches of all sequences may come to hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The memory of all KV caches of an engine, those that callers keep after their answers included. What a sequence may
/// come to need is set aside before its first token, so that none fails half-way.
#[derive(Debug)]
pub(crate) struct KvBudget {
    limit: u64,
    held: AtomicU64,
}

/// Bytes set aside for one cache; given back when this is dropped.
#[derive(Debug)]
pub(crate) struct KvLease {
    bytes: u64,
    budget: Arc<KvBudget>,
}

impl KvBudget {
    pub(crate) const fn new(limit: u64) -> Self {
        Self { limit, held: AtomicU64::new(0) }
    }

    /// Bytes at most.
    pub(crate) const fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes set aside.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Sets `bytes` aside; none if that is more than is left.
    pub(crate) fn lease(self: &Arc<Self>, bytes: u64) -> Option<KvLease> {
        let more = |held: u64| held.checked_add(bytes).filter(|&sum| sum <= self.limit);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(KvLease { bytes, budget: Arc::clone(self) })
    }
}

impl Drop for KvLease {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_never_exceed_the_limit_and_come_back() {
        let budget = Arc::new(KvBudget::new(100));
        let first = budget.lease(60).unwrap();
        assert!(budget.lease(41).is_none() && budget.lease(u64::MAX).is_none());
        let second = budget.lease(40).unwrap();
        assert_eq!(budget.held(), 100);
        drop(first);
        assert_eq!(budget.held(), 40);
        drop(second);
        assert_eq!((budget.held(), budget.limit()), (0, 100));
    }
}
