//! TPP and JIT feed-forward layers: gate, up, activation and product in one pass over paired panels, then down.

use std::sync::Arc;

use pace_kernels::{ActMut, ActRef, Activation, Epilogue};

use super::{MlpBackend, MlpWeights};
use crate::panels::PanelGemm;
use crate::{OpCx, Product};

pub(super) struct PanelMlp {
    gemm: PanelGemm,
    weights: Arc<MlpWeights>,
    activation: Activation,
}

impl PanelMlp {
    pub(super) const fn new(gemm: PanelGemm, weights: Arc<MlpWeights>, activation: Activation) -> Self {
        Self { gemm, weights, activation }
    }
}

impl MlpBackend for PanelMlp {
    fn forward(&self, cx: &OpCx<'_>, x: ActRef<'_>, residual: ActMut<'_>) {
        let w = &self.weights;
        let mut inner = cx.act(x.dtype(), x.rows(), w.ffn());
        let up =
            Epilogue { bias: w.up_bias.as_deref(), activation: Some(self.activation), ..Epilogue::default() };
        self.gemm.run(cx, x, &w.up, inner.view_mut(), &up);
        cx.observe(Product::Down, w.ffn(), 0, inner.view());
        let down = Epilogue { bias: w.down_bias.as_deref(), accumulate: true, ..Epilogue::default() };
        self.gemm.run(cx, inner.view(), &w.down, residual, &down);
    }
}
