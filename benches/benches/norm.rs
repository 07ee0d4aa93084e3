//! The element-wise families at the best tier and at the scalar one, over rows that lie in L2.

// The harness's macros make undocumented items.
#![allow(missing_docs)]

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use pace_benches::{Bench, check, numbers};
use pace_kernels::{ActMut, ActRef, Activation, Isa, Kernels, MatMut, MatRef, RowNorm, bf16};

const ROWS: usize = 32;
const COLS: usize = 2048;
const EPS: f32 = 1e-5;

/// The tier of the bench, and the scalar one to compare it with.
fn tiers(bench: &Bench) -> Vec<Kernels> {
    let scalar = Kernels::new(Isa::Scalar).expect("every CPU has it");
    let best = bench.cx().kernels;
    if best.isa() == Isa::Scalar { vec![scalar] } else { vec![best, scalar] }
}

fn mat(x: &[f32]) -> ActRef<'_> {
    ActRef::F32(MatRef::new(x, ROWS, COLS))
}

fn mat_mut(x: &mut [f32]) -> ActMut<'_> {
    ActMut::F32(MatMut::new(x, ROWS, COLS))
}

fn wide(x: &[f32]) -> impl Iterator<Item = f64> + Clone {
    x.iter().map(|&x| f64::from(x))
}

/// RMSNorm of every row, in f64.
fn rms_reference(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let row = |row: &[f32]| {
        let mean = wide(row).map(|x| x * x).sum::<f64>() / COLS as f64;
        let root = (mean + f64::from(EPS)).sqrt();
        wide(row).zip(wide(weight)).map(|(x, w)| x / root * w).collect::<Vec<_>>()
    };
    x.chunks(COLS).flat_map(row).collect()
}

fn bytes(group: &mut BenchmarkGroup<'_, WallTime>, bytes: usize) {
    group.throughput(Throughput::Bytes(bytes as u64));
}

fn norms(c: &mut Criterion, bench: &Bench) {
    let (x, r, weight) = (numbers(1, ROWS * COLS), numbers(2, ROWS * COLS), numbers(3, COLS));
    let sum: Vec<f32> = x.iter().zip(&r).map(|(x, r)| x + r).collect();
    let (expected, expected_sum) = (rms_reference(&x, &weight), rms_reference(&sum, &weight));
    let rms = RowNorm::rms(&weight, EPS);
    let mut group = c.benchmark_group("norm");
    for kernels in tiers(bench) {
        let isa = kernels.isa();
        let mut out = vec![0.0; x.len()];

        kernels.norm(&rms, mat(&x), mat_mut(&mut out));
        check("rms_norm", &out, &expected, 1e-5);
        bytes(&mut group, 8 * x.len());
        group.bench_function(format!("{isa}/rms/f32"), |b| {
            b.iter(|| kernels.norm(&rms, mat(&x), mat_mut(&mut out)));
        });

        let mut stream = x.clone();
        kernels.add_norm(&rms, mat_mut(&mut stream), mat(&r), mat_mut(&mut out));
        check("add_norm", &out, &expected_sum, 1e-5);
        bytes(&mut group, 16 * x.len());
        let zeros = vec![0.0; x.len()];
        group.bench_function(format!("{isa}/add+rms/f32"), |b| {
            b.iter(|| kernels.add_norm(&rms, mat_mut(&mut stream), mat(&zeros), mat_mut(&mut out)));
        });

        let (mut narrow, mut narrow_out) = (vec![bf16::ZERO; x.len()], vec![bf16::ZERO; x.len()]);
        kernels.narrow_bf16(&x, &mut narrow);
        let run = |out: &mut [bf16]| {
            let out = ActMut::Bf16(MatMut::new(out, ROWS, COLS));
            kernels.norm(&rms, ActRef::Bf16(MatRef::new(&narrow, ROWS, COLS)), out);
        };
        run(&mut narrow_out);
        kernels.widen_bf16(&narrow_out, &mut out);
        check("rms_norm of bf16", &out, &expected, 2e-2);
        bytes(&mut group, 4 * x.len());
        group.bench_function(format!("{isa}/rms/bf16"), |b| b.iter(|| run(&mut narrow_out)));
    }
    group.finish();
}

fn quantised(c: &mut Criterion, bench: &Bench) {
    let (x, weight) = (numbers(1, COLS), vec![1.0; COLS]);
    let (mut values, mut scales, mut sums) = (vec![0; COLS], vec![0.0; COLS / 64], vec![0; COLS / 64]);
    let mut scratch = vec![0.0; COLS];
    let mut group = c.benchmark_group("quantise");
    bytes(&mut group, 5 * COLS);
    for kernels in tiers(bench) {
        let isa = kernels.isa();
        kernels.quantize_groups(&x, 64, &mut values, &mut scales, &mut sums);
        let back: Vec<f32> = (0..COLS).map(|i| f32::from(values[i]) * scales[i / 64]).collect();
        check("quantize_groups", &back, &wide(&x).collect::<Vec<_>>(), 5e-3);
        group.bench_function(format!("{isa}/row"), |b| {
            b.iter(|| kernels.quantize_groups(&x, 64, &mut values, &mut scales, &mut sums));
        });
        let norm = RowNorm::rms(&weight, EPS);
        group.bench_function(format!("{isa}/rms+row"), |b| {
            b.iter(|| {
                let x = ActRef::F32(MatRef::new(&x, 1, COLS));
                let (scratch, dtype) = (&mut scratch, pace_kernels::DType::F32);
                kernels.norm_quantize(&norm, x, dtype, 64, scratch, &mut values, &mut scales, &mut sums);
            });
        });
    }
    group.finish();
}

fn rope(c: &mut Criterion, bench: &Bench) {
    const HEAD_DIM: usize = 64;
    let x = numbers(1, ROWS * COLS);
    let angles: Vec<f64> = (0..ROWS * HEAD_DIM / 2).map(|i| 0.01 * i as f64).collect();
    let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
    let sin: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
    let expected: Vec<f64> = (0..COLS)
        .map(|i| {
            let (head, j) = (i / HEAD_DIM * HEAD_DIM, i % (HEAD_DIM / 2));
            let (a, b) = (f64::from(x[head + j]), f64::from(x[head + j + HEAD_DIM / 2]));
            let (s, c) = angles[j].sin_cos();
            if i % HEAD_DIM < HEAD_DIM / 2 { a * c - b * s } else { b * c + a * s }
        })
        .collect();
    let mut group = c.benchmark_group("rope");
    bytes(&mut group, 8 * x.len());
    for kernels in tiers(bench) {
        let mut x = x.clone();
        let mut run = |interleaved: bool| {
            for (i, row) in x.chunks_mut(COLS).enumerate() {
                let part = i * HEAD_DIM / 2..(i + 1) * HEAD_DIM / 2;
                if interleaved {
                    kernels.rope_interleaved(row, HEAD_DIM, &cos[part.clone()], &sin[part]);
                } else {
                    kernels.rope_half(row, HEAD_DIM, &cos[part.clone()], &sin[part]);
                }
            }
        };
        let mut first = numbers(1, COLS);
        kernels.rope_half(&mut first, HEAD_DIM, &cos[..HEAD_DIM / 2], &sin[..HEAD_DIM / 2]);
        check("rope", &first, &expected, 1e-6);
        group.bench_function(format!("{}/half", kernels.isa()), |b| b.iter(|| run(false)));
        group.bench_function(format!("{}/interleaved", kernels.isa()), |b| b.iter(|| run(true)));
    }
    group.finish();
}

fn activations(c: &mut Criterion, bench: &Bench) {
    let (gate, up) = (numbers(1, COLS), numbers(2, COLS));
    let silu: Vec<f64> = wide(&gate).zip(wide(&up)).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    let mut out = vec![0.0; COLS];
    let mut group = c.benchmark_group("activation");
    group.throughput(Throughput::Elements(COLS as u64));
    for kernels in tiers(bench) {
        let isa = kernels.isa();
        kernels.act_mul(Activation::Silu, &gate, &up, &mut out);
        check("silu_mul", &out, &silu, 1e-6);
        for kind in Activation::ALL {
            group.bench_function(format!("{isa}/{kind}*up"), |b| {
                b.iter(|| kernels.act_mul(kind, &gate, &up, &mut out));
            });
        }
        let sum: f64 = wide(&gate).map(f64::exp).sum();
        let expected: Vec<f64> = wide(&gate).map(|x| x.exp() / sum).collect();
        out.copy_from_slice(&gate);
        kernels.softmax(&mut out);
        check("softmax", &out, &expected, 1e-5);
        group.bench_function(format!("{isa}/softmax"), |b| b.iter(|| kernels.softmax(&mut out)));
    }
    group.finish();
}

fn selection(c: &mut Criterion, bench: &Bench) {
    let logits = numbers(5, 128_256);
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    let (mut values, mut indices) = (vec![0.0; 40], vec![0; 40]);
    let mut group = c.benchmark_group("select");
    group.throughput(Throughput::Elements(logits.len() as u64));
    for kernels in tiers(bench) {
        assert_eq!(Some(kernels.argmax(&logits)), best, "argmax");
        assert_eq!(kernels.top_k(&logits, &mut values, &mut indices), 40, "top_k");
        assert!(Some(indices[0] as usize) == best && values.is_sorted_by(|a, b| a >= b), "top_k");
        group.bench_function(format!("{}/argmax", kernels.isa()), |b| b.iter(|| kernels.argmax(&logits)));
        group.bench_function(format!("{}/top_k 40", kernels.isa()), |b| {
            b.iter(|| kernels.top_k(&logits, &mut values, &mut indices));
        });
    }
    group.finish();
}

/// One set of threads for all: a second one would find the caller pinned to a single CPU.
fn all(c: &mut Criterion) {
    let bench = Bench::new();
    norms(c, &bench);
    quantised(c, &bench);
    rope(c, &bench);
    activations(c, &bench);
    selection(c, &bench);
}

criterion_group!(benches, all);
criterion_main!(benches);
