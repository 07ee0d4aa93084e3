//! The generated step against the table's, bit for bit: alone with its operands between pages without
//! access, and under whole batches with a table whose step must not be called.

use half::bf16;
use proptest::prelude::*;

use super::{Store, Tokens, segment, variants};
use crate::attention::{AttentionTiles, KvElement, Logits, SUM_LANES, Step};
use crate::jit::{AttentionKey, KernelKey, Scores};
use crate::table::Table;
use crate::tests::guard::{Flush, Guarded};
use crate::tests::jit::assert_bits;
use crate::tests::noise_vec;
use crate::{
    ActMut, ActRef, AttentionParams, AttentionPlan, Isa, Jit, JitCapacity, JitError, KV_BLOCK, Kernels,
    KvDType, MatMut, MatRef, Par, Pool, Scratch,
};

fn poisoned_step(_: Step<'_, bf16>) {
    panic!("the table's attention step was called");
}

static POISONED: Table = Table {
    attention: AttentionTiles { step_bf16: poisoned_step, ..crate::arch::avx512_bf16::TABLE.attention },
    ..crate::arch::avx512_bf16::TABLE
};

/// The tier's own kernels, and a generator on top of kernels without the step.
fn kernels_and_jit() -> Option<(Kernels, Jit)> {
    let kernels = Kernels::new(Isa::Avx512Bf16)?;
    Some((kernels, Jit::new(kernels.with_table(&POISONED), JitCapacity::default()).unwrap()))
}

/// The operands of a step that are written.
struct State {
    p: Guarded<f32>,
    shrink: Guarded<f32>,
    m: Guarded<f32>,
    l: Guarded<f32>,
    o: Guarded<f32>,
}

impl State {
    fn new(flush: Flush, seed: u32, rows: usize, width: usize) -> Self {
        let noise = |seed, len| Guarded::new(flush, &noise_vec(seed, len));
        let mut this = Self {
            p: noise(seed, rows * KV_BLOCK),
            shrink: noise(seed + 1, rows),
            m: noise(seed + 2, rows),
            l: noise(seed + 3, rows * SUM_LANES),
            o: noise(seed + 4, rows * width),
        };
        // Every third row has seen nothing yet, as at the start of a unit.
        this.m.iter_mut().step_by(3).for_each(|m| *m = -1e30);
        this
    }

    fn step<'a>(
        &'a mut self,
        key: &AttentionKey,
        logits: Logits,
        seen: Option<&'a [u64]>,
        q: &'a [bf16],
        block: &'a [bf16],
    ) -> Step<'a, bf16> {
        Step {
            head_dim: key.head_dim,
            logits,
            seen,
            q,
            block,
            p: &mut self.p,
            shrink: &mut self.shrink,
            m: &mut self.m,
            l: &mut self.l,
            o: &mut self.o,
        }
    }

    /// What both must agree on. Scores are only a way to P, which are the first half of a row as bf16.
    fn parts(&self) -> [(&str, Vec<f32>); 5] {
        let p = self.p.chunks_exact(KV_BLOCK).flat_map(|row| &row[..KV_BLOCK / 2]).copied().collect();
        let copy = |part: &Guarded<f32>| part.to_vec();
        [
            ("p", p),
            ("shrink", copy(&self.shrink)),
            ("m", copy(&self.m)),
            ("l", copy(&self.l)),
            ("o", copy(&self.o)),
        ]
    }
}

fn bf16s(flush: Flush, seed: u32, len: usize, scale: f32) -> Guarded<bf16> {
    let values: Vec<_> = noise_vec(seed, len).iter().map(|x| bf16::from_f32(scale * x)).collect();
    Guarded::new(flush, &values)
}

/// Which tokens of a block consecutive tokens see.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// The position of the first token, counted from the block's first one.
    position: usize,
    /// How many tokens one sees up to its own, at most.
    window: Option<usize>,
    /// The end of the sequence, counted as `position`, if tokens see what follows them.
    end: Option<usize>,
}

impl Span {
    fn mask(&self, token: usize) -> u64 {
        let next = self.position + token + 1;
        let start = self.window.map_or(0, |window| next.saturating_sub(window));
        let end = self.end.unwrap_or(next).min(KV_BLOCK);
        (start..end).fold(0, |mask, slot| mask | 1 << slot)
    }

    /// What the rows of `tokens` tokens see; `None` if it is all.
    fn masks(&self, flush: Flush, tokens: usize, group: usize) -> Option<Guarded<u64>> {
        let masks: Vec<_> = (0..tokens * group).map(|row| self.mask(row / group)).collect();
        masks.iter().any(|&mask| mask != u64::MAX).then(|| Guarded::new(flush, &masks))
    }
}

/// One step of `tokens` tokens by both.
fn check(key: &AttentionKey, tokens: usize, span: Span, flush: Flush, seed: u32) {
    let Some((kernels, jit)) = kernels_and_jit() else { return };
    let (rows, d) = (tokens * key.group, key.head_dim);
    let width = d.next_multiple_of(16);
    let logits = match key.scores {
        Scores::Scaled => Logits::Scaled { factor: 0.4 },
        Scores::Multiplied => Logits::Scaled { factor: -0.3 },
        Scores::Capped => Logits::Capped { inner: 0.2, cap: 3.0 },
    };
    let q = bf16s(flush, seed, rows * d, 3.0);
    let block = bf16s(flush, seed + 1, (d + width) * KV_BLOCK, 1.0);
    let seen = span.masks(flush, tokens, key.group);
    let mut wanted = State::new(flush, seed + 2, rows, width);
    let mut got = State::new(flush, seed + 2, rows, width);
    bf16::step(kernels, None, wanted.step(key, logits, seen.as_deref(), &q, &block));
    jit.attention_step(key).unwrap().run(got.step(key, logits, seen.as_deref(), &q, &block));
    for ((name, got), (_, wanted)) in got.parts().into_iter().zip(wanted.parts()) {
        let what = format_args!("{name} of {key}, {tokens} tokens, {span:?}, {flush:?}, seed {seed}");
        assert_bits(&got, &wanted, what);
    }
}

fn scores() -> impl Strategy<Value = Scores> {
    prop_oneof![Just(Scores::Scaled), Just(Scores::Multiplied), Just(Scores::Capped)]
}

fn keys() -> impl Strategy<Value = AttentionKey> {
    (1usize..=32, 1usize..=9, scores()).prop_map(|(d, group, scores)| AttentionKey {
        head_dim: 8 * d,
        group,
        scores,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_step_gives_the_bits_of_the_table(
        key in keys(),
        tokens in 1usize..12,
        position in 0usize..140,
        window in proptest::option::of(64usize..100),
        right: bool,
        seed in 0u32..1000,
    ) {
        // Every row sees at least one token of the block.
        let position = window.map_or(position, |window| position.min(window + KV_BLOCK - 1 - tokens));
        let span = Span { position, window, end: None };
        check(&key, tokens, span, Flush::BOTH[usize::from(right)], seed);
        let full = Span { window: None, end: Some(1 + position), ..span };
        check(&key, tokens, full, Flush::BOTH[usize::from(right)], seed);
    }

    #[test]
    fn a_name_gives_its_key_back(key in keys()) {
        prop_assert_eq!(key.to_string().parse(), Ok(KernelKey::Attention(key)));
    }
}

#[test]
fn more_rows_than_a_call_takes() {
    let key = AttentionKey { head_dim: 64, group: 71, scores: Scores::Scaled };
    let span = Span { position: 40, window: None, end: None };
    check(&key, 1, span, Flush::Right, 1);
    check(&key, 3, span, Flush::Left, 2);
}

/// A whole batch by both.
fn check_batch(params: AttentionParams<'_>, dtype: KvDType, par: Par<'_>) {
    let Some((kernels, jit)) = kernels_and_jit() else { return };
    let cols = params.n_heads * params.head_dim;
    let (long, short) = (Tokens::noise(5, &params, 700), Tokens::noise(6, &params, 90));
    let mut store = Store::new(dtype, &params);
    store.push(&params, &long, 700);
    store.push(&params, &short, 90);
    let segments =
        if params.causal { [segment(699, 1), segment(20, 70)] } else { [segment(0, 700), segment(0, 90)] };
    let q = [&long.q[segments[0].position * cols..], &short.q[segments[1].position * cols..]].concat();
    let rows = q.len() / cols;
    let mut plan = AttentionPlan::new();
    plan.rebuild(&params, par.threads(), segments);
    let q = ActRef::F32(MatRef::new(&q, rows, cols));
    let (mut wanted, mut got) = (vec![0.0f32; rows * cols], vec![0.0f32; rows * cols]);
    let scratch = Scratch::new();
    let out = ActMut::F32(MatMut::new(&mut wanted, rows, cols));
    kernels.attention(&params, &plan, &store, q, out, &scratch, &par);
    let out = ActMut::F32(MatMut::new(&mut got, rows, cols));
    jit.attention(&params, &plan, &store, q, out, &scratch, &par).unwrap();
    assert!(got.iter().zip(&wanted).all(|(a, b)| a.to_bits() == b.to_bits()), "{params:?} {dtype}");
}

#[test]
fn batches_are_those_of_the_table_without_its_step() {
    let pool = Pool::unpinned(2).unwrap();
    for (n_heads, n_kv_heads, d) in [(4, 1, 64), (6, 2, 40), (2, 2, 128), (7, 1, 16)] {
        let sinks = noise_vec(3, n_heads);
        for params in variants(AttentionParams::causal(n_heads, n_kv_heads, d), &sinks) {
            check_batch(params, KvDType::Bf16, pool.par());
            check_batch(params, KvDType::Int8, pool.par());
        }
    }
}

#[test]
fn f32_blocks_are_an_error() {
    let Some((_, jit)) = kernels_and_jit() else { return };
    let params = AttentionParams::causal(2, 1, 16);
    let store = Store::new(KvDType::F32, &params);
    let mut plan = AttentionPlan::new();
    plan.rebuild(&params, 1, []);
    let mut out: [f32; 0] = [];
    let (q, out) = (ActRef::F32(MatRef::new(&[], 0, 32)), ActMut::F32(MatMut::new(&mut out, 0, 32)));
    let error = jit.attention(&params, &plan, &store, q, out, &Scratch::new(), &Par::seq()).unwrap_err();
    assert!(matches!(error, JitError::Kv(KvDType::F32)), "{error}");
}
