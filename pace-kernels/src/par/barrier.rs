//! How a region starts and ends: one caller hands a job to all workers and waits until the last one
//! has finished it.
//!
//! The caller publishes a job by an epoch counter, and the workers count themselves off. Either side
//! spins for a bounded time and then parks. "Sleep or wake" is decided as by Dekker: the sleeper says
//! that it sleeps and then looks once more; the waker makes true what is waited for and then looks
//! whether anybody sleeps. A sequentially consistent fence between the two steps of either side sees to
//! it that at least one of them notices the other. Flags are only ever cleared by the thread that
//! sleeps, so that a late waker can wake it once too often but never unsubscribe it.
//!
//! The tests compile this file against loom and walk through all interleavings.

use std::time::Duration;

use super::sync::{
    AtomicBool, AtomicUsize, Mutex, MutexGuard, Ordering, PoisonError, Slot, Thread, current, fence, park,
    spin_until,
};

/// The barrier of one caller at a time and a fixed number of workers. `J` is what a region runs.
pub(super) struct Barrier<J> {
    /// Counts regions; a change tells the workers to take `job`.
    epoch: Padded<AtomicUsize>,
    /// Workers that have finished the current region.
    finished: Padded<AtomicUsize>,
    /// For the caller and each worker, whether it sleeps or is about to.
    asleep: Box<[Padded<AtomicBool>]>,
    /// `None` ends the workers.
    job: Slot<Option<J>>,
    /// The thread that sleeps until all workers have finished.
    caller: Mutex<Option<Thread>>,
    spin: Duration,
}

// SAFETY: `job` is written by the one caller while no worker is in a region, and read by workers
// between the change of the epoch that follows the write and their count in `finished`, which the
// caller waits for. Everything else is Sync by itself.
unsafe impl<J: Send> Sync for Barrier<J> {}

impl<J: Copy> Barrier<J> {
    /// `spin` is how long either side looks before it sleeps.
    pub(super) fn new(workers: usize, spin: Duration) -> Self {
        Self {
            epoch: Padded(AtomicUsize::new(0)),
            finished: Padded(AtomicUsize::new(0)),
            asleep: (0..=workers).map(|_| Padded(AtomicBool::new(false))).collect(),
            job: Slot::new(None),
            caller: Mutex::new(None),
            spin,
        }
    }

    /// Starts a region, or with `None` ends the workers. `workers` are all of them, in order; those that
    /// sleep are woken.
    ///
    /// # Safety
    /// The workers have finished the region before ([`wait`](Self::wait) has returned), there is one
    /// caller at a time, and `job` may be used until `wait` returns.
    pub(super) unsafe fn start<'t>(&self, job: Option<J>, workers: impl Iterator<Item = &'t Thread>) {
        // SAFETY: the workers are between two regions, where they do not look at the job.
        unsafe { self.job.set(job) };
        self.finished.0.store(0, Ordering::Relaxed);
        let epoch = self.epoch.0.load(Ordering::Relaxed).wrapping_add(1);
        self.epoch.0.store(epoch, Ordering::Release);
        fence(Ordering::SeqCst);
        for (worker, asleep) in workers.zip(&self.asleep[1..]) {
            if asleep.0.load(Ordering::Acquire) {
                worker.unpark();
            }
        }
    }

    /// Returns when all workers have finished the region.
    pub(super) fn wait(&self) {
        let workers = self.asleep.len() - 1;
        let done = || self.finished.0.load(Ordering::Acquire) == workers;
        if spin_until(self.spin, done) {
            return;
        }
        *lock(&self.caller) = Some(current());
        sleep_until(&self.asleep[0].0, done);
    }

    /// Waits for the next region; `seen` counts the regions that this worker has taken part in, from 0. The
    /// job, or `None` at the end. Worker `member` is one of `1..=workers`.
    pub(super) fn next(&self, member: usize, seen: &mut usize) -> Option<J> {
        let started = || self.epoch.0.load(Ordering::Acquire) != *seen;
        if !spin_until(self.spin, started) {
            sleep_until(&self.asleep[member].0, started);
        }
        // A region waits for every worker, so exactly one has started.
        *seen = seen.wrapping_add(1);
        // SAFETY: the epoch has changed, so the job was written before and is not written again until
        // this worker has finished.
        unsafe { self.job.get() }
    }

    /// Says that this worker has finished the region.
    pub(super) fn finish(&self) {
        let workers = self.asleep.len() - 1;
        if self.finished.0.fetch_add(1, Ordering::AcqRel) + 1 != workers {
            return;
        }
        fence(Ordering::SeqCst);
        if self.asleep[0].0.load(Ordering::Acquire) {
            // The lock is not held while waking: the woken thread may take it at once.
            let caller = lock(&self.caller).clone();
            if let Some(caller) = caller {
                caller.unpark();
            }
        }
    }
}

/// Sleeps until `done`. The other side makes it true, passes a fence, and unparks if `asleep` is set.
fn sleep_until(asleep: &AtomicBool, done: impl Fn() -> bool) {
    asleep.store(true, Ordering::Release);
    fence(Ordering::SeqCst);
    while !done() {
        park();
    }
    asleep.store(false, Ordering::Relaxed);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while the lock is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value with cache lines of its own (two, because the prefetcher fetches pairs).
#[repr(align(128))]
struct Padded<T>(T);
