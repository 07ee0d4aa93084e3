//! The limits: registers, memory, caches.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use pace_kernels::{Buffer, Placement, Unit};

use super::Peaks;
use crate::Bench;
use crate::paired::{giga_rate, median};

/// Bytes to read for the bandwidth of memory: 8 times a large last-level cache.
const MEMORY_BYTES: usize = 256 << 20;

/// Bytes of each thread's part when the second-level cache is read: half of the smallest there is.
pub const L2_BYTES: usize = 256 << 10;

/// What limits are measured with.
pub struct Limits<'a> {
    bench: &'a Bench,
    memory: Buffer,
}

impl<'a> Limits<'a> {
    /// Allocates and touches the memory.
    ///
    /// # Panics
    /// There are no 256 MiB left.
    pub fn new(bench: &'a Bench) -> Self {
        let mut memory = Buffer::zeroed(MEMORY_BYTES, Placement::default()).unwrap_or_else(|e| panic!("{e}"));
        memory.as_mut_slice::<f32>().fill(1.0);
        Self { bench, memory }
    }

    /// Operations a second from registers, in 1e9, all threads together.
    pub fn peak(&self, unit: Unit) -> f64 {
        /// About 2 milliseconds.
        const ROUNDS: usize = 600_000;
        let (cx, done) = (self.bench.cx(), AtomicU64::new(0));
        let seconds = giga_rate(1e9, || {
            cx.par.run(|_| {
                done.fetch_add(cx.kernels.probe_peak(unit, ROUNDS), Ordering::Relaxed);
            });
        });
        done.into_inner() as f64 * seconds / 1e9
    }

    /// GB/s of reading memory front to back, each thread its part.
    pub fn read(&self) -> f64 {
        let cx = self.bench.cx();
        let data = self.memory.as_slice::<f32>();
        let part = data.len() / cx.par.threads();
        giga_rate((part * cx.par.threads() * size_of::<f32>()) as f64, || {
            cx.par.run(|member| {
                black_box(cx.kernels.probe_read(&data[member * part..(member + 1) * part]));
            });
        })
    }

    /// GB/s of reading again and again what fits the second-level caches.
    pub fn l2(&self) -> f64 {
        const TIMES: usize = 400;
        let cx = self.bench.cx();
        let data = self.memory.as_slice::<f32>();
        let part = L2_BYTES / size_of::<f32>();
        giga_rate((cx.par.threads() * L2_BYTES * TIMES) as f64, || {
            cx.par.run(|member| {
                for _ in 0..TIMES {
                    black_box(cx.kernels.probe_read(black_box(&data[member * part..(member + 1) * part])));
                }
            });
        })
    }

    /// Medians of each limit.
    pub fn peaks(&self) -> Peaks {
        let median = |measure: &dyn Fn() -> f64| median(&mut (0..5).map(|_| measure()).collect::<Vec<_>>());
        Peaks {
            f32_gflops: median(&|| self.peak(Unit::F32)),
            bf16_gflops: median(&|| self.peak(Unit::Bf16)),
            int8_gops: median(&|| self.peak(Unit::Int8)),
            read_gbs: median(&|| self.read()),
            l2_gbs: median(&|| self.l2()),
        }
    }
}
