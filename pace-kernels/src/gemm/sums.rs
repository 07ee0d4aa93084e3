//! Where the sums of a product begin, and where they go.

use std::ops::Range;

use crate::{ActMut, MatMut, MatRef};

/// Both ends of a product's sums, or of a part of them.
pub(super) enum Ends<'a> {
    /// From `start`, or from 0, through the epilogue to the output.
    Result { start: Option<MatRef<'a, f32>>, c: ActMut<'a> },
    /// From what `sums` holds, or from 0, to `sums`.
    Sums { sums: MatMut<'a, f32>, resume: bool },
}

impl Ends<'_> {
    /// Rows and columns.
    ///
    /// # Panics
    /// If the two ends differ.
    pub(super) fn shape(&self) -> (usize, usize) {
        match self {
            Self::Sums { sums, .. } => (sums.rows(), sums.cols()),
            Self::Result { start, c } => {
                let shape = (c.rows(), c.cols());
                if let Some(start) = start {
                    assert!((start.rows(), start.cols()) == shape, "{start:?} does not fit {c:?}");
                }
                shape
            }
        }
    }

    /// Whether sums begin with what was summed before.
    pub(super) fn resumes(&self) -> bool {
        match self {
            Self::Result { start, .. } => start.is_some(),
            Self::Sums { resume, .. } => *resume,
        }
    }

    /// Whether they are unfinished at both ends, or at one.
    pub(super) fn are_partial(&self) -> bool {
        self.resumes() || matches!(self, Self::Sums { .. })
    }

    /// The ends of some sums.
    ///
    /// # Safety
    /// While two parts live, the caller uses those that are disjoint only.
    pub(super) unsafe fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Ends<'_> {
        match self {
            Self::Result { start, c } => Ends::Result {
                start: start.map(|start| start.rows_range(rows.clone()).cols_range(cols.clone())),
                // SAFETY: passed on to the caller.
                c: unsafe { c.alias() }.into_rows(rows).into_cols(cols),
            },
            Self::Sums { sums, resume } => Ends::Sums {
                // SAFETY: passed on to the caller.
                sums: unsafe { sums.alias() }.into_rows(rows).into_cols(cols),
                resume: *resume,
            },
        }
    }

    /// Copies the sums to begin with of `rows` to `tile`, whose rows are `width` apart; columns that do not
    /// exist start at 0. Nothing is copied if all sums start at 0.
    pub(super) fn load(&self, rows: &Range<usize>, tile: &mut [f32], width: usize) {
        let start = match self {
            Self::Result { start: Some(start), .. } => *start,
            Self::Sums { sums, resume: true } => sums.as_ref(),
            Self::Result { start: None, .. } | Self::Sums { resume: false, .. } => return,
        };
        for (i, tile) in rows.clone().zip(tile.chunks_exact_mut(width)) {
            let (sums, padding) = tile.split_at_mut(start.cols());
            sums.copy_from_slice(start.row(i));
            padding.fill(0.0);
        }
    }
}
