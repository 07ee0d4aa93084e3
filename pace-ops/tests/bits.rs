//! TPP, JIT, IMBPS and FLASH give the same bits, and a row's bits do not depend on the rows beside it.

// Helpers unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use common::{Cache, Caches, act, everywhere, formats, kv_dtype, numbers, read};
use pace_kernels::{ActBuf, Activation, Isa, KvLayout};
use pace_ops::{
    Attention, AttentionPlan, AttentionShape, Backend, Linear, Mlp, MlpWeights, OpDType, OpShape, Operator,
};
use proptest::prelude::*;

/// The first result of a tier, a type and a format: what all others must be.
type First = HashMap<(Isa, OpDType, usize), Vec<u32>>;

/// Compares with the first backend's bits.
fn same(first: &mut First, key: (Isa, OpDType, usize), name: &str, got: &[f32]) -> Result<(), TestCaseError> {
    let got: Vec<u32> = got.iter().map(|x| x.to_bits()).collect();
    let want = first.entry(key).or_insert_with(|| got.clone());
    prop_assert!(*want == got, "{} differs from the first backend", name);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn projections(rows in 1usize..40, n in 1usize..200, k in 1usize..300, seed: u64) {
        let (x, w, bias) = (numbers(seed, rows * k), numbers(seed ^ 1, n * k), numbers(seed ^ 2, n));
        let mut first = First::new();
        everywhere(Operator::Linear, |cell| {
            if cell.backend == Backend::Native {
                return Ok(());
            }
            let (cx, dtype) = (&cell.cx, cell.act_dtype());
            for (at, &format) in formats(cell.dtype).iter().enumerate() {
                let weights = cell.pack(OpShape::matrix(cell.op, cell.dtype, n, k), format, &w, n, k);
                let op = Linear::new(cell.build, weights, Some(bias.clone()), cell.backend).unwrap();
                let (a, mut out) = (act(cx, dtype, &x, rows, k), ActBuf::new(dtype, n));
                op.forward(cx, a.rows(rows), out.rows_mut(rows));
                let all = read(cx, out.rows(rows));
                same(&mut first, (cx.kernels.isa(), cell.dtype, at), &cell.name(), &all)?;
                for i in [0, rows - 1] {
                    op.forward(cx, a.rows(rows).rows_range(i..i + 1), out.rows_mut(1));
                    prop_assert_eq!(&read(cx, out.rows(1))[..], &all[i * n..(i + 1) * n], "row {} alone", i);
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn feed_forward_layers(
        rows in 1usize..40, hidden in 1usize..150, ffn in 1usize..400, chunks in 1usize..9, gated: bool, seed: u64
    ) {
        let parts = if gated { 2 } else { 1 };
        let (x, residual) = (numbers(seed, rows * hidden), numbers(seed ^ 1, rows * hidden));
        let (up, down) = (numbers(seed ^ 2, parts * ffn * hidden), numbers(seed ^ 3, ffn * hidden));
        let (up_bias, down_bias) = (numbers(seed ^ 4, parts * ffn), numbers(seed ^ 5, hidden));
        let mut first = First::new();
        everywhere(Operator::Mlp, |cell| {
            if cell.backend == Backend::Native {
                return Ok(());
            }
            let (cx, dtype) = (&cell.cx, cell.act_dtype());
            let mut build = cell.build.clone();
            build.imbps_chunks = Some(chunks);
            for (at, &format) in formats(cell.dtype).iter().enumerate() {
                let down_shape = OpShape::matrix(Operator::Linear, cell.dtype, hidden, ffn);
                let shape = OpShape::mlp(cell.dtype, hidden, ffn, gated);
                let weights = MlpWeights {
                    up: cell.pack(shape, format, &up, parts * ffn, hidden),
                    down: cell.pack(down_shape, format, &down, hidden, ffn),
                    up_bias: Some(up_bias.clone()),
                    down_bias: Some(down_bias.clone()),
                };
                let op = Mlp::new(&build, weights, Activation::Silu, cell.backend).unwrap();
                let (a, mut out) = (act(cx, dtype, &x, rows, hidden), act(cx, dtype, &residual, rows, hidden));
                op.forward(cx, a.rows(rows), out.rows_mut(rows));
                let all = read(cx, out.rows(rows));
                same(&mut first, (cx.kernels.isa(), cell.dtype, at), &cell.name(), &all)?;
            }
            Ok(())
        })?;
    }

    #[test]
    fn attention(
        lens in prop::collection::vec((0usize..700, 1usize..40), 1..4), group in 1usize..5, eighths in 1usize..9,
        seed: u64
    ) {
        let shape = AttentionShape { n_heads: 2 * group, n_kv_heads: 2, head_dim: 8 * eighths, scale: 0.2 };
        let (d, cols) = (shape.head_dim, shape.n_heads * shape.head_dim);
        let rows: usize = lens.iter().map(|(_, new)| new).sum();
        let q = numbers(seed, rows * cols);
        let kv_row = |seq: usize, t: usize| numbers(seed ^ (7 + 1000 * seq as u64 + t as u64), 4 * d);
        let mut plan = AttentionPlan::default();
        plan.rebuild(&shape, 2, lens.iter().copied());
        let mut first = First::new();
        let caches = OpDType::ALL.map(|dtype| {
            let layout = KvLayout::new(kv_dtype(dtype), d);
            let cache = |(s, (past, new)): (usize, &(usize, usize))| Cache::fill(layout, 2, past + new, &|t| kv_row(s, t));
            Arc::new(Caches(lens.iter().enumerate().map(cache).collect()))
        });
        everywhere(Operator::Attention, |cell| {
            if cell.backend == Backend::Native {
                return Ok(());
            }
            let (cx, dtype) = (&cell.cx, cell.act_dtype());
            let op = Attention::new(cell.build, shape, kv_dtype(cell.dtype), cell.backend).unwrap();
            let (a, mut out) = (act(cx, dtype, &q, rows, cols), ActBuf::new(dtype, cols));
            let caches = &caches[cell.dtype as usize];
            op.forward(cx, 0, &plan, caches.as_ref(), a.rows(rows), out.rows_mut(rows));
            let all = read(cx, out.rows(rows));
            same(&mut first, (cx.kernels.isa(), cell.dtype, 0), &cell.name(), &all)
        })?;
    }
}
