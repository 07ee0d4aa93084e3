//! The barrier of the pool in every interleaving, by loom: `par/barrier.rs` is compiled a second time,
//! against loom's atomics and threads. loom knows weak memory, so a missing fence or ordering shows even
//! where this CPU would forgive it; a lost wake-up shows as a deadlock, and a job that is read while
//! it is written as a race.

use std::time::Duration;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread::{self, JoinHandle, Thread};

use self::modelled::Barrier;

#[allow(clippy::duplicate_mod)] // Once for the pool and once for the model.
#[path = "../par/barrier.rs"]
mod modelled;

/// loom's counterparts of `par/sync.rs`.
mod sync {
    use std::time::Duration;

    pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    pub(super) use loom::sync::{Mutex, MutexGuard};
    pub(super) use loom::thread::{Thread, current, park};
    pub(super) use std::sync::PoisonError;

    pub(super) struct Slot<T>(loom::cell::UnsafeCell<T>);

    impl<T: Copy> Slot<T> {
        pub(super) fn new(value: T) -> Self {
            Self(loom::cell::UnsafeCell::new(value))
        }

        /// # Safety
        /// No other access happens at the same time; loom checks that.
        pub(super) unsafe fn set(&self, value: T) {
            // SAFETY: passed on to the caller.
            self.0.with_mut(|slot| unsafe { *slot = value });
        }

        /// # Safety
        /// No write happens at the same time; loom checks that.
        pub(super) unsafe fn get(&self) -> T {
            // SAFETY: passed on to the caller.
            self.0.with(|slot| unsafe { *slot })
        }
    }

    /// One look is as good as many: loom tries both outcomes.
    pub(super) fn spin_until(_: Duration, done: impl Fn() -> bool) -> bool {
        done()
    }
}

/// What workers leave behind for the caller, without any order of its own.
struct Seen {
    barrier: Barrier<usize>,
    total: AtomicUsize,
}

fn worker(seen: &Arc<Seen>, member: usize) -> JoinHandle<()> {
    let seen = Arc::clone(seen);
    thread::spawn(move || {
        let mut regions = 0;
        while let Some(job) = seen.barrier.next(member, &mut regions) {
            seen.total.fetch_add(job * member, Ordering::Relaxed);
            seen.barrier.finish();
        }
    })
}

/// Runs `regions` regions on `workers` workers, each of which must have done its part when one ends.
fn model(workers: usize, regions: usize, preemptions: Option<usize>) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(move || {
        let seen =
            Arc::new(Seen { barrier: Barrier::new(workers, Duration::ZERO), total: AtomicUsize::new(0) });
        // The caller has a thread of its own that waits for nothing else: in loom, waking a thread that
        // waits for another's end would end that wait.
        let workers: Vec<_> = (1..=workers).map(|member| worker(&seen, member)).collect();
        let handles: Vec<_> = workers.iter().map(|worker| worker.thread().clone()).collect();
        let caller = thread::spawn(move || call(&seen, &handles, regions));
        caller.join().unwrap();
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

fn call(seen: &Seen, workers: &[Thread], regions: usize) {
    let members: usize = (1..=workers.len()).sum();
    for region in 1..=regions {
        // SAFETY: this is the only caller, and it waits for the end of each region.
        unsafe { seen.barrier.start(Some(10 * region), workers.iter()) };
        seen.barrier.wait();
        let jobs: usize = (1..=region).map(|region| 10 * region).sum();
        assert_eq!(seen.total.load(Ordering::Relaxed), members * jobs);
    }
    // SAFETY: no region is open.
    unsafe { seen.barrier.start(None, workers.iter()) };
}

#[test]
fn one_worker_in_every_interleaving() {
    model(1, 1, None);
}

#[test]
fn regions_follow_each_other() {
    model(1, 2, Some(3));
}

#[test]
fn two_workers() {
    model(2, 1, Some(2));
}
