//! The limits: registers, memory, caches.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use pace_kernels::{Buffer, MatMut, Placement, Unit};

use super::Peaks;
use crate::Bench;
use crate::machine::l3_bytes;
use crate::paired::{giga_rate, median};

/// Bytes to read for the bandwidth of memory, at least.
const MEMORY_BYTES: usize = 256 << 20;

/// Bytes of each thread's part when the second-level cache is read: half of the smallest there is.
pub const L2_BYTES: usize = 256 << 10;

/// Bytes of which no cache holds a part that counts: 4 times all last-level caches.
pub(super) fn memory_bytes() -> usize {
    MEMORY_BYTES.max(4 * l3_bytes().unwrap_or(0))
}

/// What limits are measured with.
pub struct Limits<'a> {
    bench: &'a Bench,
    memory: Buffer,
}

impl<'a> Limits<'a> {
    /// Allocates and touches the memory.
    ///
    /// # Panics
    /// There is too little memory.
    pub fn new(bench: &'a Bench) -> Self {
        let bytes = memory_bytes();
        let mut memory = Buffer::zeroed(bytes, Placement::default()).unwrap_or_else(|e| panic!("{e}"));
        let par = bench.cx().par;
        let part = bytes / size_of::<f32>() / par.threads();
        let parts: Vec<usize> = (0..=par.threads()).collect();
        // Each thread first touches the part that it reads.
        let data = MatMut::new(memory.as_mut_slice::<f32>(), par.threads(), part);
        par.grid(data, &parts, part, &mut [], |_, _, _, mut part| part.row_mut(0).fill(1.0));
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
