//! The same bits for a row, however the work is cut.

use super::{Setup, Store, Tokens, segment, variants};
use crate::tests::{noise_vec, tiers};
use crate::{AttentionParams, Kernels, KvDType, Par, Pool};

/// Long enough for two unit borders in the longest window.
const LEN: usize = 1100;

/// A sequence whose every row is known.
struct Known<'a> {
    setup: Setup<'a>,
    dtype: KvDType,
    tokens: Tokens,
    /// The result of one prefill on one thread.
    all: Vec<f32>,
}

impl<'a> Known<'a> {
    fn new(kernels: Kernels, params: AttentionParams<'a>, dtype: KvDType) -> Self {
        let tokens = Tokens::noise(9, &params, LEN);
        let setup = Setup { kernels, par: Par::seq(), params };
        let mut store = Store::new(dtype, &params);
        store.push(&params, &tokens, LEN);
        let all = setup.run(&store, &[segment(0, LEN)], &tokens.q);
        assert!(all.iter().all(|x| x.is_finite()));
        Self { setup, dtype, tokens, all }
    }

    fn cols(&self) -> usize {
        self.setup.params.n_heads * self.setup.params.head_dim
    }

    /// The rows of `new` tokens from `past` on, when the sequence ends there, on the setup's threads.
    fn chunk(&self, par: Par<'_>, past: usize, new: usize) {
        let Setup { kernels, params, .. } = self.setup;
        let mut store = Store::new(self.dtype, &params);
        store.push(&params, &self.tokens, past + new);
        let rows = past * self.cols()..(past + new) * self.cols();
        let out = Setup { kernels, par, params }.run(&store, &[segment(past, new)], &self.tokens.q[rows]);
        self.assert_same(&out, past, &format!("{new} tokens, {} threads", par.threads()));
    }

    fn assert_same(&self, out: &[f32], past: usize, what: &str) {
        let Setup { kernels, params, .. } = &self.setup;
        let expected = &self.all[past * self.cols()..][..out.len()];
        for (i, (out, expected)) in out.iter().zip(expected).enumerate() {
            assert_eq!(
                out.to_bits(),
                expected.to_bits(),
                "{kernels:?} {params:?} {}: {what}, position {}, column {}: {out} instead of {expected}",
                self.dtype,
                past + i / self.cols(),
                i % self.cols()
            );
        }
    }
}

fn for_each_kind(n_heads: usize, n_kv_heads: usize, d: usize, check: impl Fn(&Known<'_>)) {
    let sinks = noise_vec(78, n_heads);
    for kernels in tiers() {
        for dtype in KvDType::ALL {
            for params in variants(AttentionParams::causal(n_heads, n_kv_heads, d), &sinks) {
                check(&Known::new(kernels, params, dtype));
            }
        }
    }
}

#[test]
fn decode_and_prefill_of_a_token() {
    for_each_kind(3, 1, 8, |known| {
        if known.setup.params.causal {
            for past in [0, 1, 2, 62, 63, 64, 65, 127, 300, 510, 511, 512, 513, 575, 1023, 1024, 1099] {
                known.chunk(Par::seq(), past, 1);
            }
        }
    });
}

#[test]
fn chunks_of_any_length() {
    for_each_kind(4, 2, 24, |known| {
        let cuts: &[usize] =
            if known.setup.params.causal { &[0, 1, 6, 63, 70, 200, 513, 516, LEN] } else { &[0, LEN] };
        for cut in cuts.windows(2) {
            known.chunk(Par::seq(), cut[0], cut[1] - cut[0]);
        }
    });
}

#[test]
fn any_number_of_threads() {
    let pools: Vec<Pool> = (2..=4).map(|threads| Pool::unpinned(threads).unwrap()).collect();
    for_each_kind(2, 2, 16, |known| {
        for pool in &pools {
            known.chunk(pool.par(), 0, LEN);
            if known.setup.params.causal {
                known.chunk(pool.par(), LEN - 1, 1);
                known.chunk(pool.par(), LEN - 3, 3);
            }
        }
    });
}

#[test]
fn any_batch() {
    let pool = Pool::unpinned(2).unwrap();
    for_each_kind(4, 1, 40, |known| {
        let Setup { kernels, params, .. } = known.setup;
        if !params.causal {
            return;
        }
        // The known sequence between a decode step and a prefill of other ones.
        let other = Tokens::noise(1000, &params, 90);
        let cols = known.cols();
        for (past, new) in [(700, 1), (508, 7), (1000, 40)] {
            let mut store = Store::new(known.dtype, &params);
            store.push(&params, &other, 81);
            store.push(&params, &known.tokens, past + new);
            store.push(&params, &other, 90);
            let rows =
                [&other.q[80 * cols..81 * cols], &known.tokens.q[past * cols..(past + new) * cols], &other.q];
            let segments = [segment(80, 1), segment(past, new), segment(0, 90)];
            let out = Setup { kernels, par: pool.par(), params }.run(&store, &segments, &rows.concat());
            known.assert_same(&out[cols..(1 + new) * cols], past, "in a batch");
        }
    });
}
