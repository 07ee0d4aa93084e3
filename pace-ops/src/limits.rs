//! [`Limits`]: what the hardware gives, measured on an engine's own threads.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use pace_kernels::{Buffer, Kernels, MatMut, OutOfMemory, Par, Placement, Unit};
use serde::Serialize;

/// The most that all threads together can compute and read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// f32 operations a second; a multiply-add counts as two.
    pub f32_flops: f64,
    /// Operations a second on bf16 pairs that are summed in f32.
    pub bf16_flops: f64,
    /// Operations a second on int8 quads that are summed in i32.
    pub int8_ops: f64,
    /// Bytes a second read from memory.
    pub bytes: f64,
}

impl Limits {
    /// Measures them on `par`: each the median of a few runs, in all some tens of milliseconds and the time to touch
    /// `memory` bytes. Those should be four times all last-level caches or more; with less, caches are measured.
    ///
    /// # Errors
    /// The system refused the memory.
    pub fn measure(kernels: Kernels, par: Par<'_>, memory: usize) -> Result<Self, OutOfMemory> {
        /// About 2 milliseconds with AVX-512.
        const ROUNDS: usize = 600_000;
        let peak = |unit: Unit| {
            median(|| {
                let done = AtomicU64::new(0);
                let start = Instant::now();
                par.run(|_| {
                    done.fetch_add(kernels.probe_peak(unit, ROUNDS), Ordering::Relaxed);
                });
                done.into_inner() as f64 / start.elapsed().as_secs_f64()
            })
        };
        let (f32_flops, bf16_flops, int8_ops) = (peak(Unit::F32), peak(Unit::Bf16), peak(Unit::Int8));
        Ok(Self { f32_flops, bf16_flops, int8_ops, bytes: read(kernels, par, memory)? })
    }

    /// The higher one of each limit.
    #[must_use]
    pub const fn max(self, other: Self) -> Self {
        Self {
            f32_flops: self.f32_flops.max(other.f32_flops),
            bf16_flops: self.bf16_flops.max(other.bf16_flops),
            int8_ops: self.int8_ops.max(other.int8_ops),
            bytes: self.bytes.max(other.bytes),
        }
    }

    /// Operations a second of `unit`.
    pub const fn flops(&self, unit: Unit) -> f64 {
        match unit {
            Unit::F32 => self.f32_flops,
            Unit::Bf16 => self.bf16_flops,
            Unit::Int8 => self.int8_ops,
        }
    }

    /// The least seconds that `flops` operations of `unit` on `bytes` bytes from memory can take.
    pub fn seconds(&self, unit: Unit, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops(unit)).max(bytes / self.bytes)
    }
}

/// Bytes a second of reading `memory` bytes front to back, each thread its part.
fn read(kernels: Kernels, par: Par<'_>, memory: usize) -> Result<f64, OutOfMemory> {
    let threads = par.threads();
    let part = (memory / size_of::<f32>()).div_ceil(threads).max(1);
    let mut buffer = Buffer::zeroed(threads * part * size_of::<f32>(), Placement::default())?;
    let parts: Vec<usize> = (0..=threads).collect();
    let data = MatMut::new(buffer.as_mut_slice::<f32>(), threads, part);
    // A page that was never written to is no memory yet.
    par.grid(data, &parts, part, &mut [], |_, _, _, mut part| part.row_mut(0).fill(1.0));
    let data = buffer.as_slice::<f32>();
    Ok(median(|| {
        let start = Instant::now();
        par.run(|member| {
            black_box(kernels.probe_read(&data[member * part..(member + 1) * part]));
        });
        size_of_val(data) as f64 / start.elapsed().as_secs_f64()
    }))
}

/// The middle one of a few measurements.
fn median(measure: impl Fn() -> f64) -> f64 {
    let mut values: [f64; 5] = std::array::from_fn(|_| measure());
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_computing_and_reading_counts() {
        let limits = Limits { f32_flops: 10.0, bf16_flops: 20.0, int8_ops: 40.0, bytes: 5.0 };
        assert_eq!(limits.seconds(Unit::F32, 100.0, 5.0), 10.0);
        assert_eq!(limits.seconds(Unit::Bf16, 100.0, 5.0), 5.0);
        assert_eq!(limits.seconds(Unit::Int8, 100.0, 50.0), 10.0);
    }

    #[test]
    fn every_limit_is_measured_whatever_the_size() {
        for memory in [0, 1 << 20] {
            let limits = Limits::measure(Kernels::detect(), Par::seq(), memory).unwrap();
            for limit in [limits.f32_flops, limits.bf16_flops, limits.int8_ops, limits.bytes] {
                assert!(limit.is_finite() && limit > 0.0, "{limits:?}");
            }
        }
    }
}
