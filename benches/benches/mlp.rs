//! A gated feed-forward layer by every backend: one row (decode), a few (batch) and many (prefill).

// The harness's macros make undocumented items.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pace_benches::mlp::Layer;
use pace_benches::{Bench, check};
use pace_ops::{Backend, BuildCx, OpDType, Operator};

/// (hidden, ffn): Llama-3.2-1B.
const SHAPE: (usize, usize) = (2048, 8192);

fn mlp(c: &mut Criterion) {
    let bench = Bench::new();
    let build = BuildCx::new(bench.cx().kernels);
    let mut group = c.benchmark_group("mlp");
    let mut layer = Layer::new(&bench, &build, SHAPE.0, SHAPE.1, 256);
    let native = layer.build(&build, Backend::Native);
    for rows in [1, 8, 256] {
        let want: Vec<f64> = layer.first_row(&bench, &native, rows).into_iter().map(f64::from).collect();
        for &backend in Operator::Mlp.backends() {
            if backend == Backend::Native || build.check(Operator::Mlp, backend, OpDType::Bf16).is_err() {
                continue; // NATIVE wants its weights in rows: see the bench `linear`.
            }
            let mlp = layer.build(&build, backend);
            check("mlp", &layer.first_row(&bench, &mlp, rows), &want, 1e-2);
            group.throughput(Throughput::Elements(layer.flops(rows) as u64));
            let name = format!("{backend}/bf16/{rows}x{}x{}", SHAPE.0, SHAPE.1);
            group.bench_function(name, |b| b.iter(|| layer.run(&bench, &mlp, rows)));
        }
    }
    group.finish();
}

criterion_group!(benches, mlp);
criterion_main!(benches);
