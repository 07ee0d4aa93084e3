//! What the benches of PACE share: threads, reproducible numbers, the note on the machine, and the rule that a
//! result is checked before it is timed.

#![forbid(unsafe_code)]

pub mod blocks;
pub mod kv;
pub mod machine;
pub mod mlp;
pub mod paired;
pub mod roofline;
pub mod settings;
pub mod svg;

use std::convert::Infallible;

use pace_kernels::{
    ActQuant, GemmCx, Isa, Kernels, PackSpec, PackedWeights, Pool, Scratch, WeightFormat, WeightLayout,
};
use pace_ops::OpCx;
use pace_runtime::platform::ThreadBudget;

/// Threads, kernels and scratch of one bench, as an engine would set them up.
pub struct Bench {
    pool: Pool,
    kernels: Kernels,
    scratch: Scratch,
}

impl Bench {
    /// All cores that this process may use, at the tier that `PACE_ISA` allows. Prints the note on the machine.
    ///
    /// # Panics
    /// Threads cannot be started, or `PACE_ISA` asks for what the CPU lacks.
    pub fn new() -> Self {
        let budget = ThreadBudget::detect(None);
        let isa = Isa::from_env().unwrap_or_else(|e| panic!("{e}"));
        let kernels = Kernels::new(isa).expect("from_env gives a tier that the CPU has");
        let pool = Pool::new(&budget.cpus).unwrap_or_else(|e| panic!("{e}"));
        pool.pin_caller();
        eprintln!("# {} threads ({}), {isa}", pool.threads(), budget.reason);
        Self { pool, kernels, scratch: Scratch::new() }
    }

    /// What blocked products are called with.
    pub fn gemm_cx(&self, act_quant: ActQuant) -> GemmCx<'_> {
        GemmCx { par: self.pool.par(), scratch: &self.scratch, act_quant }
    }

    /// Random weights `[n, k]` in panels: rows of a short period, so that a large matrix is filled at once.
    ///
    /// # Panics
    /// There is too little memory.
    pub fn panels(&self, format: WeightFormat, n: usize, k: usize) -> PackedWeights {
        let period = numbers(n as u64, k + 97);
        let spec = PackSpec { format, layout: WeightLayout::PANELS };
        let packed = PackedWeights::pack(spec, n, k, &self.pool.par(), |rows, out| {
            for (row, out) in rows.zip(out.chunks_exact_mut(k)) {
                out.copy_from_slice(&period[row % 97..][..k]);
            }
            Ok::<(), Infallible>(())
        });
        packed.expect("the bench's weights fit the memory")
    }

    /// What operators are called with.
    pub fn cx(&self) -> OpCx<'_> {
        OpCx {
            kernels: self.kernels,
            par: self.pool.par(),
            scratch: &self.scratch,
            profile: None,
            inputs: None,
        }
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

/// Numbers in [-1, 1) that depend on `seed` and index only.
pub fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Panics unless `got` is within `tolerance` of `want`, relative to the largest expected magnitude.
///
/// # Panics
/// The result is wrong: there is nothing to time.
pub fn check(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    let scale = want.iter().fold(1e-30, |m: f64, w| m.max(w.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*g) - w).abs() / scale;
        assert!(off <= tolerance, "{what}: element {i} is {g}, expected {w}");
    }
}
