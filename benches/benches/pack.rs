//! Packing weights into panels: bytes of f32 source a second, every format.

// The harness's macros make undocumented items.
#![allow(missing_docs)]

use std::convert::Infallible;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pace_benches::{Bench, check, numbers};
use pace_kernels::{PackSpec, PackedWeights, WeightFormat, WeightLayout};

const N: usize = 2048;
const K: usize = 2048;

fn pack(c: &mut Criterion) {
    let bench = Bench::new();
    let cx = bench.cx();
    let w = numbers(1, N * K);
    let mut group = c.benchmark_group("pack");
    group.throughput(Throughput::Bytes((N * K * size_of::<f32>()) as u64));
    for format in WeightFormat::ALL {
        let run = || {
            let spec = PackSpec { format, layout: WeightLayout::PANELS };
            PackedWeights::pack(spec, N, K, &cx.par, |rows, out| {
                out.copy_from_slice(&w[rows.start * K..rows.end * K]);
                Ok::<(), Infallible>(())
            })
            .expect("the bench's weights fit the memory")
        };
        let (packed, mut row) = (run(), vec![0.0; K]);
        packed.row(N - 1, &cx.kernels, &mut row);
        let want: Vec<_> = w[(N - 1) * K..].iter().map(|&w| f64::from(w)).collect();
        // A step of the range, or of what a rotation makes of it; half of the largest distance between E2M1 numbers.
        let tolerance = match format {
            WeightFormat::Mxfp4 => 0.34,
            _ if format.is_4_bit() => 0.15,
            _ if format.is_rotated() => 4e-2,
            _ => 5e-3,
        };
        check("pack", &row, &want, tolerance);
        group.bench_function(format.to_string(), |b| b.iter(run));
    }
    group.finish();
}

criterion_group!(benches, pack);
criterion_main!(benches);
