//! NATIVE MLP: gate and up panels side by side, activation and product on the panel, then the down projection.

use pace_kernels::{ActMut, ActRef, Activation, MatMut};

use super::{MlpBackend, MlpWeights};
use crate::OpCx;
use crate::cx::store_row;
use crate::linear::{Epilogue, LinearBackend, NativeMatrix};

pub(super) struct ComposedMlp {
    gate: NativeMatrix,
    up: NativeMatrix,
    down: NativeMatrix,
    gate_bias: Option<Vec<f32>>,
    up_bias: Option<Vec<f32>>,
    down_bias: Option<Vec<f32>>,
    activation: Activation,
}

impl ComposedMlp {
    pub(super) fn new(weights: MlpWeights, activation: Activation) -> Self {
        Self {
            gate: NativeMatrix::new(weights.gate),
            up: NativeMatrix::new(weights.up),
            down: NativeMatrix::new(weights.down),
            gate_bias: weights.gate_bias,
            up_bias: weights.up_bias,
            down_bias: weights.down_bias,
            activation,
        }
    }

    /// `out = act(gate(x)) * up(x)`, rounded to the type of `out` `[rows, ffn]`.
    fn gate_up(&self, cx: &OpCx<'_>, x: ActRef<'_>, out: ActMut<'_>) {
        let (rows, k) = (x.rows(), self.gate.k());
        let width = self.gate.panel_cols(rows, cx.par.threads(), 16);
        let (widen_len, panel_len) = (self.gate.widen_len(width), rows * width);
        let mut wide_x = cx.scratch.take(if matches!(x, ActRef::Bf16(_)) { rows * k } else { 0 });
        let x = cx.widened(x, &mut wide_x);
        let mut scratch = cx.thread_scratch(widen_len + 2 * panel_len + width);
        let kernels = cx.kernels;
        cx.par.grid_act(out, &[0, rows], width, &mut scratch, |slot, _, col_tile, mut tile| {
            let first_col = col_tile * width;
            let cols = first_col..first_col + tile.cols();
            let (widened, rest) = slot.split_at_mut(widen_len);
            let (gate, rest) = rest.split_at_mut(panel_len);
            let (up, row) = rest.split_at_mut(panel_len);
            let mut gate = MatMut::new(&mut gate[..rows * cols.len()], rows, cols.len());
            let mut up = MatMut::new(&mut up[..rows * cols.len()], rows, cols.len());
            self.gate.panel(kernels, x, cols.clone(), widened, gate.rb_mut());
            self.up.panel(kernels, x, cols.clone(), widened, up.rb_mut());
            let row = &mut row[..cols.len()];
            for i in 0..rows {
                if let Some(bias) = &self.gate_bias {
                    kernels.add(gate.row_mut(i), &bias[cols.clone()]);
                }
                if let Some(bias) = &self.up_bias {
                    kernels.add(up.row_mut(i), &bias[cols.clone()]);
                }
                kernels.act_mul(self.activation, gate.row(i), up.row(i), row);
                store_row(kernels, row, &mut tile, i);
            }
        });
    }
}

impl MlpBackend for ComposedMlp {
    fn forward(&self, cx: &OpCx<'_>, x: ActRef<'_>, residual: ActMut<'_>) {
        let mut inner = cx.act(x.dtype(), x.rows(), self.gate.n());
        self.gate_up(cx, x, inner.view_mut());
        self.down.forward(cx, inner.view(), residual, Epilogue::Residual { bias: self.down_bias.as_deref() });
    }
}
