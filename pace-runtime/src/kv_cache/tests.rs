//! One suite for every kind of cache and every setting.

use super::*;
use pace_kernels::{ActRef, Kernels, MatRef, Par, Pool};
use pace_ops::{KvRows, KvUsage};
use proptest::prelude::*;

const MAX_LEN: usize = 400;

/// What a cache must do, step by step, against a plain vector of rows.
#[derive(Clone, Debug)]
enum Step {
    /// Rows that go on from the newest.
    Append(usize),
    /// Rows that are stored and dropped: rejected speculation.
    Speculate(usize),
    Truncate(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1usize..90).prop_map(Step::Append),
        (1usize..20).prop_map(Step::Speculate),
        (0usize..300).prop_map(Step::Truncate)
    ];
    prop::collection::vec(step, 1..12)
}

/// Settings of BMC: every way to grow, and splits that are given or not.
fn bmc_configs() -> impl Strategy<Value = KvConfig> {
    let growth = prop::sample::select(vec![None, Some(BmcGrowth::Doubling), Some(BmcGrowth::Linear)]);
    let grow = prop::sample::select(vec![BmcGrow::Copy, BmcGrow::Commit]);
    let splits = prop_oneof![Just(None), (1usize..9).prop_map(Some), (1..=MAX_LEN).prop_map(Some)];
    (growth, grow, splits).prop_map(|(growth, grow, splits)| {
        let bmc = BmcConfig { splits, growth, grow, ..BmcConfig::default() };
        KvConfig { kind: KvCacheKind::Bmc, bmc, ..KvConfig::default() }
    })
}

fn shape(dtype: KvDType, head_dim: usize) -> KvShape {
    KvShape { n_layers: 2, n_kv_heads: 3, layout: KvLayout::new(dtype, head_dim), max_len: MAX_LEN }
}

/// A value that bf16 holds exactly and that tells token, layer, head, dimension and k from v.
fn value(token: usize, layer: usize, head: usize, dim: usize, is_v: bool) -> f32 {
    let mixed = token * 7 + layer * 31 + head * 13 + dim * 3 + usize::from(is_v) * 101;
    (mixed % 251) as f32 - 125.0
}

/// The key or value of a token as it reads: int8 keeps it, rotated, within half a scale.
fn row(shape: &KvShape, token: usize, layer: usize, head: usize, is_v: bool) -> Vec<f32> {
    let d = shape.layout.head_dim();
    let mut row: Vec<f32> = (0..d).map(|i| value(token, layer, head, i, is_v)).collect();
    if shape.layout.dtype() == KvDType::Int8 {
        let kernels = Kernels::detect();
        kernels.rotate(&mut row);
        let largest = row.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
        if largest > 0.0 {
            row.iter_mut().for_each(|x| *x = (*x * (127.0 / largest)).round_ties_even() * (largest / 127.0));
        }
        kernels.rotate(&mut row);
    }
    row
}

/// Stores the values of `tokens`, or what `spoil` says instead.
fn append(
    cache: &mut dyn KvCache,
    par: Par<'_>,
    shape: &KvShape,
    tokens: std::ops::Range<usize>,
    spoil: Option<f32>,
) {
    let (d, heads) = (shape.layout.head_dim(), shape.n_kv_heads);
    cache.reserve(tokens.end).unwrap();
    for layer in 0..shape.n_layers {
        let rows = |is_v| -> Vec<f32> {
            let at = |t, i| spoil.unwrap_or_else(|| value(t, layer, i / d, i % d, is_v));
            tokens.clone().flat_map(|t| (0..heads * d).map(move |i| at(t, i))).collect()
        };
        let (k, v) = (rows(false), rows(true));
        let [k, v] = [&k, &v].map(|rows| ActRef::F32(MatRef::new(rows, tokens.len(), heads * d)));
        cache.append(par, layer, KvRows { first: tokens.start, k, v });
    }
    cache.set_len(tokens.end);
}

fn check(cache: &dyn KvCache, shape: &KvShape, len: usize) {
    let (d, kernels) = (shape.layout.head_dim(), Kernels::detect());
    let mut buf = vec![0.0; KV_BLOCK * d];
    for layer in 0..shape.n_layers {
        for head in 0..shape.n_kv_heads {
            let mut next = 0;
            cache.for_each_run(layer, head, len, &mut |run| {
                assert_eq!(run.first_token, next, "runs follow each other");
                for i in 0..run.block_count(&shape.layout) {
                    let block = run.block(&shape.layout, i);
                    let tokens = KV_BLOCK.min(len.saturating_sub(next));
                    shape.layout.unpack_k(&kernels, block, tokens, &mut buf);
                    for t in 0..tokens {
                        let key: Vec<f32> = (0..d).map(|i| buf[i * KV_BLOCK + t]).collect();
                        assert_eq!(key, row(shape, next + t, layer, head, false));
                    }
                    shape.layout.unpack_v(&kernels, block, tokens, &mut buf);
                    for t in 0..tokens {
                        assert_eq!(buf[t * d..][..d], row(shape, next + t, layer, head, true));
                    }
                    next += KV_BLOCK;
                }
            });
            assert!(next >= len && next < len + KV_BLOCK, "runs cover the length");
        }
    }
}

/// What holds for `usage` after any step, `before` being that before it.
fn check_usage(config: &KvConfig, shape: &KvShape, cache: &dyn KvCache, before: KvUsage) {
    let usage = cache.usage();
    assert_eq!(usage.kind, config.kind.name());
    assert!(usage.capacity_rows >= cache.len(), "{usage:?}");
    assert!(usage.bytes <= config.peak_bytes(shape), "{usage:?}, peak {}", config.peak_bytes(shape));
    let rows = shape.n_layers * shape.n_kv_heads * usage.capacity_rows / KV_BLOCK;
    assert!(usage.bytes >= rows * shape.layout.block_bytes(), "{usage:?}");
    let grown = usage.allocations - before.allocations;
    let longer = usage.capacity_rows > before.capacity_rows;
    // A dynamic cache is copied at each append.
    let as_told =
        if config.kind == KvCacheKind::Dynamic { grown == 1 || !longer } else { longer == (grown == 1) };
    assert!(grown <= 1 && as_told, "{before:?} {usage:?}");
    assert_eq!((grown == 0), (usage == before), "nothing changes between growths");
    if config.kind == KvCacheKind::Static {
        assert_eq!((usage.allocations, usage.bytes), (1, config.peak_bytes(shape)));
    }
    if config.kind == KvCacheKind::Static || (config.grow() == BmcGrow::Commit) {
        assert_eq!(usage.bytes_copied, 0, "nothing moves");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_kind_is_a_vector_of_rows(
        steps in steps(),
        dtype in prop::sample::select(KvDType::ALL.to_vec()),
        d in 1usize..20,
        bmc in prop::collection::vec(bmc_configs(), 3),
    ) {
        let pool = Pool::unpinned(2).unwrap();
        let shape = shape(dtype, d);
        for config in KvCacheKind::ALL.map(KvConfig::from).into_iter().chain(bmc) {
            let mut cache = config.build(shape).unwrap();
            for step in &steps {
                let (len, before) = (cache.len(), cache.usage());
                match *step {
                    Step::Append(n) | Step::Speculate(n) if len + n > MAX_LEN => {
                        let err = cache.reserve(len + n).unwrap_err();
                        prop_assert_eq!(err, KvError::TooLong { asked: len + n, max: MAX_LEN });
                    }
                    Step::Append(n) => append(cache.as_mut(), pool.par(), &shape, len..len + n, None),
                    Step::Speculate(n) => {
                        append(cache.as_mut(), pool.par(), &shape, len..len + n, Some(f32::NAN));
                        cache.set_len(len);
                    }
                    Step::Truncate(to) => cache.set_len(to.min(len)),
                }
                check(cache.as_ref(), &shape, cache.len());
                check_usage(&config, &shape, cache.as_ref(), before);
            }
        }
    }
}

/// Rows and bytes of every growth of a cache that is filled token by token.
fn fill(config: &KvConfig, shape: &KvShape) -> (Vec<usize>, KvUsage) {
    let mut cache = config.build(*shape).unwrap();
    let mut rows: Vec<usize> = Vec::new();
    for len in 0..shape.max_len {
        append(cache.as_mut(), Par::seq(), shape, len..len + 1, None);
        let capacity = cache.usage().capacity_rows;
        if rows.last() != Some(&capacity) {
            rows.push(capacity);
        }
    }
    check(cache.as_ref(), shape, shape.max_len);
    (rows, cache.usage())
}

fn bmc(splits: usize, growth: BmcGrowth, grow: BmcGrow) -> KvConfig {
    let bmc = BmcConfig { splits: Some(splits), growth: Some(growth), grow, ..BmcConfig::default() };
    KvConfig { kind: KvCacheKind::Bmc, bmc, ..KvConfig::default() }
}

#[test]
fn splits_are_the_number_of_allocations() {
    let shape = KvShape { max_len: 1024, ..shape(KvDType::Bf16, 8) };
    for grow in [BmcGrow::Copy, BmcGrow::Commit] {
        let grown = |splits, growth| fill(&bmc(splits, growth, grow), &shape).0;
        assert_eq!(grown(1, BmcGrowth::Doubling), [1024]);
        assert_eq!(grown(4, BmcGrowth::Doubling), [128, 256, 512, 1024]);
        assert_eq!(grown(5, BmcGrowth::Doubling), [64, 128, 256, 512, 1024]);
        assert_eq!(grown(1024, BmcGrowth::Doubling), [64, 128, 256, 512, 1024]);
        assert_eq!(grown(4, BmcGrowth::Linear), [256, 512, 768, 1024]);
        assert_eq!(grown(1024, BmcGrowth::Linear).len(), 16);
    }
    assert_eq!(fill(&KvCacheKind::Dynamic.into(), &shape).0.len(), 16);
    assert_eq!(fill(&KvCacheKind::Static.into(), &shape).0, [1024]);
}

#[test]
fn copies_are_counted_to_the_byte() {
    for dtype in KvDType::ALL {
        let shape = KvShape { max_len: 1024, ..shape(dtype, 8) };
        let block = shape.n_layers * shape.n_kv_heads * shape.layout.block_bytes();
        let usage = |splits, growth| fill(&bmc(splits, growth, BmcGrow::Copy), &shape).1;
        let doubled = usage(4, BmcGrowth::Doubling);
        assert_eq!((doubled.bytes, doubled.bytes_copied), (16 * block, (2 + 4 + 8) * block));
        assert_eq!(usage(4, BmcGrowth::Linear).bytes_copied, (4 + 8 + 12) * block);
        let dynamic = fill(&KvCacheKind::Dynamic.into(), &shape).1;
        let copied: usize = (1..1024usize).map(|tokens| tokens.div_ceil(KV_BLOCK)).sum();
        assert_eq!((dynamic.allocations, dynamic.bytes), (1024, 16 * block));
        assert_eq!(dynamic.bytes_copied, copied * block);
    }
}

#[test]
fn the_table_foretells_what_a_cache_does() {
    for (max_len, expected_len) in [(1024, 1024), (1000, 700), (90, 90), (1, 1)] {
        for grow in [BmcGrow::Copy, BmcGrow::Commit] {
            let shape = KvShape { max_len, ..shape(KvDType::Bf16, 64) };
            let open = KvConfig { bmc: BmcConfig { grow, ..BmcConfig::default() }, ..KvConfig::default() };
            let table = open.table(&shape, KvWorkload { batch: 1, expected_len });
            for candidate in &table.candidates {
                let mut cache = bmc(candidate.splits, candidate.growth, grow).build(shape).unwrap();
                let mut held = 0.0;
                for len in 1..=expected_len {
                    cache.reserve(len).unwrap();
                    cache.set_len(len);
                    held += cache.usage().bytes as f64 / expected_len as f64;
                }
                let usage = cache.usage();
                assert_eq!(
                    (usage.allocations, usage.bytes_copied),
                    (candidate.allocations, candidate.bytes_copied)
                );
                assert!((held / candidate.mean_bytes - 1.0).abs() < 1e-9, "{candidate:?}: {held}");
                assert!(candidate.peak_bytes >= usage.bytes);
            }
        }
    }
}

#[test]
fn the_model_weighs_copies_against_spare_memory() {
    // The shape of Llama-3.2-1B.
    let layout = KvLayout::new(KvDType::Bf16, 64);
    for max_len in [512, 1024, 2048, 4096, 8192, 131_072] {
        let shape = KvShape { n_layers: 16, n_kv_heads: 8, layout, max_len };
        let workload = KvWorkload { batch: 8, expected_len: max_len };
        let choice = |grow, copy_rate| {
            let cost = KvCostModel { copy_rate, ..KvCostModel::default() };
            let bmc = BmcConfig { grow, cost, ..BmcConfig::default() };
            let table =
                KvConfig { kind: KvCacheKind::Bmc, bmc, ..KvConfig::default() }.table(&shape, workload);
            let choice = *table.choice();
            assert!(choice.spare_ratio <= SPARE, "{max_len}: {choice:?}");
            for other in table.candidates.iter().filter(|c| c.spare_ratio <= SPARE) {
                assert!(choice.seconds <= other.seconds, "{choice:?} {other:?}");
            }
            choice
        };
        let (slow, fast) = (choice(BmcGrow::Copy, 1e9), choice(BmcGrow::Copy, 1e15));
        assert!(slow.bytes_copied <= fast.bytes_copied && slow.seconds > fast.seconds);
        let committed = choice(BmcGrow::Commit, 1e9);
        assert_eq!(committed.bytes_copied, 0);
        assert!(committed.seconds < slow.seconds);
    }
}

/// The target for memory held by memory in use.
const SPARE: f64 = 1.25;

#[test]
fn splits_beyond_the_length_are_an_error_that_names_the_flag() {
    for asked in [0, MAX_LEN + 1, usize::MAX] {
        let error = bmc(asked, BmcGrowth::Doubling, BmcGrow::Commit).check(MAX_LEN).unwrap_err();
        assert_eq!(error, KvError::Splits { asked, max: MAX_LEN });
        let text = error.to_string();
        assert!(text.contains("--bmc-splits") && text.contains("1 to 400"), "{text}");
    }
    assert!(bmc(MAX_LEN, BmcGrowth::Linear, BmcGrow::Copy).check(MAX_LEN).is_ok());
}

#[test]
fn a_cache_that_cannot_reserve_addresses_grows_by_copy() {
    let small = KvConfig::default().settled(&shape(KvDType::Bf16, 8));
    assert_eq!(small.bmc.grow, BmcGrow::Commit);
    let vast = KvShape { max_len: usize::MAX >> 20, ..shape(KvDType::F32, 64) };
    assert_eq!(KvConfig::default().settled(&vast).bmc.grow, BmcGrow::Copy);
    assert!(
        KvConfig::default().build(vast).is_err(),
        "what was not settled fails, and does not copy in silence"
    );
}

#[test]
fn settings_are_shown_as_they_were_given() {
    assert_eq!(KvConfig::from(KvCacheKind::Static).to_string(), "static");
    assert_eq!(KvConfig::from(KvCacheKind::Bmc).to_string(), "bmc");
    assert_eq!(bmc(4, BmcGrowth::Linear, BmcGrow::Copy).to_string(), "bmc splits=4 growth=linear grow=copy");
}

#[test]
fn sizes_that_overflow_are_errors() {
    for kind in KvCacheKind::ALL {
        let layout = KvLayout::new(KvDType::F32, 1 << 20);
        let shape = KvShape { n_layers: 1 << 20, n_kv_heads: 1 << 20, layout, max_len: 1 << 40 };
        let result = kind.build(shape).and_then(|mut cache| cache.reserve(1 << 40));
        assert!(matches!(result, Err(KvError::OutOfMemory { .. })), "{kind:?}");
        assert_eq!(KvConfig::from(kind).peak_bytes(&shape), usize::MAX, "{kind:?}");
    }
}
