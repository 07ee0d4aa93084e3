//! A fork-join pool.
//!
//! The thread that opens a region is its member 0; each worker is one of the others. How they start
//! together and wait for each other is the barrier's business: a hot region costs well below a
//! microsecond, and an idle engine or a machine with fewer cores than threads costs nothing.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Par;
use super::barrier::Barrier;
use super::float_mode::default_float_mode;

/// A fixed set of threads that run regions together with the thread that calls.
///
/// Two threads may open regions on one pool: the second one waits. Inside a region (of any pool), a
/// nested region runs on the calling thread alone, one member after the other.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    cpus: Vec<usize>,
    region: Mutex<()>,
    /// How much each member's run has been claimed, for [`run_in_runs`](Pool::run_in_runs).
    claims: Box<[Padded<AtomicUsize>]>,
}

/// How a pool behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// How long a member spins for the next region, or for the end of this one, before it sleeps.
    pub spin: Duration,
}

impl Default for PoolOptions {
    /// 50 microseconds: longer than the serial parts of a decode step.
    fn default() -> Self {
        Self { spin: Duration::from_micros(50) }
    }
}

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A pool has at least one member.
    #[error("a thread pool needs at least one thread")]
    NoThreads,
    /// The system refused a thread.
    #[error("cannot start thread {member} of {threads}")]
    Spawn {
        /// The member that could not be started.
        member: usize,
        /// Members in all.
        threads: usize,
        /// What the system said.
        source: io::Error,
    },
}

impl Pool {
    /// One member for each of `cpus`. Each worker is pinned to its CPU, as far as the system allows
    /// (see [`pinned`](Self::pinned)); the caller is not, until [`pin_caller`](Self::pin_caller).
    ///
    /// # Errors
    /// `cpus` is empty, or the system refuses a thread.
    pub fn new(cpus: &[usize]) -> Result<Self, PoolError> {
        Self::with_options(cpus, PoolOptions::default())
    }

    /// As [`new`](Self::new).
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(cpus: &[usize], options: PoolOptions) -> Result<Self, PoolError> {
        Self::start(cpus.len(), cpus.to_vec(), options)
    }

    /// `threads` members that run wherever the system puts them. Workers inherit the affinity of
    /// the thread that makes the pool.
    ///
    /// # Errors
    /// `threads` is 0, or the system refuses a thread.
    pub fn unpinned(threads: usize) -> Result<Self, PoolError> {
        Self::start(threads, Vec::new(), PoolOptions::default())
    }

    /// The handle to pass down.
    pub const fn par(&self) -> Par<'_> {
        Par::on(self)
    }

    /// Number of members, the caller included.
    pub fn threads(&self) -> usize {
        self.claims.len()
    }

    /// Number of members that run on their own CPU.
    pub fn pinned(&self) -> usize {
        self.shared.pinned.load(Ordering::Relaxed)
            + usize::from(self.shared.caller_pinned.load(Ordering::Relaxed))
    }

    /// Pins the calling thread to the first CPU of the pool and says whether that worked. For the
    /// one thread that opens the regions.
    pub fn pin_caller(&self) -> bool {
        let pinned = self.cpus.first().is_some_and(|&cpu| pin_current_thread(cpu));
        if pinned {
            self.shared.caller_pinned.store(true, Ordering::Relaxed);
        }
        pinned
    }

    /// See [`Par::run`].
    pub(super) fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || IN_REGION.get() {
            (0..self.threads()).for_each(f);
        } else {
            self.region(|| {}, f);
        }
    }

    /// Calls `f(member, item)` for every item in `0..n`. Each member starts with its own contiguous
    /// run, front to back, and then helps with the others' runs.
    pub(super) fn run_in_runs(&self, n: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        if self.workers.is_empty() || IN_REGION.get() {
            (0..n).for_each(|item| f(0, item));
            return;
        }
        let threads = self.threads();
        // The product of two small numbers would fit; 128 bits make it certain.
        let border = |member: usize| (member as u128 * n as u128 / threads as u128) as usize;
        let reset = || self.claims.iter().for_each(|claimed| claimed.0.store(0, Ordering::Relaxed));
        self.region(reset, &|member| {
            for owner in (member..threads).chain(0..member) {
                let (start, end) = (border(owner), border(owner + 1));
                loop {
                    let item = start + self.claims[owner].0.fetch_add(1, Ordering::Relaxed);
                    if item >= end {
                        break;
                    }
                    f(member, item);
                }
            }
        });
    }

    fn start(threads: usize, cpus: Vec<usize>, options: PoolOptions) -> Result<Self, PoolError> {
        if threads == 0 {
            return Err(PoolError::NoThreads);
        }
        let shared = Arc::new(Shared::new(threads, options.spin));
        let claims = (0..threads).map(|_| Padded(AtomicUsize::new(0))).collect();
        let mut pool = Self { shared, workers: Vec::new(), cpus, region: Mutex::new(()), claims };
        for member in 1..threads {
            let (shared, cpu) = (Arc::clone(&pool.shared), pool.cpus.get(member).copied());
            let worker = thread::Builder::new()
                .name(format!("pace-{member}"))
                .spawn(move || shared.work(member, cpu))
                .map_err(|source| PoolError::Spawn { member, threads, source })?;
            pool.workers.push(worker);
        }
        // The first region ends when every worker has started, so that `pinned` is final.
        pool.run(&|_| {});
        Ok(pool)
    }

    /// One region: publish, take part, wait, and pass a panic on.
    fn region(&self, prepare: impl FnOnce(), f: &(dyn Fn(usize) + Sync)) {
        let turn = lock(&self.region);
        prepare();
        let job: *const (dyn Fn(usize) + Sync + '_) = f;
        // SAFETY: only the lifetime changes. This function does not return before all workers have
        // finished with the closure, not even by a panic.
        let job = Job(unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), ErasedFn>(job) });
        // SAFETY: the lock lets one caller in at a time, and each waits for the end of its region.
        unsafe { self.shared.barrier.start(Some(job), self.workers.iter().map(JoinHandle::thread)) };
        IN_REGION.set(true);
        let own = catch_unwind(AssertUnwindSafe(|| f(0)));
        IN_REGION.set(false);
        self.shared.barrier.wait();
        let others = lock(&self.shared.panic).take();
        drop(turn);
        if let Some(panic) = own.err().or(others) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: nobody else has the pool any more, so no region is open.
        unsafe { self.shared.barrier.start(None, self.workers.iter().map(JoinHandle::thread)) };
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its regions; there is nothing to hear from it.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).field("cpus", &self.cpus).finish()
    }
}

thread_local! {
    /// Whether this thread is inside a region, where a further one must not wait for the pool.
    static IN_REGION: Cell<bool> = const { Cell::new(false) };
}

/// A value with cache lines of its own (two, because the prefetcher fetches pairs).
#[repr(align(128))]
struct Padded<T>(T);

/// What a region runs, with its lifetime erased; see `Pool::region`.
type ErasedFn = *const (dyn Fn(usize) + Sync);

#[derive(Clone, Copy)]
struct Job(ErasedFn);

// SAFETY: the closure is Sync, so any thread may call it; it lives while the job is used.
unsafe impl Send for Job {}

struct Shared {
    barrier: Barrier<Job>,
    /// The first panic of a worker in this region.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    pinned: AtomicUsize,
    caller_pinned: AtomicBool,
}

impl Shared {
    fn new(threads: usize, spin: Duration) -> Self {
        Self {
            barrier: Barrier::new(threads - 1, spin),
            panic: Mutex::new(None),
            pinned: AtomicUsize::new(0),
            caller_pinned: AtomicBool::new(false),
        }
    }

    /// A worker's life.
    fn work(&self, member: usize, cpu: Option<usize>) {
        IN_REGION.set(true);
        default_float_mode();
        if cpu.is_some_and(pin_current_thread) {
            self.pinned.fetch_add(1, Ordering::Relaxed);
        }
        let mut seen = 0;
        while let Some(Job(job)) = self.barrier.next(member, &mut seen) {
            // SAFETY: the closure outlives the region (see `Pool::region`).
            let job = unsafe { &*job };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(member))) {
                let mut first = lock(&self.panic);
                if first.is_none() {
                    *first = Some(panic);
                } else {
                    // Dropping what somebody panicked with may panic, and then nobody would finish.
                    std::mem::forget(panic);
                }
            }
            self.barrier.finish();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks guard is valid at every moment, so a panic while one is held breaks nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(target_os = "linux")]
fn pin_current_thread(cpu: usize) -> bool {
    use rustix::thread::{CpuSet, sched_setaffinity};
    if cpu >= CpuSet::MAX_CPU {
        return false;
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn pin_current_thread(_cpu: usize) -> bool {
    false
}
