//! FLASH attention: the tiled online softmax of pace-kernels, by the tier's own step or by a generated one (JIT).

use std::ops::Range;
use std::sync::Arc;

use pace_kernels::{ActMut, ActRef, Jit, KvLayout, KvRun, KvSource};

use super::{AttentionBackend, AttentionPlan, AttentionShape};
use crate::panels::warn_once;
use crate::{BuildCx, KvBatch, OpCx};

pub(super) struct FlashAttention {
    shape: AttentionShape,
    generated: Option<Arc<Jit>>,
}

impl FlashAttention {
    /// By the tier's own step.
    pub(super) const fn table(shape: AttentionShape) -> Self {
        Self { shape, generated: None }
    }

    /// By a step that is generated for the head dimension and the heads of a group.
    pub(super) fn generated(build: &BuildCx, shape: AttentionShape) -> Self {
        Self { shape, generated: build.jit().ok().cloned() }
    }
}

impl AttentionBackend for FlashAttention {
    fn forward(
        &self,
        cx: &OpCx<'_>,
        layer: usize,
        plan: &AttentionPlan,
        kv: &dyn KvBatch,
        q: ActRef<'_>,
        mut out: ActMut<'_>,
    ) {
        let (params, source) = (self.shape.params(), LayerKv { kv, layer });
        if let Some(jit) = &self.generated {
            match jit.attention(&params, plan.tiled(), &source, q, out.rb_mut(), cx.scratch, &cx.par) {
                Ok(()) => return,
                Err(error) => warn_once(&error),
            }
        }
        cx.kernels.attention(&params, plan.tiled(), &source, q, out, cx.scratch, &cx.par);
    }
}

/// One layer of the caches of a batch.
struct LayerKv<'a> {
    kv: &'a dyn KvBatch,
    layer: usize,
}

impl KvSource for LayerKv<'_> {
    fn layout(&self) -> KvLayout {
        self.kv.cache(0).layout()
    }

    fn for_each_run(&self, seq: usize, head: usize, positions: Range<usize>, f: &mut dyn FnMut(KvRun<'_>)) {
        self.kv.cache(seq).for_each_run(self.layer, head, positions.end, f);
    }
}
