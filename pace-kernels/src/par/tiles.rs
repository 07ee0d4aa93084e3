//! How a matrix and the scratch memory are divided among the members of a region.

use std::marker::PhantomData;
use std::ops::Range;

/// A matrix cut into tiles: explicit row cuts, even column widths.
pub(super) struct Grid<'a> {
    row_cuts: &'a [usize],
    cols: usize,
    col_width: usize,
}

impl<'a> Grid<'a> {
    pub(super) fn new(rows: usize, cols: usize, row_cuts: &'a [usize], col_width: usize) -> Self {
        assert!(
            row_cuts.first() == Some(&0) && row_cuts.last() == Some(&rows) && row_cuts.is_sorted(),
            "row cuts must ascend from 0 to {rows}"
        );
        assert!(col_width > 0, "column tiles must have a width");
        Self { row_cuts, cols, col_width }
    }

    pub(super) fn row_tiles(&self) -> usize {
        self.row_cuts.len() - 1
    }

    pub(super) fn tiles(&self) -> usize {
        self.row_tiles() * self.cols.div_ceil(self.col_width)
    }

    pub(super) fn rows(&self, tile: usize) -> Range<usize> {
        self.row_cuts[tile]..self.row_cuts[tile + 1]
    }

    pub(super) fn cols(&self, tile: usize) -> Range<usize> {
        let start = tile * self.col_width;
        start..self.cols.min(start + self.col_width)
    }
}

/// Scratch memory in equal slots, one for each member.
pub(super) struct Slots<'a> {
    ptr: *mut f32,
    slot_len: usize,
    members: usize,
    marker: PhantomData<&'a mut [f32]>,
}

impl<'a> Slots<'a> {
    pub(super) fn new(scratch: &'a mut [f32], members: usize) -> Self {
        let slot_len = scratch.len() / members;
        Self { ptr: scratch.as_mut_ptr(), slot_len, members, marker: PhantomData }
    }

    /// The slot of a member.
    ///
    /// # Safety
    /// No other reference to this member's slot is alive.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn get(&self, member: usize) -> &mut [f32] {
        assert!(member < self.members, "member {member} of {}", self.members);
        // SAFETY: the slots are disjoint parts of the scratch slice that is borrowed for 'a; the
        // caller sees to it that this one is not in use.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(member * self.slot_len), self.slot_len) }
    }
}

// SAFETY: `get` demands that members use their own slots only.
unsafe impl Sync for Slots<'_> {}
