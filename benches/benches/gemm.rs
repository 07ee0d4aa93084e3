//! Blocked products: many rows (`gemm`), one (`gemv`) and a few (`skinny`), every format, beside the
//! `gemm` crate and, on a small shape, the scalar tier.

// The harness's macros make undocumented items.
#![allow(missing_docs)]

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use pace_benches::{Bench, check, numbers};
use pace_kernels::{
    ActMut, ActQuant, ActRef, Epilogue, Isa, Kernels, MatMut, MatRef, PackedWeights, WeightFormat,
};

/// Row 0 in f64, with the weights as they are stored.
fn reference(w: &PackedWeights, a: &[f32]) -> Vec<f64> {
    let (kernels, mut row) = (Kernels::detect(), vec![0.0; w.k()]);
    (0..w.n())
        .map(|i| {
            w.row(i, &kernels, &mut row);
            row.iter().zip(a).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
        })
        .collect()
}

/// Rounding of activations: to bf16, or to int8 in groups or in rows.
const fn tolerance(format: WeightFormat) -> f64 {
    match format {
        WeightFormat::F32 | WeightFormat::F16 => 1e-5,
        WeightFormat::Bf16 => 1e-2,
        _ => 3e-2,
    }
}

fn one(
    group: &mut BenchmarkGroup<'_, WallTime>,
    bench: &Bench,
    kernels: Kernels,
    w: &PackedWeights,
    quant: ActQuant,
    m: usize,
) {
    let (k, n) = (w.k(), w.n());
    let (a, mut c) = (numbers(1, m * k), vec![0.0; m * n]);
    let run = |c: &mut [f32]| {
        let (a, c) = (ActRef::F32(MatRef::new(&a, m, k)), ActMut::F32(MatMut::new(c, m, n)));
        kernels.gemm(&bench.gemm_cx(quant), a, w, c, &Epilogue::default());
    };
    run(&mut c);
    check("gemm", &c[..n], &reference(w, &a[..k]), tolerance(w.format()));
    group.throughput(Throughput::Elements((2 * m * k * n) as u64));
    let name = format!("{}/{}/{quant:?}/{m}x{k}x{n}", kernels.isa(), w.format());
    group.bench_function(name, |b| b.iter(|| run(&mut c)));
}

/// One bench for all: the first one pins the calling thread, and a second one would see one core.
fn all(c: &mut Criterion) {
    let bench = Bench::new();
    products(c, &bench);
    tiers(c, &bench);
    library(c, &bench);
}

fn products(c: &mut Criterion, bench: &Bench) {
    let kernels = bench.cx().kernels;
    let groups: [(&str, &[usize], (usize, usize)); 3] =
        [("gemm", &[512], (2048, 2048)), ("gemv", &[1], (2048, 8192)), ("skinny", &[4, 8, 16], (2048, 8192))];
    for (name, counts, (k, n)) in groups {
        let mut group = c.benchmark_group(name);
        for format in WeightFormat::ALL {
            let w = bench.panels(format, n, k);
            for &m in counts {
                one(&mut group, bench, kernels, &w, ActQuant::Groups, m);
                if format == WeightFormat::Int8 {
                    one(&mut group, bench, kernels, &w, ActQuant::Token, m);
                }
            }
        }
        group.finish();
    }
}

/// Small enough for the scalar tier.
fn tiers(c: &mut Criterion, bench: &Bench) {
    let mut group = c.benchmark_group("gemm_tiers");
    for format in WeightFormat::ALL {
        let w = bench.panels(format, 256, 256);
        for kernels in Isa::supported().filter_map(Kernels::new) {
            one(&mut group, bench, kernels, &w, ActQuant::Groups, 64);
        }
    }
    group.finish();
}

fn library(c: &mut Criterion, bench: &Bench) {
    let (cx, (m, k, n)) = (bench.cx(), (512, 2048, 2048));
    let (a, b, mut out) = (numbers(1, m * k), numbers(2, k * n), vec![0.0; m * n]);
    let (a, b) = (MatRef::new(&a, m, k), MatRef::new(&b, k, n));
    let width = n.div_ceil(cx.par.threads());
    let mut group = c.benchmark_group("gemm_crate");
    group.throughput(Throughput::Elements((2 * m * k * n) as u64));
    let kernels = cx.kernels;
    group.bench_function(format!("f32/{m}x{k}x{n}"), |bencher| {
        bencher.iter(|| {
            cx.par.grid(MatMut::new(&mut out, m, n), &[0, m], width, &mut [], |_, _, part, tile| {
                let cols = part * width..part * width + tile.cols();
                kernels.matmul_nn(a, b.cols_range(cols), tile, false);
            });
        });
    });
    group.finish();
}

criterion_group!(benches, all);
criterion_main!(benches);
