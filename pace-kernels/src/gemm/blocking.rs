//! How a product is cut: into blocks of rows, panels, blocks of steps, and tiles of rows.

use std::ops::Range;

use super::tile::MAX_ROWS;
use crate::weights::Panels;

/// Rows of activations that go through one panel after the other: their sums stay in L2 while the
/// steps are cut, and their activations in L3 from panel to panel.
const BLOCK_ROWS: usize = 504;

/// The same for tiles of more than [`MAX_ROWS`] rows, which are so fast that activations have to come from L2, and panels of any
/// number of rows have to be prefetched.
const WIDE_BLOCK_ROWS: usize = 256;

/// Steps of a panel that stay in L2 at once: 512 KiB of 64 columns.
const WHOLE_STEPS: usize = 2048;

/// Steps of a block when they do not, for blocks that bf16 is widened to (CPUs that have to do so have an L2 of 512 KiB or
/// less, or of 1 MiB), and for skinny products, whose tiles use a block while they prefetch
/// the next one: 256 KiB of 64 columns. Lost for skinny products: blocks of 64 KiB (0.75 of the limit
/// at 16 rows instead of 0.79), smaller ones (below 0.6), and no prefetching (0.87 at 24 rows instead
/// of 0.93).
const BLOCK_STEPS: usize = 1024;

/// Up to this many rows are skinny: bound by the memory that the weights come from.
pub(crate) const SKINNY_ROWS: usize = 32;

/// The cuts of one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocking {
    rows: usize,
    panels: usize,
    steps: usize,
    /// Rows in a block, a multiple of a tile's.
    block_rows: usize,
    /// Rows of a tile at most.
    pub(super) tile_rows: usize,
    /// Steps in a block, a multiple of every group's.
    block_steps: usize,
    /// Whether the tiles prefetch the next block of steps.
    pub(super) prefetch: bool,
}

impl Blocking {
    /// `few`, `many`: the most rows of a tile where one holds all rows, and where several do. `tile_steps`: steps of a
    /// tile in one of the panel.
    pub(super) fn new(rows: usize, panels: &Panels, [few, many]: [usize; 2], tile_steps: usize) -> Self {
        let tile_rows = if rows <= few { few } else { many };
        let wide = many > MAX_ROWS;
        let blocks = rows.div_ceil(if wide { WIDE_BLOCK_ROWS } else { BLOCK_ROWS }).max(1);
        let block_rows = rows.div_ceil(blocks).next_multiple_of(tile_rows);
        let steps = panels.steps();
        let prefetch = rows > tile_rows && (rows <= SKINNY_ROWS || wide);
        let whole = !prefetch && tile_steps == 1 && steps <= WHOLE_STEPS;
        let block_steps = if whole { WHOLE_STEPS } else { BLOCK_STEPS } / tile_steps;
        Self { rows, panels: panels.count(), steps, block_rows, tile_rows, block_steps, prefetch }
    }

    /// Whether so few rows use the weights that the memory they come from is what takes time.
    pub(super) const fn is_skinny(&self) -> bool {
        self.rows <= SKINNY_ROWS
    }

    /// Units of parallel work.
    pub(super) fn tasks(&self) -> usize {
        self.panels * self.rows.div_ceil(self.block_rows)
    }

    /// The rows and the panel of a task: all panels of some rows, then those of the next rows.
    pub(super) fn task(&self, task: usize) -> (Range<usize>, usize) {
        let first = task / self.panels * self.block_rows;
        (first..self.rows.min(first + self.block_rows), task % self.panels)
    }

    /// The blocks of rows.
    pub(super) fn row_blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let Self { rows, block_rows, .. } = *self;
        (0..rows).step_by(block_rows).map(move |first| first..rows.min(first + block_rows))
    }

    /// The tiles of a block with so many rows.
    pub(super) fn row_tiles(&self, block_rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        row_tiles(block_rows, self.tile_rows)
    }

    /// Rows whose sums are alive at once.
    pub(super) fn live_rows(&self) -> usize {
        if self.steps > self.block_steps { self.block_rows.min(self.rows) } else { self.tile_rows }
    }

    /// Steps of the largest block.
    pub(super) fn live_steps(&self) -> usize {
        self.steps.min(self.block_steps)
    }

    /// The blocks of steps. There is one even without steps.
    pub(super) fn step_blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let Self { steps, block_steps, .. } = *self;
        (0..steps.max(1)).step_by(block_steps).map(move |first| first..steps.min(first + block_steps))
    }
}

/// Cuts rows into tiles: of `most`, the last two about even, because a tile of one or two rows waits for
/// its own sums.
fn row_tiles(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let rest = rows - next;
        let tile = if rest > most && rest < 2 * most { rest.div_ceil(2) } else { rest.min(most) };
        let start = next;
        next += tile;
        (tile > 0).then_some(start..next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WeightFormat;

    #[test]
    fn tiles_cover_the_rows_in_order() {
        for (rows, most) in (0..40).flat_map(|rows| [(rows, MAX_ROWS), (rows, 8)]) {
            let tiles: Vec<_> = row_tiles(rows, most).collect();
            let mut next = 0;
            for tile in &tiles {
                assert!(tile.start == next && tile.len() <= most);
                assert!(rows < most || tile.len() >= 3, "{rows} rows: {tiles:?}");
                next = tile.end;
            }
            assert_eq!(next, rows);
        }
    }

    #[test]
    fn a_wide_tile_is_for_few_rows() {
        let panels = Panels { format: WeightFormat::Bf16, n: 64, k: 64, width: 64, paired: false };
        let tiles = |rows: usize| -> Vec<usize> {
            let blocking = Blocking::new(rows, &panels, [8, MAX_ROWS], 1);
            assert_eq!(blocking.prefetch, (9..=SKINNY_ROWS).contains(&rows), "{rows}");
            blocking.row_tiles(rows).map(|tile| tile.len()).collect()
        };
        assert_eq!((tiles(6), tiles(7), tiles(8)), (vec![6], vec![7], vec![8]));
        assert_eq!((tiles(9), tiles(16)), (vec![5, 4], vec![6, 5, 5]));
    }

    #[test]
    fn tasks_and_steps_cover_the_product() {
        for rows in [1, 6, 7, 32, 33, 503, 505, 2048] {
            for (n, k, format) in [(1, 1, WeightFormat::F32), (130, 9000, WeightFormat::Bf16)] {
                let panels = Panels { format, n, k, width: 64, paired: false };
                let blocking = Blocking::new(rows, &panels, [MAX_ROWS; 2], 1);
                let mut covered = vec![0; rows * panels.count()];
                for task in 0..blocking.tasks() {
                    let (rows, panel) = blocking.task(task);
                    rows.for_each(|row| covered[row * panels.count() + panel] += 1);
                }
                assert!(covered.iter().all(|&times| times == 1));
                let steps: usize = blocking.step_blocks().map(|block| block.len()).sum();
                assert_eq!(steps, panels.steps());
            }
        }
    }
}
