//! [`Cache`]: the few matrices that are being read, each loaded once by whichever thread is first.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ModelError;

/// The latest matrices, by their positions among the tensors.
#[derive(Debug)]
pub(super) struct Cache<T> {
    entries: Mutex<VecDeque<Arc<Entry<T>>>>,
}

/// Matrices that are kept: as many as are fused into one, at most.
const MOST: usize = 3;

#[derive(Debug)]
struct Entry<T> {
    at: usize,
    value: Mutex<Option<Arc<T>>>,
    rows_read: AtomicUsize,
}

impl<T> Cache<T> {
    /// The matrix at `at`, which `load` reads if it is not here. Threads that want the same one wait for it.
    ///
    /// # Errors
    /// Those of `load`.
    pub(super) fn get(
        &self,
        at: usize,
        load: impl FnOnce() -> Result<T, ModelError>,
    ) -> Result<Arc<T>, ModelError> {
        let entry = self.entry(at);
        let mut value = lock(&entry.value);
        if let Some(value) = &*value {
            return Ok(Arc::clone(value));
        }
        let loaded = Arc::new(load()?);
        *value = Some(Arc::clone(&loaded));
        Ok(loaded)
    }

    /// Notes that `rows` of the `all` rows of a matrix have been read: with the last of them, it is forgotten.
    pub(super) fn count(&self, at: usize, rows: usize, all: usize) {
        let mut entries = lock(&self.entries);
        entries.retain(|entry| {
            entry.at != at || entry.rows_read.fetch_add(rows, Ordering::Relaxed) + rows < all
        });
    }

    fn entry(&self, at: usize) -> Arc<Entry<T>> {
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.iter().find(|entry| entry.at == at) {
            return Arc::clone(entry);
        }
        if entries.len() == MOST {
            entries.pop_front();
        }
        let entry = Arc::new(Entry { at, value: Mutex::new(None), rows_read: AtomicUsize::new(0) });
        entries.push_back(Arc::clone(&entry));
        entry
    }
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self { entries: Mutex::new(VecDeque::new()) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_matrix_is_loaded_once_until_its_last_row_was_read() {
        let (cache, loads) = (Cache::default(), AtomicUsize::new(0));
        let get = |at: usize| {
            let load = || Ok(loads.fetch_add(1, Ordering::Relaxed) + 100 * at);
            cache.get(at, load).unwrap()
        };
        std::thread::scope(|scope| {
            let reader = || (0..4).for_each(|_| assert_eq!(*get(1), 100));
            (0..4).for_each(|_| drop(scope.spawn(reader)));
        });
        assert_eq!(loads.load(Ordering::Relaxed), 1);
        cache.count(1, 6, 10);
        assert_eq!((*get(1), *get(2)), (100, 201));
        cache.count(1, 4, 10);
        assert_eq!((*get(2), *get(1)), (201, 102));
    }

    #[test]
    fn the_oldest_of_four_is_dropped_and_a_failure_is_not_kept() {
        let cache = Cache::default();
        let wrong = || ModelError::file(std::path::Path::new("w"), "is damaged");
        assert!(cache.get(0, || Err(wrong())).is_err());
        let first = Arc::downgrade(&cache.get(0, || Ok(vec![7])).unwrap());
        for at in 1..MOST {
            cache.get(at, || Ok(Vec::new())).unwrap();
        }
        assert!(first.upgrade().is_some());
        cache.get(MOST, || Ok(Vec::new())).unwrap();
        assert!(first.upgrade().is_none());
    }
}
