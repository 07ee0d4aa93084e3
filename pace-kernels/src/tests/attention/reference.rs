//! Against softmax attention in f64 over what is stored.

use half::bf16;

use super::{Setup, Store, Tokens, segment, variants};
use crate::tests::{kv, noise_vec, tiers};
use crate::{
    ActMut, ActRef, AttentionParams, AttentionSegment, Element, Kernels, KvDType, MatMut, MatRef, Par,
};

/// A row of keys or values as a step reads it: int8 is rotated, and unpacked to bf16.
fn stored(dtype: KvDType, row: &[f32]) -> Vec<f64> {
    let mut row = kv::elements(dtype, row);
    if dtype == KvDType::Int8 {
        row = kv::elements(KvDType::Bf16, &row);
    }
    row.into_iter().map(f64::from).collect()
}

/// What queries are rounded to, for keys of a type, which they are rotated as.
fn query(dtype: KvDType, row: &[f32]) -> Vec<f64> {
    let (row, dtype) = match dtype {
        KvDType::F32 => (row.to_vec(), KvDType::F32),
        KvDType::Bf16 => (row.to_vec(), KvDType::Bf16),
        KvDType::Int8 => (kv::rotated(row), KvDType::Bf16),
    };
    stored(dtype, &row)
}

/// Undoes the rotation of the values, and adds up the errors that it mixes.
fn turn_back(out: &mut [(f64, f64)]) {
    let mut start = 0;
    while start < out.len() {
        let block = [64, 16, 4, 1].into_iter().find(|&block| start + block <= out.len()).unwrap();
        let from = out[start..start + block].to_vec();
        let factor = 1.0 / (block as f64).sqrt();
        for (i, out) in out[start..start + block].iter_mut().enumerate() {
            // An element of Sylvester's Hadamard matrix.
            let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { factor } else { -factor };
            out.0 = from.iter().enumerate().map(|(j, x)| sign(j) * x.0).sum();
            out.1 = from.iter().map(|x| factor * x.1).sum();
        }
        start += block;
    }
}

/// What the token at `position` of a sequence of `len` gets for one head, and for each dimension
/// sum p |v|, which errors are relative to.
fn expected(
    params: &AttentionParams<'_>,
    dtype: KvDType,
    tokens: &Tokens,
    len: usize,
    position: usize,
    head: usize,
) -> Vec<(f64, f64)> {
    let d = params.head_dim;
    let kv_head = head / (params.n_heads / params.n_kv_heads);
    let row = |data: &[f32], t: usize| stored(dtype, &data[(t * params.n_kv_heads + kv_head) * d..][..d]);
    let q = query(dtype, &tokens.q[(position * params.n_heads + head) * d..][..d]);
    let end = if params.causal { position + 1 } else { len };
    let start = params.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let score = |t: usize| {
        let k = row(&tokens.k, t);
        let s = f64::from(params.scale) * q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>();
        params.softcap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
    };
    let scores: Vec<f64> = (start..end).map(score).collect();
    let sink = params.sinks.map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[head]));
    let max = scores.iter().fold(sink, |max, &s| max.max(s));
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum::<f64>() + (sink - max).exp();
    let mut out = vec![(0.0, 0.0); d];
    for (t, s) in (start..end).zip(&scores) {
        let p = (s - max).exp() / sum;
        for (out, v) in out.iter_mut().zip(row(&tokens.v, t)) {
            *out = (out.0 + p * v, out.1 + p * v.abs());
        }
    }
    if dtype == KvDType::Int8 {
        turn_back(&mut out);
    }
    out
}

/// bf16, and int8 that is unpacked to it: P is rounded by up to 2^-8 of itself, and the sum of the unrounded P divides. f32: scores of up to 30 in
/// units of ln 2 are off by 30 * 2^-24 and by the sum of d products, e^x by 2e-7 more.
fn tolerance(dtype: KvDType) -> f64 {
    if dtype == KvDType::F32 { 1e-5 } else { 4.0e-3 }
}

/// One sequence of `past` and `new` tokens, checked at every row.
fn check(kernels: Kernels, params: &AttentionParams<'_>, dtype: KvDType, past: usize, new: usize) {
    let tokens = Tokens::noise((past + new) as u32, params, past + new);
    let mut store = Store::new(dtype, params);
    store.push(params, &tokens, past + new);
    let cols = params.n_heads * params.head_dim;
    let setup = Setup { kernels, par: Par::seq(), params: *params };
    let out = setup.run(&store, &[segment(past, new)], &tokens.q[past * cols..]);
    for (i, out) in out.chunks_exact(params.head_dim).enumerate() {
        let (position, head) = (past + i / params.n_heads, i % params.n_heads);
        let expected = expected(params, dtype, &tokens, past + new, position, head);
        for (j, (&out, (value, scale))) in out.iter().zip(expected).enumerate() {
            let off = (f64::from(out) - value).abs() / (scale + 1e-3);
            assert!(
                off <= tolerance(dtype),
                "{kernels:?} {params:?} {dtype}, position {position}, head {head}, dimension {j}: \
                 {out} instead of {value}, off by {off:e}"
            );
        }
    }
}

#[test]
fn every_head_dimension() {
    for kernels in tiers() {
        for dtype in KvDType::ALL {
            for d in [8, 16, 24, 40, 64, 72, 80, 96, 112, 128, 256] {
                check(kernels, &AttentionParams::causal(3, 1, d), dtype, 0, 19);
                check(kernels, &AttentionParams::causal(5, 1, d), dtype, 70, 1);
            }
        }
    }
}

#[test]
fn every_grouping() {
    for kernels in tiers() {
        for dtype in KvDType::ALL {
            for (n_heads, n_kv_heads) in [(1, 1), (5, 5), (8, 2), (6, 2), (7, 1), (40, 1), (34, 2)] {
                let params = AttentionParams::causal(n_heads, n_kv_heads, 16);
                check(kernels, &params, dtype, 0, 35);
                check(kernels, &params, dtype, 130, 2);
            }
        }
    }
}

#[test]
fn every_kind_at_the_borders_of_blocks_and_units() {
    let sinks = noise_vec(77, 4);
    for kernels in tiers() {
        for dtype in KvDType::ALL {
            for params in variants(AttentionParams::causal(4, 2, 24), &sinks) {
                for (past, new) in [(0, 66), (62, 3), (511, 1), (510, 4), (1023, 2), (575, 1), (576, 1)] {
                    check(kernels, &params, dtype, past, new);
                }
            }
        }
    }
}

#[test]
fn a_sink_takes_its_share() {
    // Two tokens with the score 0 and a sink of ln 2: half of the weight is the sink's.
    for kernels in tiers() {
        let params =
            AttentionParams { sinks: Some(&[std::f32::consts::LN_2]), ..AttentionParams::causal(1, 1, 8) };
        let tokens = Tokens { k: vec![0.0; 16], v: vec![1.0; 16], q: vec![1.0; 16] };
        let mut store = Store::new(KvDType::Bf16, &params);
        store.push(&params, &tokens, 2);
        let setup = Setup { kernels, par: Par::seq(), params };
        let out = setup.run(&store, &[segment(1, 1)], &tokens.q[..8]);
        assert!(out.iter().all(|x| (x - 0.5).abs() < 1e-5), "{kernels:?}: {out:?}");
    }
}

/// Any types, strides and alignments of `q` and `out`; nothing but `out` is written.
#[test]
fn views_of_any_type_and_stride() {
    fn act<E: Element>(data: &[f32]) -> Vec<E> {
        data.iter().map(|&x| E::from_f32(x)).collect()
    }
    for kernels in tiers() {
        for dtype in KvDType::ALL {
            let params = AttentionParams::causal(4, 2, 24);
            let (rows, cols, stride) = (9, 4 * 24, 4 * 24 + 7);
            let tokens = Tokens::noise(5, &params, rows);
            let mut store = Store::new(dtype, &params);
            store.push(&params, &tokens, rows);
            let setup = Setup { kernels, par: Par::seq(), params };
            let segments: [AttentionSegment; 1] = [segment(0, rows)];
            // Queries that are bf16 numbers already, so that both types say the same.
            let q: Vec<f32> = tokens.q.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
            let dense = setup.run(&store, &segments, &q);

            let mut wide = vec![0.0; 1 + rows * stride];
            for (i, row) in q.chunks_exact(cols).enumerate() {
                wide[1 + i * stride..][..cols].copy_from_slice(row);
            }
            let narrow: Vec<bf16> = act(&wide);
            let queries = [
                ActRef::F32(MatRef::with_stride(&wide[1..], rows, cols, stride)),
                ActRef::Bf16(MatRef::with_stride(&narrow[1..], rows, cols, stride)),
            ];
            for q in queries {
                let mut out = vec![7.0f32; 1 + rows * stride];
                setup.run_on(
                    &store,
                    &segments,
                    q,
                    ActMut::F32(MatMut::with_stride(&mut out[1..], rows, cols, stride)),
                );
                let mut half = vec![bf16::ONE; 1 + rows * stride];
                setup.run_on(
                    &store,
                    &segments,
                    q,
                    ActMut::Bf16(MatMut::with_stride(&mut half[1..], rows, cols, stride)),
                );
                assert_eq!((out[0], half[0]), (7.0, bf16::ONE));
                for (i, dense) in dense.chunks_exact(cols).enumerate() {
                    let start = 1 + i * stride;
                    assert_eq!(&out[start..start + cols], dense, "{kernels:?} {dtype}");
                    assert_eq!(half[start..start + cols], act::<bf16>(dense));
                    assert!(out[start + cols..(start + stride).min(out.len())].iter().all(|&x| x == 7.0));
                    assert!(
                        half[start + cols..(start + stride).min(out.len())].iter().all(|&x| x == bf16::ONE)
                    );
                }
            }
        }
    }
}

#[test]
fn large_scores_and_nan_stay_what_they_are() {
    for kernels in tiers() {
        for dtype in KvDType::ALL {
            let params = AttentionParams::causal(1, 1, 8);
            let mut tokens = Tokens::noise(3, &params, 4);
            tokens.q.fill(1e18);
            let mut store = Store::new(dtype, &params);
            store.push(&params, &tokens, 4);
            let setup = Setup { kernels, par: Par::seq(), params };
            // One token outweighs the others beyond any exponent: the result is its value.
            let out = setup.run(&store, &[segment(3, 1)], &tokens.q[24..]);
            let sum = |t: usize| tokens.k[t * 8..t * 8 + 8].iter().sum::<f32>();
            let best = (0..4).max_by(|&a, &b| sum(a).total_cmp(&sum(b))).unwrap();
            let mut value: Vec<f32> =
                stored(dtype, &tokens.v[best * 8..][..8]).into_iter().map(|v| v as f32).collect();
            if dtype == KvDType::Int8 {
                value = kv::rotated(&value);
            }
            assert_eq!(out, value, "{kernels:?} {dtype}");
            // NaN in a visible key or query is seen; in a later token it is not.
            tokens.k[2 * 8] = f32::NAN;
            let mut store = Store::new(dtype, &params);
            store.push(&params, &tokens, 4);
            let out = setup.run(&store, &[segment(0, 4)], &tokens.q);
            assert!(
                out[..16].iter().all(|x| x.is_finite()) && out[16..].iter().all(|x| x.is_nan()),
                "{kernels:?}"
            );
        }
    }
}
