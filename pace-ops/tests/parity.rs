//! Every operator by every backend that it has, for every type and at every tier, against plain f64 arithmetic.

// Helpers unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    Cache, Caches, act, close, everywhere, formats, kv_dtype, numbers, product, read, stored, wide,
};
use pace_kernels::{ActBuf, Activation, KvLayout};
use pace_ops::{
    Attention, AttentionPlan, AttentionShape, Backend, Linear, Mlp, MlpWeights, Norm, OpShape, Operator,
    OutProjection, QkvProjection, Rope,
};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn linear_and_out_projection(rows in 1usize..20, n in 1usize..150, k in 1usize..90, biased: bool, seed: u64) {
        let (x, w) = (numbers(seed, rows * k), numbers(seed ^ 1, n * k));
        let bias = if biased { numbers(seed ^ 2, n) } else { vec![0.0; n] };
        let residual = numbers(seed ^ 3, rows * n);
        for op in [Operator::Linear, Operator::OutProjection] {
            everywhere(op, |cell| {
                let (cx, dtype) = (&cell.cx, cell.act_dtype());
                for &format in formats(cell.dtype) {
                    let weights = cell.pack(OpShape::matrix(op, cell.dtype, n, k), format, &w, n, k);
                    let mut want = product(&wide(&x), &stored(&weights), &bias, n, k);
                    let (a, bias) = (act(cx, dtype, &x, rows, k), biased.then(|| bias.clone()));
                    let mut out = act(cx, dtype, &residual, rows, n);
                    if op == Operator::Linear {
                        let linear = Linear::new(cell.build, weights, bias, cell.backend).unwrap();
                        linear.forward(cx, a.rows(rows), out.rows_mut(rows));
                    } else {
                        let projection = OutProjection::new(cell.build, weights, bias, cell.backend).unwrap();
                        projection.forward(cx, a.rows(rows), out.rows_mut(rows));
                        want.iter_mut().zip(&residual).for_each(|(w, r)| *w += f64::from(*r));
                    }
                    close(&cell.name(), &read(cx, out.rows(rows)), &want, cell.dtype)?;
                }
                Ok(())
            })?;
        }
    }

    #[test]
    fn norm(rows in 1usize..20, cols in 1usize..150, layer: bool, seed: u64) {
        let (x, r) = (numbers(seed, rows * cols), numbers(seed ^ 3, rows * cols));
        let (weight, bias) = (numbers(seed ^ 1, cols), numbers(seed ^ 2, cols));
        let normed = |x: &[f64]| -> Vec<f64> {
            x.chunks_exact(cols).flat_map(|row| norm_reference(row, &weight, layer.then_some(&bias))).collect()
        };
        everywhere(Operator::Norm, |cell| {
            let (cx, dtype) = (&cell.cx, cell.act_dtype());
            let op = if layer {
                Norm::layer(cell.build, weight.clone(), Some(bias.clone()), 1e-5, dtype, cell.backend).unwrap()
            } else {
                Norm::rms(cell.build, weight.clone(), 1e-5, dtype, cell.backend).unwrap()
            };
            let (mut a, mut out) = (act(cx, dtype, &x, rows, cols), ActBuf::new(dtype, cols));
            op.forward(cx, a.rows(rows), out.rows_mut(rows));
            close(&cell.name(), &read(cx, out.rows(rows)), &normed(&wide(&x)), cell.dtype)?;
            let r = act(cx, dtype, &r, rows, cols);
            op.add_forward(cx, a.rows_mut(rows), r.rows(rows), out.rows_mut(rows));
            let sum = read(cx, a.rows(rows));
            let exact = x.iter().zip(&read(cx, r.rows(rows))).map(|(x, r)| f64::from(x + r)).collect::<Vec<_>>();
            close("sum", &sum, &exact, cell.dtype)?;
            close(&cell.name(), &read(cx, out.rows(rows)), &normed(&wide(&sum)), cell.dtype)
        })?;
    }

    #[test]
    fn mlp(
        rows in 1usize..12, hidden in 1usize..60, ffn in 1usize..200, kind in 0usize..4, gated: bool, biased: bool,
        chunks in 1usize..4, seed: u64
    ) {
        let activation = Activation::ALL[kind];
        let x = numbers(seed, rows * hidden);
        let parts = if gated { 2 } else { 1 };
        // Small enough that activations do not all saturate.
        let small = |seed, n| numbers(seed, n).into_iter().map(|w| w / 8.0).collect::<Vec<_>>();
        let (up, down) = (small(seed ^ 1, parts * ffn * hidden), small(seed ^ 2, ffn * hidden));
        let bias = |i, n| if biased { small(seed ^ i, n) } else { vec![0.0; n] };
        let (up_bias, down_bias) = (bias(3, parts * ffn), bias(4, hidden));
        let residual = numbers(seed ^ 5, rows * hidden);
        everywhere(Operator::Mlp, |cell| {
            let (cx, dtype) = (&cell.cx, cell.act_dtype());
            let mut build = cell.build.clone();
            build.imbps_chunks = Some(chunks);
            for &format in formats(cell.dtype) {
                let shape = OpShape::mlp(cell.dtype, hidden, ffn, gated);
                let weights = MlpWeights {
                    up: cell.pack(shape, format, &up, parts * ffn, hidden),
                    down: cell.pack(OpShape::matrix(Operator::Linear, cell.dtype, hidden, ffn), format, &down, hidden, ffn),
                    up_bias: biased.then(|| up_bias.clone()),
                    down_bias: biased.then(|| down_bias.clone()),
                };
                let inner = product(&wide(&x), &stored(&weights.up), &up_bias, parts * ffn, hidden);
                let inner: Vec<f64> = inner.chunks_exact(parts * ffn).flat_map(|row| {
                    let up = |i: usize| if gated { row[ffn + i] } else { 1.0 };
                    (0..ffn).map(move |i| reference(activation, row[i]) * up(i)).collect::<Vec<_>>()
                }).collect();
                let out = product(&inner, &stored(&weights.down), &down_bias, hidden, ffn);
                let want: Vec<f64> = out.iter().zip(&residual).map(|(o, r)| o + f64::from(*r)).collect();
                let op = Mlp::new(&build, weights, activation, cell.backend).unwrap();
                let (a, mut out) = (act(cx, dtype, &x, rows, hidden), act(cx, dtype, &residual, rows, hidden));
                op.forward(cx, a.rows(rows), out.rows_mut(rows));
                close(&cell.name(), &read(cx, out.rows(rows)), &want, cell.dtype)?;
            }
            Ok(())
        })?;
    }

    #[test]
    fn qkv_projection_rotates_queries_and_keys_only(
        rows in 1usize..10, group in 1usize..4, kv in 1usize..3, half in 1usize..40, first in 0usize..500, seed: u64
    ) {
        let (n_heads, d, hidden) = (group * kv, 2 * half, 24);
        let n = (n_heads + 2 * kv) * d;
        let (x, w, bias) = (numbers(seed, rows * hidden), numbers(seed ^ 1, n * hidden), numbers(seed ^ 2, n));
        let inv_freq: Vec<f64> = (0..half).map(|i| 100f64.powf(-(i as f64) / half as f64)).collect();
        everywhere(Operator::QkvProjection, |cell| {
            let (cx, dtype) = (&cell.cx, cell.act_dtype());
            for &format in formats(cell.dtype) {
                let weights = cell.pack(OpShape::matrix(cell.op, cell.dtype, n, hidden), format, &w, n, hidden);
                let mut want = product(&wide(&x), &stored(&weights), &bias, n, hidden);
                rotate_reference(&mut want, n, (n_heads + kv) * d, first, &inv_freq);
                let op = QkvProjection::new(cell.build, weights, Some(bias.clone()), n_heads, kv, d, cell.backend).unwrap();
                for rope in Operator::Rope.backends() {
                    let mut angles = Rope::new(cell.build, d, dtype, *rope).unwrap().angles(cx, rows);
                    (0..rows).for_each(|t| angles.set(t, first + t, &inv_freq));
                    let (a, mut out) = (act(cx, dtype, &x, rows, hidden), ActBuf::new(dtype, n));
                    op.forward(cx, a.rows(rows), &angles, out.rows_mut(rows));
                    close(&cell.name(), &read(cx, out.rows(rows)), &want, cell.dtype)?;
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn attention_of_a_ragged_batch(
        lens in prop::collection::vec((0usize..150, 0usize..80), 1..4),
        group in 1usize..5, kv in 1usize..3, d in 1usize..20, eights: bool, seed: u64
    ) {
        let d = if eights { d.next_multiple_of(8) } else { d };
        let shape = AttentionShape { n_heads: group * kv, n_kv_heads: kv, head_dim: d, scale: 0.3 };
        let rows: usize = lens.iter().map(|(_, new)| new).sum();
        let q = numbers(seed, rows * shape.n_heads * d);
        let kv_rows = |seq: usize, t: usize| numbers(seed ^ (7 + 1000 * seq as u64 + t as u64), 2 * kv * d);
        let want = attention_reference(&shape, &lens, &q, &kv_rows);
        let mut plan = AttentionPlan::default();
        plan.rebuild(&shape, 2, lens.iter().copied());
        everywhere(Operator::Attention, |cell| {
            let (cx, dtype, kv_dtype) = (&cell.cx, cell.act_dtype(), kv_dtype(cell.dtype));
            let Ok(op) = Attention::new(cell.build, shape, kv_dtype, cell.backend) else {
                prop_assert!(cell.backend != Backend::Native && !d.is_multiple_of(8), "{} is missing", cell.name());
                return Ok(());
            };
            let caches = Caches(lens.iter().enumerate().map(|(s, (past, new))| {
                Cache::fill(KvLayout::new(kv_dtype, d), kv, past + new, &|t| kv_rows(s, t))
            }).collect());
            let (a, mut out) = (act(cx, dtype, &q, rows, shape.n_heads * d), ActBuf::new(dtype, shape.n_heads * d));
            op.forward(cx, 0, &plan, &caches, a.rows(rows), out.rows_mut(rows));
            close(&cell.name(), &read(cx, out.rows(rows)), &want, cell.dtype)
        })?;
    }
}

/// RMSNorm of a row, or LayerNorm if there is a bias.
fn norm_reference(row: &[f64], weight: &[f32], bias: Option<&Vec<f32>>) -> Vec<f64> {
    let n = row.len() as f64;
    let mean = if bias.is_some() { row.iter().sum::<f64>() / n } else { 0.0 };
    let square = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    let scale = 1.0 / (square + 1e-5).sqrt();
    let cell = |(i, v): (usize, &f64)| {
        (v - mean) * scale * f64::from(weight[i]) + bias.map_or(0.0, |bias| f64::from(bias[i]))
    };
    row.iter().enumerate().map(cell).collect()
}

/// Rotates the heads in the first columns of every row of `n` numbers; row t is at position `first + t`.
fn rotate_reference(rows: &mut [f64], n: usize, rotated: usize, first: usize, inv_freq: &[f64]) {
    let half = inv_freq.len();
    for (t, row) in rows.chunks_exact_mut(n).enumerate() {
        for head in row[..rotated].chunks_exact_mut(2 * half) {
            for i in 0..half {
                let (sin, cos) = ((first + t) as f64 * inv_freq[i]).sin_cos();
                (head[i], head[i + half]) =
                    (head[i] * cos - head[i + half] * sin, head[i + half] * cos + head[i] * sin);
            }
        }
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
