//! NATIVE MLP: gate and up panels side by side, activation and product on the panel, then the down projection.

use std::ops::Range;
use std::sync::Arc;

use pace_kernels::{ActMut, ActRef, Activation, Kernels, MatMut, MatRef};

use super::{MlpBackend, MlpWeights};
use crate::cx::store_row;
use crate::linear::{Finish, LinearBackend, NativeMatrix};
use crate::{OpCx, Product};

pub(super) struct NativeMlp {
    weights: Arc<MlpWeights>,
    up: NativeMatrix,
    down: NativeMatrix,
    activation: Activation,
}

impl NativeMlp {
    pub(super) fn new(weights: Arc<MlpWeights>, activation: Activation) -> Self {
        let (up, down) =
            (NativeMatrix::new(Arc::clone(&weights.up)), NativeMatrix::new(Arc::clone(&weights.down)));
        Self { weights, up, down, activation }
    }

    /// `out = act(gate(x)) * up(x)`, or `act(up(x))`, rounded to the type of `out` `[rows, ffn]`.
    fn up(&self, cx: &OpCx<'_>, x: ActRef<'_>, out: ActMut<'_>) {
        let (rows, k) = (x.rows(), self.weights.hidden());
        let width = self.up.panel_cols(rows, cx.par.threads(), 16);
        let (widen_len, panel_len) = (self.up.widen_len(width), rows * width);
        let mut wide_x = cx.scratch.take(if matches!(x, ActRef::Bf16(_)) { rows * k } else { 0 });
        let x = cx.widened(x, &mut wide_x);
        let mut scratch = cx.thread_scratch(widen_len + 2 * panel_len + width);
        let kernels = cx.kernels;
        cx.par.grid_act(out, &[0, rows], width, &mut scratch, |slot, _, col_tile, mut tile| {
            let cols = col_tile * width..col_tile * width + tile.cols();
            let (widened, rest) = slot.split_at_mut(widen_len);
            let (first, rest) = rest.split_at_mut(panel_len);
            let (second, row) = rest.split_at_mut(panel_len);
            let mut first = self.panel(kernels, x, cols.clone(), widened, first);
            let row = &mut row[..cols.len()];
            if !self.weights.gated() {
                for i in 0..rows {
                    kernels.activate(self.activation, first.row_mut(i));
                    store_row(kernels, first.row(i), &mut tile, i);
                }
                return;
            }
            let ffn = self.weights.ffn();
            let up = self.panel(kernels, x, ffn + cols.start..ffn + cols.end, widened, second);
            for i in 0..rows {
                kernels.act_mul(self.activation, first.row(i), up.row(i), row);
                store_row(kernels, row, &mut tile, i);
            }
        });
    }

    /// `x * W[cols]^T + bias[cols]` in f32.
    fn panel<'s>(
        &self,
        kernels: Kernels,
        x: MatRef<'_, f32>,
        cols: Range<usize>,
        widened: &mut [f32],
        out: &'s mut [f32],
    ) -> MatMut<'s, f32> {
        let mut out = MatMut::new(&mut out[..x.rows() * cols.len()], x.rows(), cols.len());
        self.up.panel(kernels, x, cols.clone(), widened, out.rb_mut());
        if let Some(bias) = &self.weights.up_bias {
            (0..x.rows()).for_each(|i| kernels.add(out.row_mut(i), &bias[cols.clone()]));
        }
        out
    }
}

impl MlpBackend for NativeMlp {
    fn forward(&self, cx: &OpCx<'_>, x: ActRef<'_>, residual: ActMut<'_>) {
        let mut inner = cx.act(x.dtype(), x.rows(), self.weights.ffn());
        self.up(cx, x, inner.view_mut());
        cx.observe(Product::Down, self.weights.ffn(), 0, inner.view());
        self.down.forward(cx, inner.view(), self.weights.down_bias.as_deref(), residual, Finish::Residual);
    }
}
