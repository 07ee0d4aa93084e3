//! Every operator by every backend that it has, at every tier, against plain f64 arithmetic.

// Helpers unwrap as tests do.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use pace_kernels::{
    ActBuf, ActRef, Activation, Buffer, DType, Isa, KV_BLOCK, Kernels, KvLayout, KvMut, KvRef, KvRun,
    PackedWeights, Par, Placement, Pool, Scratch, WeightFormat,
};
use pace_ops::{
    Attention, AttentionPlan, AttentionShape, Backend, KvBatch, KvCache, KvError, KvUsage, Linear, Mlp,
    MlpWeights, Norm, OpCx, Operator, OutProjection, QkvProjection, Rope,
};
use proptest::prelude::*;

/// Relative error that bf16 rounding of the result allows, and that f32 sums do.
const fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 8e-3,
        _ => 2e-5,
    }
}

fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    // Multiples of 1/64: exact in bf16, so that a reference need not know how inputs are stored.
    (0..n).map(|_| (next() * 64.0).round() / 64.0).collect()
}

fn pack(par: Par<'_>, format: WeightFormat, w: &[f32], n: usize, k: usize) -> Arc<PackedWeights> {
    let packed = PackedWeights::pack(format, n, k, &par, |rows, out| {
        out.copy_from_slice(&w[rows.start * k..rows.end * k]);
        Ok::<(), std::convert::Infallible>(())
    });
    Arc::new(packed.unwrap())
}

fn act(cx: &OpCx<'_>, dtype: DType, x: &[f32], rows: usize, cols: usize) -> ActBuf {
    let mut buf = ActBuf::new(dtype, cols);
    for (i, row) in x.chunks_exact(cols.max(1)).enumerate().take(rows) {
        match buf.rows_mut(rows) {
            pace_kernels::ActMut::F32(mut m) => m.row_mut(i).copy_from_slice(row),
            pace_kernels::ActMut::Bf16(mut m) => cx.kernels.narrow(row, m.row_mut(i)),
        }
    }
    buf
}

fn read(cx: &OpCx<'_>, x: ActRef<'_>) -> Vec<f32> {
    let mut out = vec![0.0; x.rows() * x.cols()];
    for (i, row) in out.chunks_exact_mut(x.cols()).enumerate() {
        match x {
            ActRef::F32(m) => row.copy_from_slice(m.row(i)),
            ActRef::Bf16(m) => cx.kernels.widen(m.row(i), row),
        }
    }
    out
}

/// `x * w^T + bias`, `[rows, n]`.
fn product(x: &[f64], w: &[f32], bias: &[f32], n: usize, k: usize) -> Vec<f64> {
    let cell = |row: &[f64], j: usize| {
        let sum: f64 = row.iter().zip(&w[j * k..(j + 1) * k]).map(|(a, b)| a * f64::from(*b)).sum();
        sum + f64::from(bias[j])
    };
    x.chunks_exact(k).flat_map(|row| (0..n).map(move |j| cell(row, j))).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

fn close(what: &str, got: &[f32], want: &[f64], dtype: DType) -> Result<(), TestCaseError> {
    let scale = want.iter().fold(1e-3, |m: f64, w| m.max(w.abs()));
    prop_assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*g) - w).abs() / scale;
        prop_assert!(off <= tolerance(dtype), "{}: element {} is {}, expected {}", what, i, g, w);
    }
    Ok(())
}

/// Runs `test` for every tier of this CPU and both types of activations, on two threads.
fn everywhere(
    mut test: impl FnMut(&OpCx<'_>, DType) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let pool = Pool::unpinned(2).unwrap();
    for isa in Isa::supported() {
        for dtype in [DType::F32, DType::Bf16] {
            let scratch = Scratch::new();
            let kernels = Kernels::new(isa).unwrap();
            test(&OpCx { kernels, par: pool.par(), scratch: &scratch, profile: None }, dtype)?;
        }
    }
    Ok(())
}

const fn format(dtype: DType) -> WeightFormat {
    match dtype {
        DType::Bf16 => WeightFormat::Bf16,
        _ => WeightFormat::F32,
    }
}

fn concrete(op: Operator) -> impl Iterator<Item = Backend> {
    op.backends().iter().copied()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn linear_and_out_projection(rows in 1usize..20, n in 1usize..150, k in 1usize..90, biased: bool, seed: u64) {
        let (x, w) = (numbers(seed, rows * k), numbers(seed ^ 1, n * k));
        let bias = if biased { numbers(seed ^ 2, n) } else { vec![0.0; n] };
        let residual = numbers(seed ^ 3, rows * n);
        let want = product(&wide(&x), &w, &bias, n, k);
        everywhere(|cx, dtype| {
            let weights = pack(cx.par, format(dtype), &w, n, k);
            let a = act(cx, dtype, &x, rows, k);
            for backend in concrete(Operator::Linear) {
                let op = Linear::new(Arc::clone(&weights), biased.then(|| bias.clone()), backend).unwrap();
                let mut out = ActBuf::new(dtype, n);
                op.forward(cx, a.rows(rows), out.rows_mut(rows));
                close("linear", &read(cx, out.rows(rows)), &want, dtype)?;
            }
            for backend in concrete(Operator::OutProjection) {
                let op = OutProjection::new(Arc::clone(&weights), biased.then(|| bias.clone()), backend).unwrap();
                let mut out = act(cx, dtype, &residual, rows, n);
                op.forward(cx, a.rows(rows), out.rows_mut(rows));
                let want: Vec<f64> = want.iter().zip(&residual).map(|(w, r)| w + f64::from(*r)).collect();
                close("out_projection", &read(cx, out.rows(rows)), &want, dtype)?;
            }
            Ok(())
        })?;
    }

    #[test]
    fn norm(rows in 1usize..20, cols in 1usize..150, seed: u64) {
        let (x, weight) = (numbers(seed, rows * cols), numbers(seed ^ 1, cols));
        let want: Vec<f64> = wide(&x)
            .chunks_exact(cols)
            .flat_map(|row| {
                let mean = row.iter().map(|v| v * v).sum::<f64>() / cols as f64;
                let scale = 1.0 / (mean + 1e-5).sqrt();
                row.iter().zip(&weight).map(|(v, w)| v * scale * f64::from(*w)).collect::<Vec<_>>()
            })
            .collect();
        everywhere(|cx, dtype| {
            for backend in concrete(Operator::Norm) {
                let op = Norm::rms(weight.clone(), 1e-5, backend).unwrap();
                let (a, mut out) = (act(cx, dtype, &x, rows, cols), ActBuf::new(dtype, cols));
                op.forward(cx, a.rows(rows), out.rows_mut(rows));
                close("norm", &read(cx, out.rows(rows)), &want, dtype)?;
            }
            Ok(())
        })?;
    }

    #[test]
    fn mlp(rows in 1usize..12, hidden in 1usize..60, ffn in 1usize..90, kind in 0usize..4, biased: bool, seed: u64) {
        let activation = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu][kind];
        let x = numbers(seed, rows * hidden);
        let [gate, up, down] = [1, 2, 3].map(|i| numbers(seed ^ i, ffn * hidden));
        let [gate_bias, up_bias, down_bias] =
            [(4, ffn), (5, ffn), (6, hidden)].map(|(i, n)| if biased { numbers(seed ^ i, n) } else { vec![0.0; n] });
        let residual = numbers(seed ^ 7, rows * hidden);
        let g = product(&wide(&x), &gate, &gate_bias, ffn, hidden);
        let u = product(&wide(&x), &up, &up_bias, ffn, hidden);
        let inner: Vec<f64> = g.iter().zip(&u).map(|(g, u)| reference(activation, *g) * u).collect();
        let out = product(&inner, &down, &down_bias, hidden, ffn);
        let want: Vec<f64> = out.iter().zip(&residual).map(|(o, r)| o + f64::from(*r)).collect();
        everywhere(|cx, dtype| {
            let packed = |w: &[f32], n, k| pack(cx.par, format(dtype), w, n, k);
            for backend in concrete(Operator::Mlp) {
                let weights = MlpWeights {
                    gate: packed(&gate, ffn, hidden),
                    up: packed(&up, ffn, hidden),
                    down: packed(&down, hidden, ffn),
                    gate_bias: biased.then(|| gate_bias.clone()),
                    up_bias: biased.then(|| up_bias.clone()),
                    down_bias: biased.then(|| down_bias.clone()),
                };
                let op = Mlp::new(weights, activation, backend).unwrap();
                let (a, mut out) = (act(cx, dtype, &x, rows, hidden), act(cx, dtype, &residual, rows, hidden));
                op.forward(cx, a.rows(rows), out.rows_mut(rows));
                close("mlp", &read(cx, out.rows(rows)), &want, dtype)?;
            }
            Ok(())
        })?;
    }

    #[test]
    fn qkv_projection_rotates_queries_and_keys_only(
        rows in 1usize..10, group in 1usize..4, kv in 1usize..3, half in 1usize..9, first in 0usize..500, seed: u64
    ) {
        let (n_heads, d, hidden) = (group * kv, 2 * half, 24);
        let n = (n_heads + 2 * kv) * d;
        let (x, w, bias) = (numbers(seed, rows * hidden), numbers(seed ^ 1, n * hidden), numbers(seed ^ 2, n));
        let inv_freq: Vec<f64> = (0..half).map(|i| 100f64.powf(-(i as f64) / half as f64)).collect();
        let mut want = product(&wide(&x), &w, &bias, n, hidden);
        for (t, row) in want.chunks_exact_mut(n).enumerate() {
            for head in row[..(n_heads + kv) * d].chunks_exact_mut(d) {
                for i in 0..half {
                    let (sin, cos) = ((first + t) as f64 * inv_freq[i]).sin_cos();
                    (head[i], head[i + half]) =
                        (head[i] * cos - head[i + half] * sin, head[i + half] * cos + head[i] * sin);
                }
            }
        }
        everywhere(|cx, dtype| {
            for backend in concrete(Operator::QkvProjection) {
                let weights = pack(cx.par, format(dtype), &w, n, hidden);
                let op = QkvProjection::new(weights, Some(bias.clone()), n_heads, kv, d, backend).unwrap();
                let mut angles = Rope::new(d, Backend::Auto).unwrap().angles(cx, rows);
                (0..rows).for_each(|t| angles.set(t, first + t, &inv_freq));
                let (a, mut out) = (act(cx, dtype, &x, rows, hidden), ActBuf::new(dtype, n));
                op.forward(cx, a.rows(rows), &angles, out.rows_mut(rows));
                close("qkv", &read(cx, out.rows(rows)), &want, dtype)?;
            }
            Ok(())
        })?;
    }

    #[test]
    fn attention_of_a_ragged_batch(
        lens in prop::collection::vec((0usize..150, 0usize..80), 1..4),
        group in 1usize..5, kv in 1usize..3, d in 1usize..20, seed: u64
    ) {
        let shape = AttentionShape { n_heads: group * kv, n_kv_heads: kv, head_dim: d, scale: 0.3 };
        let rows: usize = lens.iter().map(|(_, new)| new).sum();
        let q = numbers(seed, rows * shape.n_heads * d);
        let kv_rows = |seq: usize, t: usize| numbers(seed ^ (7 + 1000 * seq as u64 + t as u64), 2 * kv * d);
        let want = attention_reference(&shape, &lens, &q, &kv_rows);
        let mut plan = AttentionPlan::default();
        plan.rebuild(lens.iter().copied(), Attention::tile_tokens(&shape));
        everywhere(|cx, dtype| {
            let caches = Caches(lens.iter().enumerate().map(|(s, (past, new))| {
                Cache::fill(KvLayout::new(dtype, d), kv, past + new, &|t| kv_rows(s, t))
            }).collect());
            for backend in concrete(Operator::Attention) {
                let op = Attention::new(shape, backend).unwrap();
                let (a, mut out) = (act(cx, dtype, &q, rows, shape.n_heads * d), ActBuf::new(dtype, shape.n_heads * d));
                op.forward(cx, 0, &plan, &caches, a.rows(rows), out.rows_mut(rows));
                close("attention", &read(cx, out.rows(rows)), &want, dtype)?;
            }
            Ok(())
        })?;
    }
}

fn reference(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
    }
}

/// The series of the error function; far out it is 1 to more digits than are compared.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn attention_reference(
    shape: &AttentionShape,
    lens: &[(usize, usize)],
    q: &[f32],
    kv_rows: &dyn Fn(usize, usize) -> Vec<f32>,
) -> Vec<f64> {
    let (d, group) = (shape.head_dim, shape.group());
    let mut out = Vec::new();
    let mut row = 0;
    for (seq, &(past, new)) in lens.iter().enumerate() {
        let rows: Vec<Vec<f32>> = (0..past + new).map(|t| kv_rows(seq, t)).collect();
        for position in past..past + new {
            for head in 0..shape.n_heads {
                let q = &q[(row * shape.n_heads + head) * d..][..d];
                let part = |t: usize, v: usize| &rows[t][(v * shape.n_kv_heads + head / group) * d..][..d];
                let dot =
                    |k: &[f32]| q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
                let scores: Vec<f64> =
                    (0..=position).map(|t| (dot(part(t, 0)) * f64::from(shape.scale)).exp()).collect();
                let sum: f64 = scores.iter().sum();
                out.extend((0..d).map(|i| {
                    (0..=position).map(|t| scores[t] / sum * f64::from(part(t, 1)[i])).sum::<f64>()
                }));
            }
            row += 1;
        }
    }
    out
}

struct Caches(Vec<Cache>);

impl KvBatch for Caches {
    fn cache(&self, seq: usize) -> &dyn KvCache {
        &self.0[seq]
    }
}

/// One layer of keys and values, a run per block, spare rows full of NaN.
struct Cache {
    layout: KvLayout,
    heads: usize,
    len: usize,
    data: Buffer,
}

impl Cache {
    fn fill(layout: KvLayout, heads: usize, len: usize, row: &dyn Fn(usize) -> Vec<f32>) -> Self {
        let bytes = heads * len.div_ceil(KV_BLOCK) * layout.block_bytes();
        let mut data = Buffer::zeroed(bytes, Placement::default()).unwrap();
        match layout.dtype() {
            DType::Bf16 => data.as_mut_slice::<pace_kernels::bf16>().fill(pace_kernels::bf16::NAN),
            _ => data.as_mut_slice::<f32>().fill(f32::NAN),
        }
        let mut cache = Self { layout, heads, len, data };
        for t in 0..len {
            let row = row(t);
            let d = layout.head_dim();
            for head in 0..heads {
                let (k, v) = (&row[head * d..][..d], &row[(heads + head) * d..][..d]);
                let block = cache.block_mut(0, head, t / KV_BLOCK);
                layout.append(block, t % KV_BLOCK, k, v);
            }
        }
        cache
    }

    fn start(&self, head: usize, block: usize) -> usize {
        assert!(head < self.heads, "no such head");
        (head * self.len.div_ceil(KV_BLOCK) + block) * self.layout.block_len()
    }
}

impl KvCache for Cache {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn len(&self) -> usize {
        self.len
    }

    fn reserve(&mut self, _: usize) -> Result<(), KvError> {
        Ok(())
    }

    fn block_mut(&mut self, _: usize, head: usize, block: usize) -> KvMut<'_> {
        let (start, len) = (self.start(head, block), self.layout.block_len());
        match self.layout.dtype() {
            DType::Bf16 => KvMut::Bf16(&mut self.data.as_mut_slice()[start..start + len]),
            _ => KvMut::F32(&mut self.data.as_mut_slice()[start..start + len]),
        }
    }

    fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    fn for_each_run(&self, _: usize, head: usize, len: usize, f: &mut dyn FnMut(KvRun<'_>)) {
        for block in 0..len.div_ceil(KV_BLOCK) {
            let (start, n) = (self.start(head, block), self.layout.block_len());
            let blocks = match self.layout.dtype() {
                DType::Bf16 => KvRef::Bf16(&self.data.as_slice()[start..start + n]),
                _ => KvRef::F32(&self.data.as_slice()[start..start + n]),
            };
            f(KvRun { first_token: block * KV_BLOCK, blocks });
        }
    }

    fn usage(&self) -> KvUsage {
        KvUsage {
            kind: "test",
            allocations: 1,
            capacity_rows: self.len,
            bytes: self.data.len(),
            bytes_copied: 0,
        }
    }
}
