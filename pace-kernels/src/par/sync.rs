//! What the barrier is made of. The model tests put loom's counterparts in this module's place.

use std::cell::UnsafeCell;
use std::time::{Duration, Instant};

pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
pub(super) use std::sync::{Mutex, MutexGuard, PoisonError};
pub(super) use std::thread::{Thread, current, park};

/// A value that threads hand over to each other.
pub(super) struct Slot<T>(UnsafeCell<T>);

impl<T: Copy> Slot<T> {
    pub(super) fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// # Safety
    /// No other access happens at the same time.
    pub(super) unsafe fn set(&self, value: T) {
        // SAFETY: passed on to the caller.
        unsafe { *self.0.get() = value }
    }

    /// # Safety
    /// No write happens at the same time.
    pub(super) unsafe fn get(&self) -> T {
        // SAFETY: passed on to the caller.
        unsafe { *self.0.get() }
    }
}

/// Spins until `done`, or returns false after the time is up.
pub(super) fn spin_until(limit: Duration, done: impl Fn() -> bool) -> bool {
    /// Looks between two readings of the clock, about 1 to 3 microseconds apart.
    const LOOKS: usize = 64;
    let mut start = None;
    loop {
        for _ in 0..LOOKS {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        let now = Instant::now();
        if now.duration_since(*start.get_or_insert(now)) >= limit {
            return false;
        }
    }
}
