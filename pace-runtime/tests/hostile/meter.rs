//! What a call costs: peak memory by a counting allocator, processor time, and what it leaves behind.

use std::fs;
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use rustix::time::{ClockId, clock_gettime};

/// The system's allocator, counted.
#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

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
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    let start = cpu_time();
    let result = f();
    let cpu = cpu_time().saturating_sub(start);
    (result, Cost { peak: HEAP.peak_usage().saturating_sub(before), cpu })
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
        Self { live: HEAP.current_usage(), files, threads }
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
