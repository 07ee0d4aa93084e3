//! `Attention` by every backend it has: a decode step over a long cache, and a prefill.

// The harness's macros make undocumented items.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pace_benches::blocks::Layers;
use pace_benches::{Bench, check, numbers};
use pace_kernels::{
    ActMut, ActRef, AttentionParams, AttentionPlan as KernelPlan, AttentionSegment, DType, Isa, KV_BLOCK,
    Kernels, KvLayout, MatMut, MatRef,
};
use pace_ops::{Attention, AttentionPlan, AttentionShape, BuildCx, KvBatch, KvCache, Operator};
use pace_runtime::kv_cache::{KvCacheKind, KvShape};

const SHAPE: AttentionShape = AttentionShape { n_heads: 32, n_kv_heads: 8, head_dim: 64, scale: 0.125 };

/// A batch of one sequence.
struct One(Box<dyn KvCache>);

impl KvBatch for One {
    fn cache(&self, _: usize) -> &dyn KvCache {
        self.0.as_ref()
    }
}

/// Key or value row of a token: the same for every head.
fn row(token: usize, which: u64) -> Vec<f32> {
    numbers(token as u64 * 2 + which + 1, SHAPE.head_dim)
}

fn cache(tokens: usize) -> One {
    let layout = KvLayout::new(DType::F32, SHAPE.head_dim);
    let shape = KvShape { n_layers: 1, n_kv_heads: SHAPE.n_kv_heads, layout, max_len: tokens };
    let mut cache = KvCacheKind::default().build(shape).expect("the bench's cache fits the memory");
    cache.reserve(tokens).expect("the bench's cache fits the memory");
    for head in 0..SHAPE.n_kv_heads {
        for t in 0..tokens {
            let block = cache.block_mut(0, head, t / KV_BLOCK);
            layout.append(block, t % KV_BLOCK, &row(t, 0), &row(t, 1));
        }
    }
    cache.set_len(tokens);
    One(cache)
}

/// What the query `q` of one head attends to among the first `visible` tokens, in f64.
fn reference(q: &[f32], visible: usize) -> Vec<f64> {
    let dot = |k: &[f32]| q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let scores: Vec<f64> = (0..visible).map(|t| dot(&row(t, 0)) * f64::from(SHAPE.scale)).collect();
    let max = scores.iter().copied().fold(f64::MIN, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let mut out = vec![0.0; SHAPE.head_dim];
    for (t, s) in scores.iter().enumerate() {
        let p = (s - max).exp() / sum;
        out.iter_mut().zip(row(t, 1)).for_each(|(o, v)| *o += p * f64::from(v));
    }
    out
}

/// One bench for both: the first one pins the calling thread, and a second one would see one core.
fn all(c: &mut Criterion) {
    let bench = Bench::new();
    attention(c, &bench);
    kernels(c, &bench);
}

fn attention(c: &mut Criterion, bench: &Bench) {
    let cols = SHAPE.n_heads * SHAPE.head_dim;
    let mut group = c.benchmark_group("attention");
    for (name, past, new) in [("decode@2048", 2047, 1), ("prefill512", 0, 512)] {
        let kv = cache(past + new);
        let q = numbers(7, new * cols);
        let mut plan = AttentionPlan::default();
        plan.rebuild(&SHAPE, bench.cx().par.threads(), std::iter::once((past, new)));
        let build = BuildCx::new(bench.cx().kernels);
        for &backend in Operator::Attention.backends() {
            let Ok(op) = Attention::new(&build, SHAPE, DType::F32, backend) else { continue };
            let mut out = vec![0.0; new * cols];
            let run = |out: &mut [f32]| {
                let (q, out) = (MatRef::new(&q, new, cols), MatMut::new(out, new, cols));
                op.forward(&bench.cx(), 0, &plan, &kv, ActRef::F32(q), ActMut::F32(out));
            };
            run(&mut out);
            let last = &q[(new - 1) * cols..][..SHAPE.head_dim];
            let got = &out[(new - 1) * cols..][..SHAPE.head_dim];
            check("attention", got, &reference(last, past + new), 1e-4);
            group.throughput(Throughput::Elements(new as u64));
            group.bench_function(format!("{backend}/f32/{name}"), |b| b.iter(|| run(&mut out)));
        }
    }
    group.finish();
}

/// The kernels themselves: bf16 keys and values of 8 heads, 32 query heads.
fn kernels(c: &mut Criterion, bench: &Bench) {
    let cx = bench.cx();
    let mut group = c.benchmark_group("attention_kernels");
    for (head_dim, past, new) in [(64, 2047, 1), (128, 2047, 1), (64, 0, 512), (128, 0, 512)] {
        let params = AttentionParams::causal(32, 8, head_dim);
        let (kv, cols) = (Layers::new(head_dim, 8, 1, past + new, 0), 32 * head_dim);
        let mut plan = KernelPlan::new();
        let segment = AttentionSegment { position: past, tokens: new };
        plan.rebuild(&params, cx.par.threads(), [segment]);
        let (q, mut out) = (numbers(7, new * cols), vec![0.0; new * cols]);
        let run = |kernels: &Kernels, out: &mut [f32]| {
            let (q, out) = (MatRef::new(&q, new, cols), MatMut::new(out, new, cols));
            kernels.attention(&params, &plan, &kv, ActRef::F32(q), ActMut::F32(out), cx.scratch, &cx.par);
        };
        let scalar = Kernels::new(Isa::Scalar).expect("every CPU has it");
        let mut want = vec![0.0; new * cols];
        run(&scalar, &mut want);
        run(&cx.kernels, &mut out);
        let want: Vec<_> = want.into_iter().map(f64::from).collect();
        check("attention", &out, &want, 1e-2);
        group.throughput(Throughput::Elements(new as u64));
        let name = format!("{}/bf16/head_dim {head_dim}/{new} after {past}", cx.kernels.isa());
        group.bench_function(name, |b| b.iter(|| run(&cx.kernels, &mut out)));
    }
    group.finish();
}

criterion_group!(benches, all);
criterion_main!(benches);
