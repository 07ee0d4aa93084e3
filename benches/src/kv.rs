//! Decoding over a KV cache that grows: what each kind of cache costs in time and memory.

use std::ops::Range;
use std::time::{Duration, Instant};

use pace_kernels::{ActMut, ActRef, DType, KV_BLOCK, KvLayout, MatMut, MatRef, bf16};
use pace_ops::{
    Attention, AttentionPlan, AttentionShape, Backend, BuildCx, KvBatch, KvCache, KvRows, KvUsage,
};
use pace_runtime::kv_cache::{BmcConfig, BmcGrow, BmcGrowth, KvCacheKind, KvConfig, KvShape};
use serde::Serialize;

use crate::paired::median;
use crate::{Bench, numbers};

/// Llama-3.2-1B's heads.
const HEADS: AttentionShape = AttentionShape { n_heads: 32, n_kv_heads: 8, head_dim: 64, scale: 0.125 };

/// Its layers.
const LAYERS: usize = 16;

/// Bytes of a batch: as many layers are run as fit, at most [`LAYERS`].
const BATCH_BYTES: usize = 512 << 20;

/// The setting that all others are compared with.
const AUTO: &str = "auto";

/// Steps of a run at which attention is timed.
const SAMPLES: usize = 12;

/// What one setting did at one batch size and length. Times are medians.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each in the end.
    pub length: usize,
    /// Layers.
    pub layers: usize,
    /// The setting.
    pub cache: String,
    /// Growths of a sequence's cache.
    pub allocations: usize,
    /// Tokens per second of the whole batch.
    pub tokens_per_second: f64,
    /// Seconds of storing rows and growing.
    pub append_seconds: f64,
    /// `auto`'s time by this one's, round by round.
    pub auto_to_this: f64,
    /// Bytes copied, whole batch.
    pub bytes_copied: usize,
    /// Bytes that the batch may hold at most.
    pub peak_bytes: usize,
    /// Bytes held, averaged over the tokens.
    pub mean_bytes: f64,
    /// The same by the bytes of the rows that were there.
    pub spare_ratio: f64,
}

/// A setting and what it did, round by round.
struct Candidate {
    /// All that it is called.
    names: Vec<String>,
    config: KvConfig,
    runs: Vec<Run>,
}

impl Candidate {
    fn new(name: String, config: KvConfig) -> Self {
        Self { names: vec![name], config, runs: Vec::new() }
    }
}

/// One run from the first token to the last.
#[derive(Clone, Copy)]
struct Run {
    append: Duration,
    attention: f64,
    mean_bytes: f64,
    bytes_copied: usize,
    allocations: usize,
}

impl Run {
    fn seconds(&self) -> f64 {
        self.append.as_secs_f64() + self.attention
    }
}

/// The settings that are compared for sequences of `shape`. Those that grow alike are measured as one; `auto` is always
/// measured for itself.
fn candidates(shape: &KvShape) -> Vec<Candidate> {
    let kinds = [KvCacheKind::Dynamic, KvCacheKind::Static];
    let mut all: Vec<_> = kinds.map(|kind| Candidate::new(kind.name().to_owned(), kind.into())).into();
    for (name, grow) in [(AUTO, BmcGrow::Commit), ("auto, copy", BmcGrow::Copy)] {
        let config = KvConfig { bmc: BmcConfig { grow, ..BmcConfig::default() }, ..KvCacheKind::Bmc.into() };
        all.push(Candidate::new(name.to_owned(), config.settled(shape)));
    }
    let fixed = all.len();
    for grow in [BmcGrow::Commit, BmcGrow::Copy] {
        for growth in [BmcGrowth::Doubling, BmcGrowth::Linear] {
            for splits in [1, 2, 4, 8, 16, shape.max_len.isqrt()] {
                let bmc =
                    BmcConfig { splits: Some(splits), growth: Some(growth), grow, ..BmcConfig::default() };
                let config = KvConfig { bmc, ..KvCacheKind::Bmc.into() };
                let name = format!("{splits} {}, {}", growth.name(), grow.name());
                let alike = |other: &&mut Candidate| {
                    other.config.bmc.grow == grow && growths(&other.config, shape) == growths(&config, shape)
                };
                match all[fixed..].iter_mut().find(alike) {
                    Some(other) => other.names.push(name),
                    None => all.push(Candidate::new(name, config)),
                }
            }
        }
    }
    all
}

/// A cache after each block.
fn growths(config: &KvConfig, shape: &KvShape) -> Vec<KvUsage> {
    let mut cache = config.build(*shape).expect("the bench fits the memory");
    let blocks = (KV_BLOCK..=shape.max_len).step_by(KV_BLOCK);
    let after = blocks.map(|len| {
        cache.reserve(len).expect("the bench fits the memory");
        cache.set_len(len);
        cache.usage()
    });
    after.collect()
}

/// Caches of a batch.
struct Batch(Vec<Box<dyn KvCache>>);

impl KvBatch for Batch {
    fn cache(&self, seq: usize) -> &dyn KvCache {
        self.0[seq].as_ref()
    }
}

/// Lets settings take turns at one point, `rounds` times after one that is not counted: `auto` and those that `only` names,
/// or all if it names none.
///
/// # Panics
/// There is too little memory.
pub fn measure(bench: &Bench, batch: usize, length: usize, rounds: usize, only: &[String]) -> Vec<Row> {
    let layout = KvLayout::new(DType::Bf16, HEADS.head_dim);
    let layer = batch * HEADS.n_kv_heads * length.div_ceil(KV_BLOCK) * layout.block_bytes();
    let n_layers = (BATCH_BYTES / layer).clamp(1, LAYERS);
    let shape = KvShape { n_layers, n_kv_heads: HEADS.n_kv_heads, layout, max_len: length };
    let work = Work::new(bench, batch, shape);
    let mut all = candidates(&shape);
    let wanted = |name: &String| name == AUTO || only.is_empty() || only.contains(name);
    all.iter_mut().for_each(|candidate| candidate.names.retain(wanted));
    all.retain(|candidate| !candidate.names.is_empty());
    let n = all.len();
    // Each has other neighbours in each round: what ran before leaves its memory behind.
    let steps: Vec<_> = (1..n.max(2)).filter(|&step| gcd(step, n) == 1).collect();
    for round in 0..=rounds {
        for i in 0..n {
            let candidate = &mut all[(i * steps[round % steps.len()] + 7 * round) % n];
            let run = work.run(&candidate.config);
            if round > 0 {
                candidate.runs.push(run);
            }
        }
    }
    let auto = all.iter().find(|c| c.names[0] == AUTO).map_or_else(Vec::new, |c| seconds(&c.runs));
    let rows = |c| rows(c, &shape, batch, &auto);
    all.iter().flat_map(rows).collect()
}

/// The greatest common divisor.
fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn seconds(runs: &[Run]) -> Vec<f64> {
    runs.iter().map(Run::seconds).collect()
}

/// A row for each name of a setting.
fn rows(candidate: &Candidate, shape: &KvShape, batch: usize, auto: &[f64]) -> Vec<Row> {
    let (length, own) = (shape.max_len, seconds(&candidate.runs));
    let last = candidate.runs[candidate.runs.len() - 1];
    let token = shape.n_layers * HEADS.n_kv_heads * shape.layout.block_bytes() / KV_BLOCK;
    let in_use = (batch * token * (length + 1)) as f64 / 2.0;
    let append = candidate.runs.iter().map(|r| r.append.as_secs_f64());
    let row = |name: &String| Row {
        batch,
        length,
        layers: shape.n_layers,
        cache: name.clone(),
        allocations: last.allocations,
        tokens_per_second: (batch * length) as f64 / median(&mut own.clone()),
        append_seconds: median(&mut append.clone().collect::<Vec<_>>()),
        auto_to_this: median(&mut auto.iter().zip(&own).map(|(auto, own)| auto / own).collect::<Vec<_>>()),
        bytes_copied: last.bytes_copied,
        peak_bytes: candidate.config.peak_bytes(shape) * batch,
        mean_bytes: last.mean_bytes,
        spare_ratio: last.mean_bytes / in_use,
    };
    candidate.names.iter().map(row).collect()
}

/// What all settings do at one point.
struct Work<'b> {
    bench: &'b Bench,
    batch: usize,
    shape: KvShape,
    attention: Attention,
    /// A block's rows of keys and values.
    rows: Vec<bf16>,
    queries: Vec<bf16>,
}

impl<'b> Work<'b> {
    fn new(bench: &'b Bench, batch: usize, shape: KvShape) -> Self {
        let build = BuildCx::new(bench.cx().kernels);
        let attention = Attention::new(&build, HEADS, DType::Bf16, Backend::Flash);
        let numbers = |seed, n| numbers(seed, n).into_iter().map(bf16::from_f32).collect();
        Self {
            bench,
            batch,
            shape,
            attention: attention.expect("FLASH takes heads of 64"),
            rows: numbers(1, KV_BLOCK * HEADS.n_kv_heads * HEADS.head_dim),
            queries: numbers(2, batch * HEADS.n_heads * HEADS.head_dim),
        }
    }

    /// From the first token to the last. Rows are stored block by block, and every growth happens, but that of a dynamic
    /// cache, which grows at every token, once a block: it counts for all tokens of the block. Attention is timed at some
    /// steps, each of which stands for those around it.
    fn run(&self, config: &KvConfig) -> Run {
        let length = self.shape.max_len;
        let caches = (0..self.batch).map(|_| config.build(self.shape).expect("the bench fits the memory"));
        let mut caches = Batch(caches.collect());
        let (mut append, mut attention, mut held) = (Duration::ZERO, 0.0, 0.0);
        let mut out = vec![bf16::ZERO; self.queries.len()];
        let (mut growths, mut copied) = (caches.0[0].usage().allocations, 0);
        let mut samples = (0..SAMPLES).map(|i| (2 * i + 1) * length / (2 * SAMPLES)).peekable();
        for block in 0..length.div_ceil(KV_BLOCK) {
            let tokens = block * KV_BLOCK..length.min((block + 1) * KV_BLOCK);
            let times = if config.kind == KvCacheKind::Dynamic { tokens.len() } else { 1 };
            let before = caches.0[0].usage();
            append +=
                self.grow(&mut caches, tokens.end) * times as u32 + self.store(&mut caches, tokens.clone());
            let after = caches.0[0].usage();
            growths += (after.allocations - before.allocations) * times;
            copied += (after.bytes_copied - before.bytes_copied) * times;
            let bytes: usize = caches.0.iter().map(|kv| kv.usage().bytes).sum();
            held += (bytes * tokens.len()) as f64;
            while samples.next_if(|at| tokens.contains(at)).is_some() {
                attention += self.attend(&caches, tokens.end, &mut out) * length as f64 / SAMPLES as f64;
            }
        }
        Run {
            append,
            attention,
            mean_bytes: held / length as f64,
            bytes_copied: copied * self.batch,
            allocations: growths,
        }
    }

    /// Makes room for `len` tokens.
    fn grow(&self, caches: &mut Batch, len: usize) -> Duration {
        let start = Instant::now();
        for kv in &mut caches.0 {
            kv.reserve(len).expect("the bench fits the memory");
        }
        start.elapsed()
    }

    /// Stores the rows of `tokens`.
    fn store(&self, caches: &mut Batch, tokens: Range<usize>) -> Duration {
        let start = Instant::now();
        let cols = HEADS.n_kv_heads * HEADS.head_dim;
        let rows = ActRef::Bf16(MatRef::new(&self.rows[..tokens.len() * cols], tokens.len(), cols));
        for kv in &mut caches.0 {
            for layer in 0..self.shape.n_layers {
                kv.append(self.bench.cx().par, layer, KvRows { first: tokens.start, k: rows, v: rows });
            }
            kv.set_len(tokens.end);
        }
        start.elapsed()
    }

    /// Seconds of a step's attention behind `len` tokens, all layers.
    fn attend(&self, caches: &Batch, len: usize, out: &mut [bf16]) -> f64 {
        let (cx, cols) = (self.bench.cx(), HEADS.n_heads * HEADS.head_dim);
        let mut plan = AttentionPlan::default();
        plan.rebuild(&HEADS, cx.par.threads(), std::iter::repeat_n((len - 1, 1), self.batch));
        // Short ones several times, so that all weigh the same against the noise.
        let blocks = self.shape.n_layers * HEADS.n_kv_heads * len.div_ceil(KV_BLOCK) * self.batch;
        let times = (BATCH_BYTES / (blocks * self.shape.layout.block_bytes())).clamp(1, 32);
        let start = Instant::now();
        for _ in 0..times {
            for layer in 0..self.shape.n_layers {
                let q = MatRef::new(&self.queries, self.batch, cols);
                let out = MatMut::new(out, self.batch, cols);
                self.attention.forward(&cx, layer, &plan, caches, ActRef::Bf16(q), ActMut::Bf16(out));
            }
        }
        start.elapsed().as_secs_f64() / times as f64
    }
}
