//! Generated kernels by key, up to a number and a size.

use std::collections::HashMap;
use std::sync::Arc;

use super::key::KernelKey;
use super::{JitCapacity, JitEntry, JitError, Kernel};

pub(super) struct Cache {
    capacity: JitCapacity,
    entries: HashMap<KernelKey, Entry>,
    /// Bytes that the entries take.
    bytes: usize,
    /// Counts uses.
    clock: u64,
}

struct Entry {
    kernel: Arc<Kernel>,
    last_use: u64,
}

impl Cache {
    pub(super) fn new(capacity: JitCapacity) -> Self {
        Self { capacity, entries: HashMap::new(), bytes: 0, clock: 0 }
    }

    /// The kernel of a key, made by `generate` if it is not there.
    pub(super) fn get_or_insert(
        &mut self,
        key: &KernelKey,
        generate: impl FnOnce() -> Result<Kernel, JitError>,
    ) -> Result<Arc<Kernel>, JitError> {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(key) {
            entry.last_use = self.clock;
            return Ok(Arc::clone(&entry.kernel));
        }
        let kernel = Arc::new(generate()?);
        self.make_room(kernel.code.mapped());
        self.bytes += kernel.code.mapped();
        self.entries.insert(*key, Entry { kernel: Arc::clone(&kernel), last_use: self.clock });
        Ok(kernel)
    }

    /// The kernel of a key, if it is there; this does not count as a use.
    pub(super) fn find(&self, key: &KernelKey) -> Option<Arc<Kernel>> {
        self.entries.get(key).map(|entry| Arc::clone(&entry.kernel))
    }

    pub(super) fn list(&self) -> Vec<JitEntry> {
        let mut list: Vec<_> = self
            .entries
            .values()
            .map(|Entry { kernel, .. }| JitEntry {
                name: kernel.name.clone(),
                bytes: kernel.code.bytes().len(),
            })
            .collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// Drops kernels, the one used longest ago first, until one of `bytes` bytes fits. The newest
    /// kernel is kept even if it alone exceeds the capacity: it is about to run.
    fn make_room(&mut self, bytes: usize) {
        while !self.entries.is_empty()
            && (self.entries.len() >= self.capacity.kernels || self.bytes + bytes > self.capacity.bytes)
        {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last_use).map(|(key, _)| *key);
            let Some(entry) = oldest.and_then(|key| self.entries.remove(&key)) else { return };
            self.bytes -= entry.kernel.code.mapped();
        }
    }
}
