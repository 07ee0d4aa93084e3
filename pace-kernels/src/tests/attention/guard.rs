//! No byte outside of any operand is read or written.

use std::ops::Range;

use half::bf16;

use super::{Tokens, variants};
use crate::tests::guard::{Flush, Guarded};
use crate::tests::kv::NAN_BYTE;
use crate::tests::{noise_vec, tiers};
use crate::{
    ActMut, ActRef, AttentionParams, AttentionPlan, AttentionSegment, KV_BLOCK, KvDType, KvLayout, KvMut,
    KvRef, KvRun, KvSource, MatMut, MatRef, Par, Scratch,
};

/// One KV head, every block of which lies next to a page without access.
enum Fenced {
    F32(Vec<Guarded<f32>>),
    Bf16(Vec<Guarded<bf16>>),
    Int8(Vec<Guarded<i8>>),
}

impl Fenced {
    fn new(flush: Flush, layout: &KvLayout, tokens: &Tokens, len: usize) -> Self {
        fn filled<E: bytemuck::Pod>(
            flush: Flush,
            layout: &KvLayout,
            len: usize,
            value: E,
        ) -> Vec<Guarded<E>> {
            let blocks = 0..len.div_ceil(KV_BLOCK);
            blocks.map(|_| Guarded::filled(flush, layout.block_len(), value)).collect()
        }
        let d = layout.head_dim();
        let mut store = match layout.dtype() {
            KvDType::F32 => Self::F32(filled(flush, layout, len, f32::NAN)),
            KvDType::Bf16 => Self::Bf16(filled(flush, layout, len, bf16::NAN)),
            KvDType::Int8 => Self::Int8(filled(flush, layout, len, NAN_BYTE)),
        };
        for t in 0..len {
            let block = match &mut store {
                Self::F32(blocks) => KvMut::F32(&mut blocks[t / KV_BLOCK]),
                Self::Bf16(blocks) => KvMut::Bf16(&mut blocks[t / KV_BLOCK]),
                Self::Int8(blocks) => KvMut::Int8(&mut blocks[t / KV_BLOCK]),
            };
            layout.append(block, t % KV_BLOCK, &tokens.k[t * d..][..d], &tokens.v[t * d..][..d]);
        }
        store
    }
}

struct Source {
    layout: KvLayout,
    blocks: Fenced,
}

impl KvSource for Source {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn for_each_run(&self, _: usize, _: usize, positions: Range<usize>, f: &mut dyn FnMut(KvRun<'_>)) {
        for block in positions.start / KV_BLOCK..positions.end.div_ceil(KV_BLOCK) {
            let blocks = match &self.blocks {
                Fenced::F32(blocks) => KvRef::F32(&blocks[block]),
                Fenced::Bf16(blocks) => KvRef::Bf16(&blocks[block]),
                Fenced::Int8(blocks) => KvRef::Int8(&blocks[block]),
            };
            f(KvRun { first_token: block * KV_BLOCK, blocks });
        }
    }
}

// SAFETY: its mappings are plain memory that is only read once the source is shared.
unsafe impl Sync for Source {}

#[test]
fn attention_stays_inside() {
    let sinks = noise_vec(79, 3);
    for flush in Flush::BOTH {
        for dtype in KvDType::ALL {
            for d in [8, 24, 72, 128] {
                for params in variants(AttentionParams::causal(3, 1, d), &sinks) {
                    check(flush, dtype, &params);
                }
            }
        }
    }
}

fn check(flush: Flush, dtype: KvDType, params: &AttentionParams<'_>) {
    let (past, new, cols) = (61, 7, 3 * params.head_dim);
    let tokens = Tokens::noise(11, params, past + new);
    let layout = KvLayout::new(dtype, params.head_dim);
    let source = Source { layout, blocks: Fenced::new(flush, &layout, &tokens, past + new) };
    let q = Guarded::new(flush, &tokens.q[past * cols..]);
    let narrow: Vec<bf16> = q.iter().map(|&x| bf16::from_f32(x)).collect();
    let narrow = Guarded::new(flush, &narrow);
    let mut plan = AttentionPlan::new();
    plan.rebuild(params, 1, [AttentionSegment { position: past, tokens: new }]);
    for kernels in tiers() {
        let scratch = Scratch::new();
        let run = |q: ActRef<'_>, out: ActMut<'_>| {
            // What was there before counts for nothing.
            scratch.take(1 << 17).fill(f32::NAN);
            kernels.attention(params, &plan, &source, q, out, &scratch, &Par::seq());
        };
        let mut out = Guarded::filled(flush, new * cols, f32::NAN);
        run(ActRef::F32(MatRef::new(&q, new, cols)), ActMut::F32(MatMut::new(&mut out, new, cols)));
        assert!(out.iter().all(|x| x.is_finite()));
        let mut out = Guarded::filled(flush, new * cols, bf16::NAN);
        run(ActRef::Bf16(MatRef::new(&narrow, new, cols)), ActMut::Bf16(MatMut::new(&mut out, new, cols)));
        assert!(out.iter().all(|x| x.is_finite()));
    }
}
