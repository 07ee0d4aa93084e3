//! How a ragged batch is cut into work items.

use std::cmp::Reverse;
use std::ops::Range;

use super::{AttentionParams, KV_BLOCK};

/// Blocks in a unit: 512 tokens. Fixed, because it decides the result's bits.
pub(super) const UNIT_BLOCKS: usize = 8;

/// Rows of a query tile, unless one token has more heads in a group.
const TILE_ROWS: usize = 32;

/// Items that a thread should find, so that the last ones to finish are short.
const ITEMS_PER_THREAD: usize = 4;

/// Items that are shorter than a thread's share by this factor leave no thread idle for long at the end.
const SMALL_ITEMS_PER_THREAD: usize = 16;

/// New tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionSegment {
    /// The absolute position of the first one: what the sequence held before.
    pub position: usize,
    /// How many there are.
    pub tokens: usize,
}

/// How the rows of a ragged batch are cut into work items.
///
/// It depends on the segments, on the heads and the mask of [`AttentionParams`], and on the number of
/// threads, and serves every layer that has the same ones. Its memory is reused: in a steady state,
/// rebuilding it allocates nothing. The result's bits do not depend on it.
#[derive(Debug, Default)]
pub struct AttentionPlan {
    pub(super) tiles: Vec<Tile>,
    pub(super) items: Vec<Item>,
    pub(super) merges: Vec<Merge>,
    shape: Shape,
    rows: usize,
    states: usize,
    tile_rows: usize,
}

/// Consecutive new tokens of one sequence, with all heads of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// Index of the sequence in the batch.
    pub(super) seq: usize,
    /// Row of the first token in the batch.
    pub(super) first_row: usize,
    /// Absolute position of the first token.
    pub(super) position: usize,
    pub(super) tokens: usize,
    /// Tokens of the sequence, the new ones included.
    pub(super) length: usize,
}

/// What one thread does at once: some blocks of a tile and KV head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) tile: usize,
    pub(super) head: usize,
    pub(super) blocks: Range<usize>,
    /// If the tile is split: where the state of the item's first unit is kept.
    pub(super) state: Option<usize>,
    cost: usize,
}

/// The end of a split tile and KV head: the states of its units, to be folded in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Merge {
    pub(super) tile: usize,
    pub(super) head: usize,
    pub(super) states: Range<usize>,
}

/// What of the parameters a plan depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    n_heads: usize,
    n_kv_heads: usize,
    causal: bool,
    window: Option<usize>,
}

impl Shape {
    fn of(params: &AttentionParams<'_>) -> Self {
        let &AttentionParams { n_heads, n_kv_heads, causal, window, .. } = params;
        Self { n_heads, n_kv_heads, causal, window }
    }
}

impl AttentionPlan {
    /// Nothing planned.
    pub fn new() -> Self {
        Self::default()
    }

    /// Plans a batch whose rows are the tokens of `segments`, one after the other.
    ///
    /// # Panics
    /// If the parameters contradict each other (see [`AttentionParams`]), `threads` is 0, or a length
    /// overflows.
    pub fn rebuild(
        &mut self,
        params: &AttentionParams<'_>,
        threads: usize,
        segments: impl IntoIterator<Item = AttentionSegment>,
    ) {
        params.check();
        assert!(threads > 0, "a plan for no threads");
        let group = params.group();
        self.shape = Shape::of(params);
        self.rows = 0;
        self.tiles.clear();
        let tile_tokens = (TILE_ROWS / group).max(1);
        for (seq, segment) in segments.into_iter().enumerate() {
            self.push_tiles(seq, segment, tile_tokens);
        }
        self.tile_rows = self.tiles.iter().map(|tile| tile.tokens * group).max().unwrap_or(0);
        self.push_items(threads);
    }

    /// Rows of the batch.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows of the largest tile, all heads of the group counted.
    pub(super) fn tile_rows(&self) -> usize {
        self.tile_rows
    }

    /// States of units that are kept until they are merged.
    pub(super) fn states(&self) -> usize {
        self.states
    }

    /// Whether the plan was made for these parameters.
    pub(super) fn fits(&self, params: &AttentionParams<'_>) -> bool {
        self.shape == Shape::of(params)
    }

    fn push_tiles(&mut self, seq: usize, segment: AttentionSegment, tile_tokens: usize) {
        let length =
            segment.position.checked_add(segment.tokens).filter(|&length| i64::try_from(length).is_ok());
        let length = length.expect("the length of a sequence fits");
        for start in (0..segment.tokens).step_by(tile_tokens) {
            let tokens = tile_tokens.min(segment.tokens - start);
            let position = segment.position + start;
            self.tiles.push(Tile { seq, first_row: self.rows, position, tokens, length });
            self.rows += tokens;
        }
    }

    /// One item for each tile and KV head; but a tile that would keep one thread busy while the
    /// others have nothing left is split at unit borders.
    fn push_items(&mut self, threads: usize) {
        self.items.clear();
        self.merges.clear();
        self.states = 0;
        let Shape { n_kv_heads, .. } = self.shape;
        let total: usize =
            self.tiles.iter().map(|tile| n_kv_heads * self.cost(tile, &self.blocks(tile))).sum();
        let most = total.div_ceil(ITEMS_PER_THREAD * threads);
        for index in 0..self.tiles.len() {
            let tile = self.tiles[index];
            let blocks = self.blocks(&tile);
            let cost = self.cost(&tile, &blocks);
            let one_unit = self.cost(&tile, &(0..UNIT_BLOCKS));
            let split = threads > 1 && cost > most && units(&blocks).len() > 1;
            for head in 0..n_kv_heads {
                if split {
                    self.push_split(index, head, blocks.clone(), (most / one_unit).max(1));
                } else {
                    self.items.push(Item { tile: index, head, blocks: blocks.clone(), state: None, cost });
                }
            }
        }
        self.sort_items(total / (SMALL_ITEMS_PER_THREAD * threads));
    }

    /// Items that matter for the balance first, longest first. The others KV head by KV head, so that they
    /// find their keys and values in the cache, where the longest ones of a head have left them.
    fn sort_items(&mut self, small: usize) {
        let tiles = &self.tiles;
        // By the whole key: as good as a stable sort, which would need memory.
        self.items.sort_unstable_by_key(|item| {
            let large = if item.cost > small { item.cost } else { 0 };
            let seq = tiles[item.tile].seq;
            (Reverse(large), seq, item.head, Reverse(item.cost), item.tile, item.blocks.start)
        });
    }

    /// Items of `part` units each, and the merge behind them.
    fn push_split(&mut self, tile: usize, head: usize, blocks: Range<usize>, part: usize) {
        let all = units(&blocks);
        let first_state = self.states;
        for unit in all.clone().step_by(part) {
            let end = (unit + part).min(all.end);
            let blocks = (unit * UNIT_BLOCKS).max(blocks.start)..(end * UNIT_BLOCKS).min(blocks.end);
            let cost = self.cost(&self.tiles[tile], &blocks);
            self.items.push(Item { tile, head, blocks, state: Some(self.states), cost });
            self.states += end - unit;
        }
        self.merges.push(Merge { tile, head, states: first_state..self.states });
    }

    /// The blocks that the tokens of a tile see together.
    fn blocks(&self, tile: &Tile) -> Range<usize> {
        let first = self.shape.window.map_or(0, |window| (tile.position + 1).saturating_sub(window));
        let end = if self.shape.causal { tile.position + tile.tokens } else { tile.length };
        first / KV_BLOCK..end.div_ceil(KV_BLOCK)
    }

    /// Time that blocks of a tile take, in steps of four rows; reading a block counts as one.
    fn cost(&self, tile: &Tile, blocks: &Range<usize>) -> usize {
        let group = self.shape.n_heads / self.shape.n_kv_heads;
        blocks.len() * (1 + (tile.tokens * group).div_ceil(4))
    }
}

/// The units that blocks lie in.
fn units(blocks: &Range<usize>) -> Range<usize> {
    blocks.start / UNIT_BLOCKS..blocks.end.div_ceil(UNIT_BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(window: Option<usize>) -> AttentionParams<'static> {
        AttentionParams { window, ..AttentionParams::causal(8, 2, 16) }
    }

    fn plan(window: Option<usize>, threads: usize, segments: &[(usize, usize)]) -> AttentionPlan {
        let mut plan = AttentionPlan::new();
        let segments = segments.iter().map(|&(position, tokens)| AttentionSegment { position, tokens });
        plan.rebuild(&params(window), threads, segments);
        plan
    }

    /// Every block of every tile and head is in one item, and every split one is merged.
    fn check_cover(plan: &AttentionPlan) {
        for (index, tile) in plan.tiles.iter().enumerate() {
            for head in 0..2 {
                let mut items: Vec<_> =
                    plan.items.iter().filter(|item| (item.tile, item.head) == (index, head)).collect();
                items.sort_by_key(|item| item.blocks.start);
                let blocks = plan.blocks(tile);
                assert_eq!(
                    (items[0].blocks.start, items[items.len() - 1].blocks.end),
                    (blocks.start, blocks.end)
                );
                assert!(items.windows(2).all(|pair| pair[0].blocks.end == pair[1].blocks.start));
                let merge = plan.merges.iter().find(|merge| (merge.tile, merge.head) == (index, head));
                assert_eq!(merge.map(|merge| merge.states.start), items[0].state);
                if let Some(merge) = merge {
                    assert_eq!(merge.states.len(), units(&blocks).len());
                    for item in items {
                        let before = item.blocks.start / UNIT_BLOCKS - units(&blocks).start;
                        assert_eq!(item.state, Some(merge.states.start + before));
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_follow_the_rows_and_items_cover_the_blocks() {
        let ragged = [(5, 3), (0, 0), (0, 20), (3000, 1), (700, 1)];
        for window in [None, Some(1), Some(64), Some(1000)] {
            for threads in [1, 2, 4, 64] {
                let plan = plan(window, threads, &ragged);
                assert_eq!((plan.rows(), plan.tile_rows()), (25, 32));
                let firsts: Vec<_> = plan.tiles.iter().map(|tile| (tile.first_row, tile.tokens)).collect();
                assert_eq!(firsts, [(0, 3), (3, 8), (11, 8), (19, 4), (23, 1), (24, 1)]);
                check_cover(&plan);
                assert!(threads > 1 || plan.merges.is_empty());
            }
        }
    }

    #[test]
    fn a_long_sequence_is_split_when_threads_would_idle() {
        let alone = plan(None, 2, &[(100_000, 1)]);
        assert!(alone.merges.len() == 2 && alone.items.len() >= 8, "{} items", alone.items.len());
        let many: Vec<_> = (0..32).map(|_| (4000, 1)).collect();
        assert!(plan(None, 2, &many).merges.is_empty());
        assert!(plan(None, 2, &[(100, 1)]).merges.is_empty());
    }

    #[test]
    fn long_items_come_first_and_short_ones_head_by_head() {
        let prefill = plan(None, 2, &[(0, 1000)]);
        let order: Vec<_> = prefill.items.iter().map(|item| (item.head, Reverse(item.cost))).collect();
        assert!(order.len() == 250 && order.is_sorted());
        let decode = plan(None, 1, &[(64, 1), (900, 1), (300, 1)]);
        let tiles: Vec<_> = decode.items.iter().map(|item| item.tile).collect();
        assert_eq!(tiles, [1, 1, 2, 2, 0, 0]);
    }

    #[test]
    fn rebuilding_reuses_the_memory() {
        let mut plan = plan(None, 64, &[(9000, 1), (0, 100)]);
        let memory = |plan: &AttentionPlan| (plan.tiles.as_ptr(), plan.items.as_ptr(), plan.merges.as_ptr());
        let before = memory(&plan);
        plan.rebuild(&params(None), 64, [AttentionSegment { position: 8999, tokens: 1 }]);
        assert_eq!((plan.rows(), memory(&plan)), (1, before));
        plan.rebuild(&params(None), 1, []);
        assert_eq!((plan.rows(), plan.tile_rows(), plan.states(), plan.items.len()), (0, 0, 0, 0));
    }
}
