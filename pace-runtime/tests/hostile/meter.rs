//! What a call costs: peak memory by a counting allocator, processor time, and what it leaves behind.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The system's allocator, counted.
pub(crate) struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    PEAK.fetch_max(LIVE.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call goes to `System` unchanged; counting touches atomics only and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Counted as if the block moved: both exist for a moment.
        grow(new_size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `ptr` came from `System` with this layout, and the caller keeps the contract of `realloc`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

/// What one call took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Peak of the heap above what it held before, in bytes.
    pub(crate) peak: usize,
    /// Processor time of all threads: it does not count what other programs take.
    pub(crate) cpu: Duration,
}

/// Runs `f` alone in this process and measures it.
pub(crate) fn measure<T>(f: impl FnOnce() -> T) -> (T, Cost) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let start = cpu_time();
    let result = f();
    let cpu = cpu_time().saturating_sub(start);
    (result, Cost { peak: PEAK.load(Relaxed).saturating_sub(before), cpu })
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holdings {
    live: usize,
    files: usize,
    threads: usize,
}

impl Holdings {
    pub(crate) fn now() -> Self {
        let count = |dir: &str| fs::read_dir(dir).expect("a directory of /proc").count();
        let (files, threads) = (count("/proc/self/fd"), count("/proc/self/task"));
        Self { live: LIVE.load(Relaxed), files, threads }
    }

    /// Waits until no more is held than `self`, up to a page for what the test itself keeps. A thread that has
    /// sent its result takes a moment to end.
    pub(crate) fn assert_restored(&self, label: &str) {
        let start = Instant::now();
        loop {
            let now = Self::now();
            let more_memory = now.live > self.live + 4096;
            if !more_memory && now.files <= self.files && now.threads <= self.threads {
                return;
            }
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{label}: left {now:?} behind, before {self:?}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().expect("a clock does not run backwards")
}
