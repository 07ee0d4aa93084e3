//! TPP and JIT projections: one blocked product over panels, with bias, residual and rounding in its epilogue.
//!
//! RoPE turns pairs of columns that may lie in two panels, so the f32 result of a projection with RoPE goes through
//! scratch memory, from where its rows are rotated and rounded.

use std::sync::Arc;

use pace_kernels::{ActMut, ActRef, DType, Epilogue, MatMut, PackedWeights};

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
    out: ActMut<'_>,
) {
    let (kernels, rows) = (cx.kernels, wide.rows());
    let cuts = cx.row_cuts(rows);
    cx.par.row_tiles_of_two(ActMut::F32(wide), out, cuts.as_slice(), |row_tile, wide, mut out| {
        let ActMut::F32(mut wide) = wide else { unreachable!("it is f32") };
        for i in 0..wide.rows() {
            let row = wide.row_mut(i);
            angles.rotate_row(kernels, cuts.as_slice()[row_tile] + i, head_dim, &mut row[..rotated]);
            store_row(kernels, row, &mut out, i);
        }
    });
}
