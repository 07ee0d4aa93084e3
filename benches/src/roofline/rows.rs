//! Element-wise kernels on rows that the second-level caches hold, and the cost of a region.

use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;

use pace_kernels::{Activation, Unit};

use super::limits::{L2_BYTES, Limits};
use super::{Options, Row};
use crate::paired::{Paired, giga_rate, median, paired};
use crate::{Bench, numbers};

/// Elements of a row: the hidden size of a model of a billion parameters.
const ROW: usize = 2048;
const HEAD_DIM: usize = 64;

/// Rows that fit half of the smallest cache together with what they become.
const ROWS: usize = L2_BYTES / size_of::<f32>() / ROW / 2;

/// Passes over the rows in a sample.
const TIMES: usize = 400;

/// SiLU times up may take so many cycles for 16 elements.
const SILU_CYCLES: f64 = 24.0;

pub(super) fn measure(
    bench: &Bench,
    limits: &Limits<'_>,
    options: &Options,
    progress: &dyn Fn(&str),
    rows: &mut Vec<Row>,
) {
    let kernels = bench.cx().kernels;
    let weight = numbers(3, ROW);
    if options.wants("norm") {
        progress("norm");
        let got = in_cache(bench, limits, options, 2, |x, out| {
            for (x, out) in x.chunks_exact(ROW).zip(out.chunks_exact_mut(ROW)) {
                kernels.rms_norm(x, &weight, 1e-5, out);
            }
        });
        rows.push(Row { m: Some(ROWS), n: Some(ROW), ..Row::new(bench, "norm", "GB/s", got) });
    }
    if options.wants("rope") {
        progress("rope");
        let (cos, sin) = (vec![0.8; HEAD_DIM / 2], vec![0.6; HEAD_DIM / 2]);
        let got = in_cache(bench, limits, options, 2, |_, x| {
            for x in x.chunks_exact_mut(ROW) {
                kernels.rope_half(x, HEAD_DIM, &cos, &sin);
            }
        });
        let row = Row::new(bench, "rope", "GB/s", got);
        rows.push(Row { m: Some(ROWS), n: Some(ROW), head_dim: Some(HEAD_DIM), ..row });
    }
    if options.wants("silu_mul") {
        progress("silu_mul");
        rows.push(silu_mul(bench, limits, options));
    }
    if options.wants("fork_join_us") {
        progress("fork_join_us");
        rows.push(fork_join(bench, options));
    }
}

/// Runs `pass(x, y)` over each thread's own rows; a pass moves `arrays` times the bytes of `y`.
fn in_cache(
    bench: &Bench,
    limits: &Limits<'_>,
    options: &Options,
    arrays: usize,
    pass: impl Fn(&[f32], &mut [f32]) + Sync,
) -> Paired {
    let cx = bench.cx();
    let threads = cx.par.threads();
    let memory: Vec<_> =
        (0..threads).map(|t| Mutex::new((numbers(t as u64, ROWS * ROW), numbers(9, ROWS * ROW)))).collect();
    let bytes = threads * TIMES * arrays * ROWS * ROW * size_of::<f32>();
    let work = || {
        giga_rate(bytes as f64, || {
            cx.par.run(|member| {
                let mut memory = memory[member].lock().expect("no pass panics");
                let (x, y) = &mut *memory;
                for _ in 0..TIMES {
                    pass(black_box(x), black_box(y));
                }
            });
        })
    };
    paired(options.samples, || limits.l2(), work)
}

/// Cycles for 16 elements on one thread in the first-level cache. A cycle is what a 16-lane f32
/// multiply-add takes from registers, which the limit measures beside it.
fn silu_mul(bench: &Bench, limits: &Limits<'_>, options: &Options) -> Row {
    const LEN: usize = 1024;
    const PASSES: usize = 20_000;
    let (gate, up, mut out) = (numbers(1, LEN), numbers(2, LEN), vec![0.0; LEN]);
    let cx = bench.cx();
    let threads = cx.par.threads() as f64;
    // Elements a second, in 1e9, at the target.
    let limit = || limits.peak(Unit::F32) / threads / 32.0 * 16.0 / SILU_CYCLES;
    let work = || {
        giga_rate((LEN * PASSES) as f64, || {
            for _ in 0..PASSES {
                cx.kernels.act_mul(Activation::Silu, black_box(&gate), &up, black_box(&mut out));
            }
        })
    };
    let got = paired(options.samples, limit, work);
    let cycles = Paired { value: SILU_CYCLES / got.fraction, limit: SILU_CYCLES, fraction: got.fraction };
    Row { n: Some(LEN), threads: 1, ..Row::new(bench, "silu_mul", "cycles/16", cycles) }
}

/// Microseconds of a region in which nothing happens.
fn fork_join(bench: &Bench, options: &Options) -> Row {
    const REGIONS: u32 = 20_000;
    let par = bench.cx().par;
    let mut samples: Vec<f64> = (0..options.samples.max(1))
        .map(|_| {
            let start = Instant::now();
            (0..REGIONS).for_each(|_| par.run(|_| ()));
            start.elapsed().as_secs_f64() * 1e6 / f64::from(REGIONS)
        })
        .collect();
    let threads = par.threads();
    Row { kernel: "fork_join_us", threads, value: median(&mut samples), unit: "us", ..Row::default() }
}
