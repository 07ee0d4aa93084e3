//! Every kernel as a fraction of what the hardware gives, measured next to it in time.

mod attention;
pub mod limits;
mod products;
mod rows;

use serde::Serialize;

use self::limits::Limits;
use crate::Bench;
use crate::machine::Machine;
use crate::paired::Paired;

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What it was measured on.
    pub machine: Machine,
    /// The limits, measured once at the start for orientation.
    pub peaks: Peaks,
    /// One row a kernel and shape.
    pub results: Vec<Row>,
}

/// What the hardware gives to all threads together.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peaks {
    /// f32 multiply-adds in registers, GFLOP/s.
    pub f32_gflops: f64,
    /// bf16 dot products in registers, GFLOP/s.
    pub bf16_gflops: f64,
    /// int8 dot products in registers, Gop/s.
    pub int8_gops: f64,
    /// Reading memory that no cache holds, GB/s.
    pub read_gbs: f64,
    /// Reading what the second-level caches hold, GB/s.
    pub l2_gbs: f64,
}

/// A kernel at a shape. What does not apply to it is left out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Rows of activations.
    pub m: Option<usize>,
    /// Inputs.
    pub k: Option<usize>,
    /// Outputs.
    pub n: Option<usize>,
    /// Dimensions of an attention head.
    pub head_dim: Option<usize>,
    /// Tokens that attention sees.
    pub tokens: Option<usize>,
    /// Sequences in the batch.
    pub sequences: Option<usize>,
    /// Threads.
    pub threads: usize,
    /// Median.
    pub value: f64,
    /// Unit of `value` and `paired`.
    pub unit: &'static str,
    /// Median of the limit measured beside it; none for a latency.
    pub paired: Option<f64>,
    /// Median of the fraction of the limit that was reached.
    pub fraction: Option<f64>,
}

impl Row {
    fn new(bench: &Bench, kernel: &'static str, unit: &'static str, got: Paired) -> Self {
        Self {
            kernel,
            threads: bench.cx().par.threads(),
            value: got.value,
            unit,
            paired: Some(got.limit),
            fraction: Some(got.fraction),
            ..Self::default()
        }
    }
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Alternations for each row.
    pub samples: usize,
    /// Names of kernels; none means all.
    pub only: Vec<String>,
}

impl Options {
    fn wants(&self, kernel: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| kernel.starts_with(name.as_str()))
    }
}

/// Names of the kernels, in the order of the report.
pub const KERNELS: [&str; 17] = [
    "gemm_f32",
    "gemm_crate_f32",
    "gemm_bf16",
    "gemm_int8",
    "gemm_int8_g64",
    "gemm_int4",
    "gemv_bf16",
    "gemv_int8",
    "gemv_int8_g64",
    "gemv_int4",
    "skinny_bf16",
    "attn_prefill",
    "attn_decode",
    "norm",
    "rope",
    "silu_mul",
    "fork_join_us",
];

/// Measures what `options` asks for. `progress` hears the name of each row before it is measured.
pub fn run(options: &Options, progress: &dyn Fn(&str)) -> Report {
    let bench = Bench::new();
    let limits = Limits::new(&bench);
    progress("peaks");
    let peaks = limits.peaks();
    let mut results = Vec::new();
    products::measure(&bench, &limits, options, progress, &mut results);
    attention::measure(&bench, &limits, options, progress, &mut results);
    rows::measure(&bench, &limits, options, progress, &mut results);
    Report { machine: Machine::detect(&bench), peaks, results }
}
