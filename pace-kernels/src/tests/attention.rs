//! Flash attention at every tier: against an f64 reference, and the same bits however it is cut.

mod bits;
#[cfg(target_arch = "x86_64")]
mod generated;
mod guard;
mod reference;

use std::ops::Range;

use half::bf16;

use super::kv::NAN_BYTE;
use super::{noise_vec, tiers};
use crate::{
    ActMut, ActRef, AttentionParams, AttentionPlan, AttentionSegment, KV_BLOCK, Kernels, KvDType, KvLayout,
    KvMut, KvRef, KvRun, KvSource, MatMut, MatRef, Par, Pool, Scratch,
};

/// A sequence's keys, values and queries, every token a row: `[tokens][n_kv_heads * d]` and
/// `[tokens][n_heads * d]`.
struct Tokens {
    k: Vec<f32>,
    v: Vec<f32>,
    q: Vec<f32>,
}

impl Tokens {
    fn noise(seed: u32, params: &AttentionParams<'_>, tokens: usize) -> Self {
        let kv = tokens * params.n_kv_heads * params.head_dim;
        // Queries large enough that some tokens outweigh others by far.
        let q =
            noise_vec(seed + 2, tokens * params.n_heads * params.head_dim).iter().map(|x| 4.0 * x).collect();
        Self { k: noise_vec(seed, kv), v: noise_vec(seed + 1, kv), q }
    }
}

/// The blocks of one sequence and KV head.
enum Blocks {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    Int8(Vec<i8>),
}

/// KV blocks of a batch, all NaN where no token is. Runs of one to three blocks.
struct Store {
    layout: KvLayout,
    /// For each sequence, for each head.
    heads: Vec<Vec<Blocks>>,
}

impl Store {
    fn new(dtype: KvDType, params: &AttentionParams<'_>) -> Self {
        Self { layout: KvLayout::new(dtype, params.head_dim), heads: Vec::new() }
    }

    /// Adds a sequence that holds the first `len` of `tokens`.
    fn push(&mut self, params: &AttentionParams<'_>, tokens: &Tokens, len: usize) {
        let (d, n) = (params.head_dim, params.n_kv_heads);
        let elements = len.div_ceil(KV_BLOCK) * self.layout.block_len();
        let heads = (0..n).map(|head| {
            let mut blocks = match self.layout.dtype() {
                KvDType::F32 => Blocks::F32(vec![f32::NAN; elements]),
                KvDType::Bf16 => Blocks::Bf16(vec![bf16::NAN; elements]),
                KvDType::Int8 => Blocks::Int8(vec![NAN_BYTE; elements]),
            };
            for t in 0..len {
                let start = t / KV_BLOCK * self.layout.block_len();
                let range = start..start + self.layout.block_len();
                let block = match &mut blocks {
                    Blocks::F32(data) => KvMut::F32(&mut data[range]),
                    Blocks::Bf16(data) => KvMut::Bf16(&mut data[range]),
                    Blocks::Int8(data) => KvMut::Int8(&mut data[range]),
                };
                let at = (t * n + head) * d;
                self.layout.append(block, t % KV_BLOCK, &tokens.k[at..at + d], &tokens.v[at..at + d]);
            }
            blocks
        });
        let heads = heads.collect();
        self.heads.push(heads);
    }
}

impl KvSource for Store {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn for_each_run(&self, seq: usize, head: usize, positions: Range<usize>, f: &mut dyn FnMut(KvRun<'_>)) {
        let data = match &self.heads[seq][head] {
            Blocks::F32(data) => KvRef::F32(data),
            Blocks::Bf16(data) => KvRef::Bf16(data),
            Blocks::Int8(data) => KvRef::Int8(data),
        };
        // Whole runs, although the positions may begin inside of one.
        let blocks = data.len() / self.layout.block_len();
        let mut block = 0;
        for run in [1, 3, 2].into_iter().cycle() {
            let end = (block + run).min(blocks);
            if end * KV_BLOCK > positions.start {
                let range = block * self.layout.block_len()..end * self.layout.block_len();
                f(KvRun { first_token: block * KV_BLOCK, blocks: data.slice(range) });
            }
            block = end;
            if block == blocks || block * KV_BLOCK >= positions.end {
                break;
            }
        }
    }
}

/// What an attention is called with besides its data.
struct Setup<'a> {
    kernels: Kernels,
    par: Par<'a>,
    params: AttentionParams<'a>,
}

impl Setup<'_> {
    /// The rows of `segments` for the sequences of `store`, whose queries are `q`, as f32 to f32.
    fn run(&self, store: &Store, segments: &[AttentionSegment], q: &[f32]) -> Vec<f32> {
        let cols = self.params.n_heads * self.params.head_dim;
        let rows = q.len() / cols;
        let mut out = vec![f32::NAN; rows * cols];
        let q = ActRef::F32(MatRef::new(q, rows, cols));
        self.run_on(store, segments, q, ActMut::F32(MatMut::new(&mut out, rows, cols)));
        out
    }

    fn run_on(&self, store: &Store, segments: &[AttentionSegment], q: ActRef<'_>, out: ActMut<'_>) {
        let mut plan = AttentionPlan::new();
        plan.rebuild(&self.params, self.par.threads(), segments.iter().copied());
        self.kernels.attention(&self.params, &plan, store, q, out, &Scratch::new(), &self.par);
    }
}

fn segment(position: usize, tokens: usize) -> AttentionSegment {
    AttentionSegment { position, tokens }
}

/// Kinds of attention: every mask, with and without a cap and sinks.
fn variants<'a>(base: AttentionParams<'a>, sinks: &'a [f32]) -> Vec<AttentionParams<'a>> {
    let base = AttentionParams { scale: 0.3, ..base };
    vec![
        base,
        AttentionParams { window: Some(70), ..base },
        AttentionParams { window: Some(1), sinks: Some(sinks), ..base },
        AttentionParams { softcap: Some(2.5), sinks: Some(sinks), ..base },
        AttentionParams { softcap: Some(30.0), window: Some(600), ..base },
        AttentionParams { causal: false, sinks: Some(sinks), scale: -0.2, ..base },
    ]
}

#[test]
fn an_empty_batch_is_fine() {
    for kernels in tiers() {
        let params = AttentionParams::causal(4, 2, 16);
        let setup = Setup { kernels, par: Par::seq(), params };
        let mut store = Store::new(KvDType::Bf16, &params);
        assert!(setup.run(&store, &[], &[]).is_empty());
        store.push(&params, &Tokens::noise(1, &params, 3), 3);
        assert!(setup.run(&store, &[segment(3, 0)], &[]).is_empty());
    }
}

#[test]
fn a_repeated_step_takes_no_new_memory() {
    let pool = Pool::unpinned(2).unwrap();
    let params = AttentionParams::causal(4, 2, 16);
    let tokens = Tokens::noise(1, &params, 1100);
    let mut store = Store::new(KvDType::Int8, &params);
    store.push(&params, &tokens, 1100);
    let mut plan = AttentionPlan::new();
    plan.rebuild(&params, 2, [segment(1099, 1)]);
    let scratch = Scratch::new();
    let step = || {
        let mut out = vec![f32::NAN; 64];
        let (q, o) =
            (ActRef::F32(MatRef::new(&tokens.q[..64], 1, 64)), ActMut::F32(MatMut::new(&mut out, 1, 64)));
        Kernels::detect().attention(&params, &plan, &store, q, o, &scratch, &pool.par());
        (scratch.bytes(), out)
    };
    let first = step();
    assert!(first.0 > 0);
    for _ in 0..3 {
        assert_eq!(step(), first);
    }
}

#[test]
#[should_panic(expected = "plan for other attention parameters")]
fn a_plan_for_other_parameters_is_refused() {
    let params = AttentionParams::causal(4, 2, 16);
    let mut plan = AttentionPlan::new();
    plan.rebuild(&AttentionParams { window: Some(5), ..params }, 1, []);
    let (q, mut out): ([f32; 0], [f32; 0]) = ([], []);
    let (q, out) = (ActRef::F32(MatRef::new(&q, 0, 64)), ActMut::F32(MatMut::new(&mut out, 0, 64)));
    let store = Store::new(KvDType::F32, &params);
    Kernels::detect().attention(&params, &plan, &store, q, out, &Scratch::new(), &Par::seq());
}

#[test]
#[should_panic(expected = "the first one that is missing")]
fn missing_blocks_are_noticed() {
    let params = AttentionParams::causal(4, 2, 16);
    let tokens = Tokens::noise(1, &params, 200);
    let mut store = Store::new(KvDType::F32, &params);
    store.push(&params, &tokens, 100);
    let setup = Setup { kernels: Kernels::detect(), par: Par::seq(), params };
    setup.run(&store, &[segment(199, 1)], &tokens.q[..64]);
}

#[test]
#[should_panic(expected = "multiples of 8")]
fn an_odd_head_dimension_is_refused() {
    AttentionPlan::new().rebuild(&AttentionParams::causal(4, 2, 20), 1, []);
}
