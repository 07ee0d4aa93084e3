//! KV caches: one per sequence, all behind [`pace_ops::KvCache`].

mod static_cache;

use pace_kernels::KvLayout;
use pace_ops::{KvCache, KvError};

pub use self::static_cache::StaticKvCache;

/// How a cache gets its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvCacheKind {
    /// Room for the longest sequence from the start; pages are touched as they are used.
    #[default]
    Static,
}

/// The shape of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub n_layers: usize,
    /// KV heads per layer.
    pub n_kv_heads: usize,
    /// How a block is laid out.
    pub layout: KvLayout,
    /// The longest sequence, in tokens.
    pub max_len: usize,
}

impl KvCacheKind {
    /// Every kind.
    pub const ALL: [Self; 1] = [Self::Static];

    /// The name used everywhere: lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
        }
    }

    /// Bytes that a cache of this kind and shape comes to hold at most, while it grows, too.
    pub const fn peak_bytes(self, shape: &KvShape) -> usize {
        let blocks = shape.max_len.div_ceil(pace_kernels::KV_BLOCK);
        let rows = shape.n_layers.saturating_mul(shape.n_kv_heads).saturating_mul(blocks);
        rows.saturating_mul(shape.layout.block_bytes())
    }

    /// An empty cache of this kind.
    ///
    /// # Errors
    /// There is no memory.
    pub fn build(self, shape: KvShape) -> Result<Box<dyn KvCache>, KvError> {
        match self {
            Self::Static => Ok(Box::new(StaticKvCache::new(shape)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pace_kernels::{ActRef, DType, KV_BLOCK, Kernels, MatRef, Par, Pool};
    use pace_ops::KvRows;
    use proptest::prelude::*;

    /// What a cache must do, step by step, against a plain vector of rows.
    #[derive(Clone, Debug)]
    enum Step {
        Append(usize),
        Truncate(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![(1usize..70).prop_map(Step::Append), (0usize..90).prop_map(Step::Truncate)];
        prop::collection::vec(step, 1..12)
    }

    /// A value that bf16 holds exactly and that tells token, layer, head, dimension and k from v.
    fn value(token: usize, layer: usize, head: usize, dim: usize, is_v: bool) -> f32 {
        let mixed = token * 7 + layer * 31 + head * 13 + dim * 3 + usize::from(is_v) * 101;
        (mixed % 251) as f32 - 125.0
    }

    fn append(cache: &mut dyn KvCache, par: Par<'_>, shape: &KvShape, tokens: std::ops::Range<usize>) {
        let (d, heads) = (shape.layout.head_dim(), shape.n_kv_heads);
        for layer in 0..shape.n_layers {
            let rows = |is_v| -> Vec<f32> {
                let row = |t| (0..heads * d).map(move |i| value(t, layer, i / d, i % d, is_v));
                tokens.clone().flat_map(row).collect()
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
                        for (t, i) in (0..tokens).flat_map(|t| (0..d).map(move |i| (t, i))) {
                            assert_eq!(buf[i * KV_BLOCK + t], value(next + t, layer, head, i, false));
                        }
                        shape.layout.unpack_v(&kernels, block, tokens, &mut buf);
                        for (t, i) in (0..tokens).flat_map(|t| (0..d).map(move |i| (t, i))) {
                            assert_eq!(buf[t * d + i], value(next + t, layer, head, i, true));
                        }
                        next += KV_BLOCK;
                    }
                });
                assert!(next >= len, "runs cover the length");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_kind_is_a_vector_of_rows(steps in steps(), bf16: bool, d in 1usize..20) {
            let pool = Pool::unpinned(2).unwrap();
            for kind in KvCacheKind::ALL {
                let dtype = if bf16 { DType::Bf16 } else { DType::F32 };
                let layout = KvLayout::new(dtype, d);
                let shape = KvShape { n_layers: 2, n_kv_heads: 3, layout, max_len: 200 };
                let mut cache = kind.build(shape).unwrap();
                for step in &steps {
                    let len = cache.len();
                    match *step {
                        Step::Append(n) if len + n > shape.max_len => {
                            let err = cache.reserve(len + n).unwrap_err();
                            prop_assert_eq!(err, KvError::TooLong { asked: len + n, max: 200 });
                        }
                        Step::Append(n) => {
                            cache.reserve(len + n).unwrap();
                            append(cache.as_mut(), pool.par(), &shape, len..len + n);
                        }
                        Step::Truncate(to) => cache.set_len(to.min(len)),
                    }
                    check(cache.as_ref(), &shape, cache.len());
                    let usage = cache.usage();
                    prop_assert!(usage.capacity_rows >= cache.len());
                    prop_assert_eq!(usage.kind, kind.name());
                }
            }
        }
    }
}
