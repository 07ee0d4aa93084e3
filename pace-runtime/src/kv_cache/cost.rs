//! [`KvPlanTable`]: what growing in parts costs, and which parts are worth it.
//!
//! Few and long parts cost memory that is not used yet. Many parts cost time: rows are copied at each growth, or, where
//! memory is committed in place, attention reads as many separate runs. After "Striking the Right Balance between Compute
//! and Copy", arXiv 2511.12031.

use std::time::Instant;

use pace_kernels::{Buffer, KV_BLOCK, Placement};

use super::region::{committed_bytes, layer_bytes};
use super::schedule::{Schedule, copied_bytes};
use super::{BmcConfig, BmcGrow, BmcGrowth, KvShape};

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
    pub(super) fn new(config: &BmcConfig, shape: &KvShape, workload: KvWorkload) -> Self {
        let root = shape.max_len.isqrt();
        let mut splits: Vec<usize> =
            SPLITS.into_iter().chain([root]).map(|n| n.min(shape.max_len).max(1)).collect();
        if let Some(given) = config.splits {
            splits = vec![given];
        }
        splits.sort_unstable();
        splits.dedup();
        let growths = match (config.growth, config.splits) {
            (Some(growth), _) => vec![growth],
            (None, Some(_)) => vec![BmcGrowth::default()],
            (None, None) => vec![BmcGrowth::Doubling, BmcGrowth::Linear],
        };
        let candidates: Vec<_> = growths
            .into_iter()
            .flat_map(|growth| splits.iter().map(move |&splits| (growth, splits)))
            .map(|(growth, splits)| {
                KvCandidate::new(&config.cost, shape, workload, growth, splits, config.grow.effective())
            })
            .collect();
        // Within the limit memory is as good as any other; beyond it, it decides.
        let key = |c: &KvCandidate| (c.spare_ratio.max(SPARE_LIMIT), c.seconds);
        let less = |a: &KvCandidate, b: &KvCandidate| {
            let (a, b) = (key(a), key(b));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
        };
        let chosen = (0..candidates.len()).min_by(|&a, &b| less(&candidates[a], &candidates[b])).unwrap_or(0);
        Self { candidates, chosen }
    }

    /// The one that is taken.
    pub fn choice(&self) -> &KvCandidate {
        &self.candidates[self.chosen]
    }
}

impl KvCandidate {
    /// Follows a batch of sequences, token by token, to its expected length.
    fn new(
        cost: &KvCostModel,
        shape: &KvShape,
        workload: KvWorkload,
        growth: BmcGrowth,
        splits: usize,
        grow: BmcGrow,
    ) -> Self {
        let end = workload.expected_len.min(shape.max_len);
        let (mut allocations, mut copied_blocks, mut peak) = (0, 0, 0);
        // Sums over the tokens: of bytes held and of ends of runs.
        let (mut held_sum, mut run_ends) = (0.0, 0.0);
        let mut old = 0;
        for capacity in Schedule::new(shape.max_blocks(), splits, growth).capacities() {
            let tokens = end.min(capacity * KV_BLOCK).saturating_sub(old * KV_BLOCK);
            if tokens == 0 {
                break;
            }
            let (held, twice) = match grow {
                BmcGrow::Commit => (committed_bytes(shape, capacity), 0),
                BmcGrow::Copy if old == 0 => (copied_bytes(shape, capacity), 0),
                BmcGrow::Copy => (copied_bytes(shape, capacity), layer_bytes(shape, old)),
            };
            if grow == BmcGrow::Commit {
                run_ends += (allocations * tokens) as f64;
            } else {
                copied_blocks += old;
            }
            allocations += 1;
            peak = peak.max(held.saturating_add(twice));
            held_sum += held as f64 * tokens as f64;
            old = capacity;
        }
        let heads = shape.n_layers * shape.n_kv_heads;
        let in_use =
            shape.layout.block_bytes() as f64 / KV_BLOCK as f64 * heads as f64 * (end + 1) as f64 / 2.0;
        let mean = held_sum / end.max(1) as f64;
        let bytes_copied = heads * copied_blocks * shape.layout.block_bytes() * workload.batch;
        let seconds = bytes_copied as f64 / cost.copy_rate
            + workload.batch as f64
                * (allocations as f64 * cost.growth_seconds + run_ends * heads as f64 * cost.run_seconds);
        Self {
            growth,
            splits,
            grow,
            allocations,
            bytes_copied,
            peak_bytes: peak.saturating_mul(workload.batch),
            mean_bytes: mean * workload.batch as f64,
            spare_ratio: mean / in_use,
            seconds,
        }
    }
}
