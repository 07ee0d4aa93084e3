//! Products over weights in panels: what TPP, JIT and IMBPS are made of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pace_kernels::{ActMut, ActQuant, ActRef, Epilogue, GemmCx, Jit, PackedWeights, WeightLayout};

use crate::{Backend, BuildCx, Choice, MClass, OpCx, OpError, Operator};

/// Multiplies by the tier's own tiles, or by generated ones: the same bits.
#[derive(Clone, Debug)]
pub(crate) struct PanelGemm {
    generated: Option<Arc<Jit>>,
    act_quant: ActQuant,
}

impl PanelGemm {
    /// The tier's own tiles.
    pub(crate) const fn table(build: &BuildCx) -> Self {
        Self { generated: None, act_quant: build.act_quant }
    }

    /// Generated tiles.
    pub(crate) fn generated(build: &BuildCx) -> Self {
        Self { generated: build.jit().ok().cloned(), act_quant: build.act_quant }
    }

    /// `c = epilogue(a * W^T)`, see [`pace_kernels::Kernels::gemm`].
    pub(crate) fn run(
        &self,
        cx: &OpCx<'_>,
        a: ActRef<'_>,
        w: &PackedWeights,
        mut c: ActMut<'_>,
        epilogue: &Epilogue<'_>,
    ) {
        let gemm = GemmCx { par: cx.par, scratch: cx.scratch, act_quant: self.act_quant };
        if let Some(jit) = &self.generated {
            match jit.gemm(&gemm, a, w, c.rb_mut(), epilogue) {
                Ok(()) => return,
                Err(error) => warn_once(&error),
            }
        }
        cx.kernels.gemm(&gemm, a, w, c, epilogue);
    }
}

/// Generated code can run out of memory long after it was found to work. The table's tiles give the same bits.
pub(crate) fn warn_once(error: &pace_kernels::JitError) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!("{error}; the hand-written kernels serve instead");
    }
}

/// As [`require_panels`], for every backend of `choice` but NATIVE, which reads rows, too.
pub(crate) fn require_panels_for(
    op: Operator,
    choice: Choice,
    weights: &PackedWeights,
    paired: bool,
) -> Result<(), OpError> {
    let backends = MClass::ALL.map(|class| choice.of(class)).into_iter();
    backends.filter(|b| *b != Backend::Native).try_for_each(|b| require_panels(op, b, weights, paired))
}

/// Checks that weights are in panels, which for gate and up hold half of each.
fn require_panels(
    op: Operator,
    backend: Backend,
    weights: &PackedWeights,
    paired: bool,
) -> Result<(), OpError> {
    match weights.layout() {
        WeightLayout::Panels { paired: p, .. } if p == paired => Ok(()),
        _ if paired => Err(OpError::Layout { op, backend, wanted: "paired panels, gate above up" }),
        _ => Err(OpError::Layout { op, backend, wanted: "panels" }),
    }
}
