//! NATIVE projections: f32 GEMM by the `gemm` crate over panels of output columns.
//!
//! A panel's weights are widened to f32 in the scratch of the thread that multiplies them, so bf16 weights cost
//! their own bytes of DRAM traffic and the matrix never exists in f32. Columns are the unit of parallelism: every
//! weight is read by one thread, once. A few rows get small panels that stay in L2 (the widened panel is read back
//! at once); many rows get wide ones, because the library packs the activations anew for every panel.

use std::ops::Range;
use std::sync::Arc;

use pace_kernels::{ActMut, ActRef, Kernels, MatMut, MatRef, PackedWeights};

use super::projection::{Finish, LinearBackend};
use crate::OpCx;
use crate::cx::{load_row, store_row};

/// Bytes of widened weights per panel when activations have few rows (the panel stays in L2) and when many.
const PANEL_BYTES: [usize; 2] = [128 << 10, 1 << 20];
/// Rows from which the larger panel wins.
const MANY_ROWS: usize = 8;

/// A `[n, k]` weight matrix multiplied panel by panel.
pub(crate) struct NativeMatrix {
    weights: Arc<PackedWeights>,
    /// The output columns that are left out: as they were before.
    left_out: Range<usize>,
}

impl NativeMatrix {
    pub(crate) fn new(weights: Arc<PackedWeights>) -> Self {
        Self { weights, left_out: 0..0 }
    }

    /// The first and the last `edge` output columns alone, and some beside them: a sample of a large matrix.
    pub(crate) fn edges(weights: Arc<PackedWeights>, edge: usize) -> Self {
        let left_out = edge..weights.n().saturating_sub(edge);
        Self { weights, left_out }
    }

    /// Output columns.
    fn n(&self) -> usize {
        self.weights.n()
    }

    /// Input columns.
    fn k(&self) -> usize {
        self.weights.k()
    }

    /// Output columns per panel for `rows` rows: a multiple of `unit`, small enough to keep every thread busy.
    pub(crate) fn panel_cols(&self, rows: usize, threads: usize, unit: usize) -> usize {
        let budget = PANEL_BYTES[usize::from(rows >= MANY_ROWS)];
        let fits = budget / (4 * self.k().max(1));
        let fair = self.n().div_ceil(threads);
        (fits.min(fair) / unit).max(1) * unit
    }

    /// f32 numbers that [`Self::panel`] needs to widen a panel of `cols` columns.
    pub(crate) fn widen_len(&self, cols: usize) -> usize {
        cols * self.k()
    }

    /// `out = a * W[cols]^T`, on the calling thread.
    pub(crate) fn panel(
        &self,
        kernels: Kernels,
        a: MatRef<'_, f32>,
        cols: Range<usize>,
        widened: &mut [f32],
        out: MatMut<'_, f32>,
    ) {
        self.weights.matmul(&kernels, cols, a, out, widened);
    }
}

impl LinearBackend for NativeMatrix {
    fn forward(
        &self,
        cx: &OpCx<'_>,
        a: ActRef<'_>,
        bias: Option<&[f32]>,
        out: ActMut<'_>,
        finish: Finish<'_>,
    ) {
        let (rows, k) = (a.rows(), self.k());
        let unit = if let Finish::Rope { head_dim, .. } = finish { head_dim } else { 16 };
        let width = self.panel_cols(rows, cx.par.threads(), unit);
        let mut wide_a = cx.scratch.take(if matches!(a, ActRef::Bf16(_)) { rows * k } else { 0 });
        let a = cx.widened(a, &mut wide_a);
        let widen_len = self.widen_len(width);
        let mut scratch = cx.thread_scratch(widen_len + rows * width + width);
        let kernels = cx.kernels;
        cx.par.grid_act(out, &[0, rows], width, &mut scratch, |slot, _, col_tile, mut tile| {
            let first_col = col_tile * width;
            let cols = first_col..first_col + tile.cols();
            if self.left_out.start <= cols.start && cols.end <= self.left_out.end {
                return;
            }
            let (widened, rest) = slot.split_at_mut(widen_len);
            let (panel, row) = rest.split_at_mut(rows * width);
            let mut panel = MatMut::new(&mut panel[..rows * cols.len()], rows, cols.len());
            self.panel(kernels, a, cols.clone(), widened, panel.rb_mut());
            let bias = bias.map(|bias| &bias[cols.clone()]);
            store(kernels, bias, &finish, cols, panel, &mut row[..tile.cols()], &mut tile);
        });
    }
}

/// Finishes the f32 `panel` of the output columns `cols` and stores it into `tile`; `row` is one row of scratch.
fn store(
    kernels: Kernels,
    bias: Option<&[f32]>,
    finish: &Finish<'_>,
    cols: Range<usize>,
    mut panel: MatMut<'_, f32>,
    row: &mut [f32],
    tile: &mut ActMut<'_>,
) {
    for i in 0..panel.rows() {
        let sums = panel.row_mut(i);
        if let Some(bias) = bias {
            kernels.add(sums, bias);
        }
        match *finish {
            Finish::Store => {}
            Finish::Residual => {
                load_row(kernels, tile.as_ref(), i, row);
                kernels.add(sums, row);
            }
            Finish::Rope { angles, head_dim, rotated } => {
                let rotated = rotated.saturating_sub(cols.start).min(cols.len());
                angles.rotate_row(kernels, i, head_dim, &mut sums[..rotated]);
            }
        }
        store_row(kernels, sums, tile, i);
    }
}
