//! `Linear` by every backend it has: one row (decode), a few (batch) and many (prefill).

// The harness's macros make undocumented items.
#![allow(missing_docs)]

use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pace_benches::{Bench, check, numbers};
use pace_kernels::{ActMut, ActRef, MatMut, MatRef, PackSpec, PackedWeights, WeightFormat};
use pace_ops::{BuildCx, Linear, OpDType, OpShape, Operator};

/// (rows, inputs, outputs)
const SHAPES: [(usize, usize, usize); 4] =
    [(1, 2048, 8192), (4, 2048, 8192), (16, 2048, 8192), (512, 2048, 2048)];

const FORMATS: [WeightFormat; 6] = [
    WeightFormat::F32,
    WeightFormat::F16,
    WeightFormat::Bf16,
    WeightFormat::Int8RotatedGroup,
    WeightFormat::Int4(32),
    WeightFormat::Mxfp4,
];

fn pack(bench: &Bench, spec: PackSpec, weights: &[f32], n: usize, k: usize) -> Arc<PackedWeights> {
    let packed = PackedWeights::pack(spec, n, k, &bench.cx().par, |rows, out| {
        out.copy_from_slice(&weights[rows.start * k..rows.end * k]);
        Ok::<(), std::convert::Infallible>(())
    });
    Arc::new(packed.expect("the bench's weights fit the memory"))
}

/// Row 0 of the product in f64, with the weights as they are stored.
fn reference(bench: &Bench, weights: &PackedWeights, a: &[f32]) -> Vec<f64> {
    let mut row = vec![0.0; weights.k()];
    let dot = |row: &[f32]| row.iter().zip(a).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
    (0..weights.n())
        .map(|i| {
            weights.row(i, &bench.cx().kernels, &mut row);
            dot(&row)
        })
        .collect()
}

fn linear(c: &mut Criterion) {
    let bench = Bench::new();
    let build = BuildCx::new(bench.cx().kernels);
    let mut group = c.benchmark_group("linear");
    for (m, k, n) in SHAPES {
        let (a, w) = (numbers(1, m * k), numbers(2, n * k));
        for format in FORMATS {
            let shape = OpShape::matrix(Operator::Linear, format.into(), n, k);
            // f32 sums; activations rounded to bf16 or to int8 before they are multiplied.
            let tolerance = [1e-5, 1e-2, 4e-2, 4e-2][OpDType::from(format) as usize];
            for &backend in Operator::Linear.backends() {
                if build.resolve(shape, backend.into()).is_err() {
                    continue;
                }
                let packed = pack(&bench, build.pack_spec(shape, backend.into(), format), &w, n, k);
                let op = Linear::new(&build, Arc::clone(&packed), None, backend).expect("it was resolved");
                let mut out = vec![0.0; m * n];
                let run = |out: &mut [f32]| {
                    let (a, out) = (MatRef::new(&a, m, k), MatMut::new(out, m, n));
                    op.forward(&bench.cx(), ActRef::F32(a), ActMut::F32(out));
                };
                run(&mut out);
                check("linear", &out[..n], &reference(&bench, &packed, &a[..k]), tolerance);
                group.throughput(Throughput::Elements((2 * m * k * n) as u64));
                group.bench_function(format!("{backend}/{format}/{m}x{k}x{n}"), |b| b.iter(|| run(&mut out)));
            }
        }
    }
    group.finish();
}

criterion_group!(benches, linear);
criterion_main!(benches);
