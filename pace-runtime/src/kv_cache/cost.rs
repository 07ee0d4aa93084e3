//! [`KvPlanTable`]: what growing in parts costs, and which parts are worth it.
//!
//! Few and long parts cost memory that is not used yet. Many parts cost time: rows are copied at each growth, or, where
//! memory is committed in place, attention reads as many separate runs. After "Striking the Right Balance between Compute
//! and Copy", arXiv 2511.12031.

use std::time::Instant;

use pace_kernels::{Buffer, KV_BLOCK, Placement};

use super::region::{committed_bytes, layer_bytes};
use super::schedule::{Schedule, copied_bytes};
use super::{BmcConfig, BmcGrow, BmcGrowth, KvConfig, KvShape};

/// Memory held by the bytes in use, both averaged over the life of a sequence, that is accepted for less time.
const SPARE_LIMIT: f64 = 1.25;

/// Splits that are looked at, and the square root of the longest length.
const SPLITS: [usize; 8] = [1, 2, 4, 6, 8, 16, 32, 64];

/// What growing costs on a machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvCostModel {
    /// Bytes per second that one thread copies into new memory.
    pub copy_rate: f64,
    /// Seconds for a growth, without the copy.
    pub growth_seconds: f64,
    /// Seconds that attention loses where a run of blocks ends and another begins.
    pub run_seconds: f64,
}

/// What a cache is going to be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvWorkload {
    /// Sequences at a time.
    pub batch: usize,
    /// Tokens that a sequence reaches, one by one; at most its longest length.
    pub expected_len: usize,
}

/// One way to grow, and what it costs the whole batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvCandidate {
    /// How parts follow each other.
    pub growth: BmcGrowth,
    /// Allocations asked for.
    pub splits: usize,
    /// How it grows.
    pub grow: BmcGrow,
    /// Growths until the expected length.
    pub allocations: usize,
    /// Bytes that are copied until there.
    pub bytes_copied: usize,
    /// Bytes held at most, what is there twice during a copy included.
    pub peak_bytes: usize,
    /// Bytes held, averaged over the tokens.
    pub mean_bytes: f64,
    /// `mean_bytes` by the bytes of the tokens that were there.
    pub spare_ratio: f64,
    /// Estimated seconds that growing and separate runs take until the expected length.
    pub seconds: f64,
}

/// The candidates, of which one is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct KvPlanTable {
    /// All of them.
    pub candidates: Vec<KvCandidate>,
    /// The index of the one that is taken.
    pub chosen: usize,
}

impl KvCostModel {
    /// Measures the rate of copies: a few copies of 16 MiB into new memory, as a cache makes them.
    pub fn measure() -> Self {
        const BYTES: usize = 16 << 20;
        let mut rates = [0.0; 4];
        for rate in &mut rates {
            let Ok(mut old) = Buffer::zeroed(BYTES, Placement::default()) else { return Self::default() };
            old.as_mut_slice::<f32>().fill(1.0);
            let start = Instant::now();
            let Ok(mut new) = Buffer::zeroed(BYTES, Placement::default()) else { return Self::default() };
            new.as_mut_slice::<f32>().copy_from_slice(old.as_slice());
            std::hint::black_box(new.as_slice::<f32>());
            *rate = BYTES as f64 / start.elapsed().as_secs_f64().max(1e-9);
        }
        rates.sort_by(f64::total_cmp);
        Self { copy_rate: rates[rates.len() / 2], ..Self::default() }
    }
}

impl Default for KvCostModel {
    /// A server CPU of 2023.
    fn default() -> Self {
        Self { copy_rate: 5e9, growth_seconds: 20e-6, run_seconds: 100e-9 }
    }
}

impl KvPlanTable {
    /// The candidates that `config` leaves open, for sequences of `shape`.
    pub(super) fn new(config: &KvConfig, shape: &KvShape, workload: KvWorkload) -> Self {
        let cx = Life { config, shape, workload };
        let candidates = growths(&config.bmc).iter().flat_map(|&growth| {
            splits(&config.bmc, shape.max_len).into_iter().map(move |splits| cx.candidate(growth, splits))
        });
        let candidates: Vec<_> = candidates.collect();
        // Within the limit memory is as good as any other; beyond it, it decides.
        let key = |i: usize| (candidates[i].spare_ratio.max(SPARE_LIMIT), candidates[i].seconds);
        let chosen = (0..candidates.len()).min_by(|&a, &b| {
            let (a, b) = (key(a), key(b));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
        Self { chosen: chosen.unwrap_or(0), candidates }
    }

    /// The one that is taken.
    pub fn choice(&self) -> &KvCandidate {
        &self.candidates[self.chosen]
    }
}

/// Ways to grow that the settings leave open.
fn growths(config: &BmcConfig) -> &'static [BmcGrowth] {
    match (config.growth, config.splits) {
        (Some(BmcGrowth::Linear), _) => &[BmcGrowth::Linear],
        (Some(BmcGrowth::Doubling), _) | (None, Some(_)) => &[BmcGrowth::Doubling],
        (None, None) => &[BmcGrowth::Doubling, BmcGrowth::Linear],
    }
}

/// Numbers of allocations that the settings leave open, for sequences of up to `max_len` tokens.
fn splits(config: &BmcConfig, max_len: usize) -> Vec<usize> {
    if let Some(given) = config.splits {
        return vec![given];
    }
    let all = SPLITS.into_iter().chain([max_len.isqrt()]);
    let mut all: Vec<usize> = all.map(|n| n.min(max_len).max(1)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// A batch of sequences that grow to their expected length, token by token.
#[derive(Clone, Copy)]
struct Life<'a> {
    config: &'a KvConfig,
    shape: &'a KvShape,
    workload: KvWorkload,
}

/// What becomes of one sequence.
#[derive(Default)]
struct Course {
    allocations: usize,
    /// Blocks of each layer and head that were copied.
    copied_blocks: usize,
    peak_bytes: usize,
    /// Sum over the tokens: bytes held.
    held: f64,
    /// Sum over the tokens: where a head's run ends and another begins.
    run_ends: f64,
}

impl Life<'_> {
    fn candidate(self, growth: BmcGrowth, splits: usize) -> KvCandidate {
        let Self { config, shape, workload } = self;
        let (cost, batch, end) = (&config.bmc.cost, workload.batch, self.end());
        let course = self.course(Schedule::new(shape.max_blocks(), splits, growth));
        let heads = shape.n_layers * shape.n_kv_heads;
        let token = shape.layout.block_bytes() as f64 / KV_BLOCK as f64 * heads as f64;
        let mean = course.held / end.max(1) as f64;
        let factors = [course.copied_blocks, shape.layout.block_bytes(), batch];
        let bytes_copied = factors.into_iter().fold(heads, usize::saturating_mul);
        let growing = course.allocations as f64 * cost.growth_seconds;
        let reading = course.run_ends * heads as f64 * cost.run_seconds;
        KvCandidate {
            growth,
            splits,
            grow: config.bmc.grow.effective(),
            allocations: course.allocations,
            bytes_copied,
            peak_bytes: course.peak_bytes.saturating_mul(batch),
            mean_bytes: mean * batch as f64,
            spare_ratio: mean / (token * (end + 1) as f64 / 2.0),
            seconds: bytes_copied as f64 / cost.copy_rate + batch as f64 * (growing + reading),
        }
    }

    fn end(&self) -> usize {
        self.workload.expected_len.min(self.shape.max_len)
    }

    fn course(&self, schedule: Schedule) -> Course {
        let (shape, placement) = (self.shape, self.config.placement);
        let mut course = Course::default();
        let mut old = 0;
        for capacity in schedule.capacities() {
            let tokens = self.end().min(capacity * KV_BLOCK).saturating_sub(old * KV_BLOCK);
            if tokens == 0 {
                break;
            }
            let (held, twice) = match self.config.bmc.grow.effective() {
                BmcGrow::Commit => {
                    course.run_ends += (course.allocations * tokens) as f64;
                    (committed_bytes(shape, capacity, placement), 0)
                }
                BmcGrow::Copy => {
                    course.copied_blocks += old;
                    (copied_bytes(shape, capacity, placement), layer_bytes(shape, old, placement))
                }
            };
            course.allocations += 1;
            course.peak_bytes = course.peak_bytes.max(held.saturating_add(twice));
            course.held += held as f64 * tokens as f64;
            old = capacity;
        }
        course
    }
}
