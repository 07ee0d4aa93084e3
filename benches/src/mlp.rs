//! Feed-forward layers with random weights, for benches that compare backends.

use std::convert::Infallible;
use std::sync::Arc;

use pace_kernels::{ActBuf, ActMut, Activation, DType, PackedWeights, WeightFormat};
use pace_ops::{Backend, BuildCx, Mlp, MlpWeights, OpDType, OpShape, Operator};

use crate::{Bench, numbers};

/// A gated layer by some backends that share its weights, and rows to run it on.
pub struct Layer {
    hidden: usize,
    ffn: usize,
    weights: MlpWeights,
    x: ActBuf,
    residual: ActBuf,
}

impl Layer {
    /// A layer with bf16 weights in panels, for up to `rows` rows.
    ///
    /// # Panics
    /// There is too little memory.
    pub fn new(bench: &Bench, build: &BuildCx, hidden: usize, ffn: usize, rows: usize) -> Self {
        let pack = |shape, n: usize, k: usize| {
            let period = numbers(n as u64, k + 97);
            let spec = build.pack_spec(shape, Backend::Tpp.into(), WeightFormat::Bf16);
            let packed = PackedWeights::pack(spec, n, k, &bench.cx().par, |rows, out| {
                for (row, out) in rows.zip(out.chunks_exact_mut(k)) {
                    out.copy_from_slice(&period[row % 97..][..k]);
                }
                Ok::<(), Infallible>(())
            });
            Arc::new(packed.expect("the bench's weights fit the memory"))
        };
        let weights = MlpWeights {
            up: pack(OpShape::mlp(OpDType::Bf16, hidden, ffn, true), 2 * ffn, hidden),
            down: pack(OpShape::matrix(Operator::Linear, OpDType::Bf16, hidden, ffn), hidden, ffn),
            up_bias: None,
            down_bias: None,
        };
        let (mut x, mut residual) = (ActBuf::new(DType::Bf16, hidden), ActBuf::new(DType::Bf16, hidden));
        fill(bench, x.rows_mut(rows));
        fill(bench, residual.rows_mut(rows));
        Self { hidden, ffn, weights, x, residual }
    }

    /// The layer by a backend.
    ///
    /// # Panics
    /// There is no such backend here.
    pub fn build(&self, build: &BuildCx, backend: Backend) -> Mlp {
        Mlp::new(build, self.weights.clone(), Activation::Silu, backend).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Runs a layer on `rows` rows; the residual stream is not kept.
    pub fn run(&mut self, bench: &Bench, mlp: &Mlp, rows: usize) {
        mlp.forward(&bench.cx(), self.x.rows(rows), self.residual.rows_mut(rows));
    }

    /// What a layer adds to a residual stream of zeros: the first row.
    pub fn first_row(&mut self, bench: &Bench, mlp: &Mlp, rows: usize) -> Vec<f32> {
        if let ActMut::Bf16(mut m) = self.residual.rows_mut(rows) {
            (0..rows).for_each(|i| m.row_mut(i).fill(pace_kernels::bf16::ZERO));
        }
        self.run(bench, mlp, rows);
        let mut row = vec![0.0; self.hidden];
        if let pace_kernels::ActRef::Bf16(m) = self.residual.rows(rows) {
            bench.cx().kernels.widen(m.row(0), &mut row);
        }
        row
    }

    /// Operations of a forward on `rows` rows; a multiply-add counts as two.
    pub const fn flops(&self, rows: usize) -> usize {
        2 * rows * 3 * self.hidden * self.ffn
    }
}

fn fill(bench: &Bench, rows: ActMut<'_>) {
    let ActMut::Bf16(mut m) = rows else { return };
    let row = numbers(3, m.cols() + 61);
    for i in 0..m.rows() {
        let cols = m.cols();
        bench.cx().kernels.narrow(&row[i % 61..][..cols], m.row_mut(i));
    }
}
