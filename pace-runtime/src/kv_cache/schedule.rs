//! [`Schedule`]: how long a cache is after each of its growths.

use pace_kernels::Placement;

use super::region::{committed_bytes, fixed_bytes, layer_bytes};
use super::{BmcGrow, BmcGrowth, KvCacheKind, KvShape};

/// The capacities that a cache goes through, in blocks. They ascend, the last one is the maximum, and parts that would be
/// smaller than a block are merged into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    max_blocks: usize,
    splits: usize,
    growth: BmcGrowth,
}

impl Schedule {
    /// `splits` allocations up to `max_blocks`.
    pub(super) fn new(max_blocks: usize, splits: usize, growth: BmcGrowth) -> Self {
        Self { max_blocks, splits: splits.clamp(1, max_blocks.max(1)), growth }
    }

    /// The longest cache.
    pub(super) const fn max_blocks(&self) -> usize {
        self.max_blocks
    }

    /// The first capacity that holds `blocks`, which the maximum does.
    pub(super) fn capacity(&self, blocks: usize) -> usize {
        debug_assert!(blocks <= self.max_blocks, "longer than the cache");
        match self.growth {
            BmcGrowth::Doubling => {
                let mut capacity = self.max_blocks;
                for _ in 1..self.splits {
                    let half = capacity.div_ceil(2);
                    if half < blocks || half == capacity {
                        break;
                    }
                    capacity = half;
                }
                capacity
            }
            BmcGrowth::Linear => {
                // The least i with `i * max / splits > blocks - 1`.
                let below = blocks.saturating_sub(1) as u128 * self.splits as u128;
                self.part((below / self.max_blocks.max(1) as u128) as usize + 1)
            }
        }
    }

    /// All capacities, in order.
    pub(super) fn capacities(self) -> impl Iterator<Item = usize> {
        let first = (self.max_blocks > 0).then(|| self.capacity(1));
        std::iter::successors(first, move |&last| (last < self.max_blocks).then(|| self.capacity(last + 1)))
    }

    /// How many capacities there are at most.
    pub(super) fn max_parts(&self) -> usize {
        match self.growth {
            BmcGrowth::Doubling => self.splits.min(usize::BITS as usize + 1),
            BmcGrowth::Linear => self.splits,
        }
    }

    /// The capacity before the maximum; 0 if there is none.
    fn before_last(&self) -> usize {
        match self.growth {
            _ if self.splits == 1 => 0,
            BmcGrowth::Doubling => self.max_blocks.div_ceil(2),
            BmcGrowth::Linear => self.part(self.splits - 1),
        }
    }

    /// The capacity after `i` of equal parts.
    fn part(&self, i: usize) -> usize {
        (i as u128 * self.max_blocks as u128).div_ceil(self.splits as u128) as usize
    }

    /// Bytes that a cache comes to hold at most on its way to the maximum.
    pub(super) fn peak_bytes(
        self,
        shape: &KvShape,
        kind: KvCacheKind,
        grow: BmcGrow,
        placement: Placement,
    ) -> usize {
        match (kind, grow) {
            (KvCacheKind::Static, _) => fixed_bytes(shape, self.max_blocks, placement),
            (_, BmcGrow::Commit) => committed_bytes(shape, self.max_blocks, placement),
            (kind, BmcGrow::Copy) => {
                // A dynamic cache is copied when it is as long as it gets, too.
                let last = if kind == KvCacheKind::Dynamic { self.max_blocks } else { self.before_last() };
                let old = layer_bytes(shape, last, placement);
                copied_bytes(shape, self.max_blocks, placement).saturating_add(old)
            }
        }
    }
}

/// Bytes of a cache of `blocks` blocks that grows by copy: each layer has its own memory.
pub(super) fn copied_bytes(shape: &KvShape, blocks: usize, placement: Placement) -> usize {
    shape.n_layers.saturating_mul(layer_bytes(shape, blocks, placement))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(max_blocks: usize, splits: usize, growth: BmcGrowth) -> Vec<usize> {
        Schedule::new(max_blocks, splits, growth).capacities().collect()
    }

    #[test]
    fn doubling_ends_with_the_maximum() {
        assert_eq!(list(128, 1, BmcGrowth::Doubling), [128]);
        assert_eq!(list(128, 4, BmcGrowth::Doubling), [16, 32, 64, 128]);
        assert_eq!(list(100, 3, BmcGrowth::Doubling), [25, 50, 100]);
        assert_eq!(list(4, 200, BmcGrowth::Doubling), [1, 2, 4], "parts below a block are merged");
        assert_eq!(list(1, 64, BmcGrowth::Doubling), [1]);
    }

    #[test]
    fn linear_growth_takes_equal_parts() {
        assert_eq!(list(128, 4, BmcGrowth::Linear), [32, 64, 96, 128]);
        assert_eq!(list(10, 4, BmcGrowth::Linear), [3, 5, 8, 10]);
        assert_eq!(list(3, 1000, BmcGrowth::Linear), [1, 2, 3]);
        assert_eq!(list(0, 1, BmcGrowth::Linear), [0; 0]);
    }

    proptest! {
        #[test]
        fn capacities_ascend_to_the_maximum(max in 1usize..3000, splits in 1usize..4000, linear: bool) {
            let growth = if linear { BmcGrowth::Linear } else { BmcGrowth::Doubling };
            let all = list(max, splits, growth);
            prop_assert!(all.is_sorted_by(|a, b| a < b) && all.len() <= splits);
            prop_assert_eq!(all.last(), Some(&max));
            let schedule = Schedule::new(max, splits, growth);
            let before = all.iter().rev().nth(1).copied().unwrap_or(0);
            prop_assert_eq!(schedule.before_last(), before);
            prop_assert!(all.len() <= schedule.max_parts());
            for blocks in 1..=max {
                let want = all.iter().find(|&&capacity| capacity >= blocks);
                prop_assert_eq!(Some(&schedule.capacity(blocks)), want);
            }
        }
    }
}
