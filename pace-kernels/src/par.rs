//! Parallel execution: the one way in which kernels and operators use threads.
//!
//! A [`Pool`] owns threads; [`Par`] is the handle that is passed down. None of its methods
//! allocates. Work is handed out by atomic counters, so a slow core gets less of it.

mod barrier;
mod float_mode;
mod pool;
mod sync;
mod tiles;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

pub use self::float_mode::default_float_mode;
pub use self::pool::{Pool, PoolError, PoolOptions};
use self::tiles::{Grid, Slots};
use crate::{ActMut, Element, MatMut};

/// Either the calling thread alone, or a [`Pool`] with the calling thread as member 0.
#[derive(Clone, Copy, Debug)]
pub struct Par<'a> {
    pool: Option<&'a Pool>,
}

impl<'a> Par<'a> {
    /// The calling thread alone.
    pub const fn seq() -> Self {
        Self { pool: None }
    }

    pub(crate) const fn on(pool: &'a Pool) -> Self {
        Self { pool: Some(pool) }
    }

    /// Number of members, at least 1.
    pub fn threads(&self) -> usize {
        self.pool.map_or(1, Pool::threads)
    }

    /// Calls `f(member)` once for every member, in parallel, and returns when all are done.
    ///
    /// From inside a region, the calls are made one after the other on the calling thread.
    ///
    /// # Panics
    /// With the first panic of a member, after all members have finished.
    pub fn run(&self, f: impl Fn(usize) + Sync) {
        match self.pool {
            Some(pool) => pool.run(&f),
            None => f(0),
        }
    }

    /// Calls `f(slot, task)` once for every task in `0..n`; tasks are started in ascending order by
    /// whichever member is free. `slot` is the member's share, `scratch.len() / threads()` elements.
    ///
    /// # Panics
    /// As [`run`](Self::run); after a panic, tasks may be left out.
    pub fn tasks(&self, n: usize, scratch: &mut [f32], f: impl Fn(&mut [f32], usize) + Sync) {
        let slots = Slots::new(scratch, self.threads());
        if n <= 1 {
            // SAFETY: nobody else uses the slots.
            (0..n).for_each(|task| f(unsafe { slots.get(0) }, task));
            return;
        }
        let next = AtomicUsize::new(0);
        self.run(|member| {
            // SAFETY: a member is one thread at a time, and only it uses its slot.
            let slot = unsafe { slots.get(member) };
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= n {
                    break;
                }
                f(slot, task);
            }
        });
    }

    /// As [`tasks`](Self::tasks), with tasks that can fail. After a failure, tasks that have not
    /// been started are left out.
    ///
    /// # Errors
    /// The first error that a task returned.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn try_tasks<Er: Send>(
        &self,
        n: usize,
        scratch: &mut [f32],
        f: impl Fn(&mut [f32], usize) -> Result<(), Er> + Sync,
    ) -> Result<(), Er> {
        let first = FirstError::new();
        self.tasks(n, scratch, |slot, task| first.unless_failed(|| f(slot, task)));
        first.into_result()
    }

    /// Cuts `out` into tiles and calls `f(slot, row_tile, col_tile, tile)` once for each of them.
    ///
    /// Row tile i holds the rows `row_cuts[i]..row_cuts[i + 1]`; a column tile is `col_width` wide,
    /// the last one narrower. Every member starts with a contiguous run of column tiles (all row
    /// tiles of a column follow each other, so that they share its weights), and takes from the
    /// others' runs when its own is done. `slot` is as in [`tasks`](Self::tasks).
    ///
    /// # Panics
    /// If `row_cuts` does not ascend from 0 to the number of rows, or `col_width` is 0; and as
    /// [`run`](Self::run).
    pub fn grid<E: Element>(
        &self,
        out: MatMut<'_, E>,
        row_cuts: &[usize],
        col_width: usize,
        scratch: &mut [f32],
        f: impl Fn(&mut [f32], usize, usize, MatMut<'_, E>) + Sync,
    ) {
        let grid = Grid::new(out.rows(), out.cols(), row_cuts, col_width);
        self.tiles(&grid, scratch, |slot, row, col| {
            // SAFETY: tiles of a grid are disjoint, and each is handed out once.
            let tile = unsafe { out.alias() };
            f(slot, row, col, tile.into_rows(grid.rows(row)).into_cols(grid.cols(col)));
        });
    }

    /// Cuts two matrices of as many rows into tiles of whole rows and calls `f(row_tile, a_tile, b_tile)` once for
    /// each.
    ///
    /// # Panics
    /// If the rows differ, or as [`grid`](Self::grid).
    pub fn row_tiles_of_two(
        &self,
        a: ActMut<'_>,
        b: ActMut<'_>,
        row_cuts: &[usize],
        f: impl Fn(usize, ActMut<'_>, ActMut<'_>) + Sync,
    ) {
        assert_eq!(a.rows(), b.rows(), "rows of two matrices");
        let grid = Grid::new(a.rows(), 1, row_cuts, 1);
        self.tasks(row_cuts.len() - 1, &mut [], |_, tile| {
            // SAFETY: the row tiles of a grid are disjoint, and each is handed out once.
            let (a, b) = unsafe { (a.alias(), b.alias()) };
            f(tile, a.into_rows(grid.rows(tile)), b.into_rows(grid.rows(tile)));
        });
    }

    /// As [`grid`](Self::grid), for activations of either type.
    ///
    /// # Panics
    /// As [`grid`](Self::grid).
    pub fn grid_act(
        &self,
        out: ActMut<'_>,
        row_cuts: &[usize],
        col_width: usize,
        scratch: &mut [f32],
        f: impl Fn(&mut [f32], usize, usize, ActMut<'_>) + Sync,
    ) {
        let grid = Grid::new(out.rows(), out.cols(), row_cuts, col_width);
        self.tiles(&grid, scratch, |slot, row, col| {
            // SAFETY: tiles of a grid are disjoint, and each is handed out once.
            let tile = unsafe { out.alias() };
            f(slot, row, col, tile.into_rows(grid.rows(row)).into_cols(grid.cols(col)));
        });
    }

    /// Calls `f(i, row)` once for every row of `out`.
    pub(crate) fn rows<E: Element>(&self, out: MatMut<'_, E>, f: impl Fn(usize, &mut [E]) + Sync) {
        self.runs(out.rows(), &mut [], |_, i| {
            // SAFETY: rows are disjoint, and each is handed out once.
            let mut out = unsafe { out.alias() };
            f(i, out.row_mut(i));
        });
    }

    /// Calls `f(slot, item)` once for every item in `0..n`. Every member starts with a contiguous run
    /// of them, front to back, and takes from the others' runs when its own is done.
    pub(crate) fn runs(&self, n: usize, scratch: &mut [f32], f: impl Fn(&mut [f32], usize) + Sync) {
        let slots = Slots::new(scratch, self.threads());
        let item = |member: usize, item: usize| {
            // SAFETY: a member is one thread at a time, and only it uses its slot.
            f(unsafe { slots.get(member) }, item);
        };
        match self.pool {
            Some(pool) if n > 1 => pool.run_in_runs(n, &item),
            _ => (0..n).for_each(|i| item(0, i)),
        }
    }

    fn tiles(&self, grid: &Grid<'_>, scratch: &mut [f32], f: impl Fn(&mut [f32], usize, usize) + Sync) {
        self.runs(grid.tiles(), scratch, |slot, index| {
            f(slot, index % grid.row_tiles(), index / grid.row_tiles());
        });
    }
}

/// The first error of tasks that run in parallel.
pub(crate) struct FirstError<Er> {
    failed: AtomicBool,
    error: Mutex<Option<Er>>,
}

impl<Er> FirstError<Er> {
    pub(crate) const fn new() -> Self {
        Self { failed: AtomicBool::new(false), error: Mutex::new(None) }
    }

    /// Calls `task` unless one has failed already.
    pub(crate) fn unless_failed(&self, task: impl FnOnce() -> Result<(), Er>) {
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = task() {
            self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn into_result(self) -> Result<(), Er> {
        self.error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}
