//! TPP and JIT projections: one blocked product over panels, with bias, residual and rounding in its epilogue.
//!
//! RoPE turns pairs of columns that may lie in two panels, so the f32 result of a projection with RoPE goes through
//! scratch memory, from where its rows are rotated and rounded.

use std::sync::Arc;

use pace_kernels::{ActMut, ActRef, DType, Epilogue, MatMut, MatRef, PackedWeights};

use super::projection::{Finish, LinearBackend};
use crate::OpCx;
use crate::cx::store_row;
use crate::panels::PanelGemm;
use crate::rope::AngleTable;

/// A `[n, k]` matrix in panels.
pub(crate) struct PanelLinear {
    gemm: PanelGemm,
    weights: Arc<PackedWeights>,
}

impl PanelLinear {
    pub(crate) const fn new(gemm: PanelGemm, weights: Arc<PackedWeights>) -> Self {
        Self { gemm, weights }
    }
}

impl LinearBackend for PanelLinear {
    fn forward(
        &self,
        cx: &OpCx<'_>,
        a: ActRef<'_>,
        bias: Option<&[f32]>,
        out: ActMut<'_>,
        finish: Finish<'_>,
    ) {
        let accumulate = matches!(finish, Finish::Residual);
        let epilogue = Epilogue { bias, accumulate, ..Epilogue::default() };
        let Finish::Rope { angles, head_dim, rotated } = finish else {
            return self.gemm.run(cx, a, &self.weights, out, &epilogue);
        };
        let (rows, n) = (a.rows(), self.weights.n());
        let mut wide = cx.act(DType::F32, rows, n);
        self.gemm.run(cx, a, &self.weights, wide.view_mut(), &epilogue);
        if let ActMut::F32(wide) = wide.view_mut() {
            rotate(cx, wide, angles, head_dim, rotated, out);
        }
    }
}

/// Rotates the heads in the columns `..rotated` of `wide` and rounds its rows into `out`.
fn rotate(
    cx: &OpCx<'_>,
    wide: MatMut<'_, f32>,
    angles: AngleTable<'_>,
    head_dim: usize,
    rotated: usize,
    mut out: ActMut<'_>,
) {
    let (kernels, rows) = (cx.kernels, wide.rows());
    let finish = |i: usize, row: &mut [f32], out: &mut ActMut<'_>, at: usize| {
        angles.rotate_row(kernels, i, head_dim, &mut row[..rotated]);
        store_row(kernels, row, out, at);
    };
    let mut wide = wide;
    if rows == 1 {
        return finish(0, wide.row_mut(0), &mut out, 0);
    }
    let cuts = cx.row_cuts(rows);
    let n = wide.cols();
    let mut spare = cx.thread_scratch(n);
    let wide: MatRef<'_, f32> = wide.as_ref();
    cx.par.grid_act(out, cuts.as_slice(), n.max(1), &mut spare, |row, row_tile, _, mut tile| {
        let first = cuts.as_slice()[row_tile];
        for i in 0..tile.rows() {
            row.copy_from_slice(wide.row(first + i));
            finish(first + i, row, &mut tile, i);
        }
    });
}
