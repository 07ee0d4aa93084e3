//! NATIVE attention: KV blocks unpacked to f32, scores and values by the `gemm` crate, a plain softmax.
//!
//! Work items are (query tile, KV head). The heads of a group are folded into the rows of the tile, so a block is
//! unpacked once per tile and not once per query head. Scores of a tile are `[<= 64 rows, tokens]`; keys beyond a
//! row's own position get no weight because the softmax stops there, not because of a mask.

use pace_kernels::{ActMut, ActRef, KV_BLOCK, Kernels, KvLayout, KvRef, MatMut, MatRef};

use super::{AttentionBackend, AttentionPlan, AttentionShape, QueryTile};
use crate::cx::{load_row, store_row};
use crate::{KvBatch, KvCache, OpCx};

/// Tokens per query tile: a tile of one KV head has at most 64 rows once the heads of its group are folded in.
pub(super) fn tile_tokens(shape: &AttentionShape) -> usize {
    (64 / shape.group()).max(1)
}

pub(super) struct NativeAttention {
    shape: AttentionShape,
}

impl NativeAttention {
    pub(super) fn new(shape: AttentionShape) -> Self {
        Self { shape }
    }
}

impl AttentionBackend for NativeAttention {
    fn forward(
        &self,
        cx: &OpCx<'_>,
        layer: usize,
        plan: &AttentionPlan,
        kv: &dyn KvBatch,
        q: ActRef<'_>,
        out: ActMut<'_>,
    ) {
        let shape = &self.shape;
        let rows = tile_tokens(shape) * shape.group();
        let width = shape.group() * shape.head_dim;
        let row_len = rows * shape.head_dim;
        let mut scratch = cx.thread_scratch(2 * row_len + shape.head_dim * KV_BLOCK + rows * plan.longest());
        let kernels = cx.kernels;
        cx.par.grid_act(out, plan.cuts(), width, &mut scratch, |slot, row_tile, head, tile| {
            let (q_rows, rest) = slot.split_at_mut(row_len);
            let (o_rows, rest) = rest.split_at_mut(row_len);
            let (block, scores) = rest.split_at_mut(shape.head_dim * KV_BLOCK);
            let query = plan.tile(row_tile);
            let rows = query.first_row..query.first_row + query.tokens;
            let q = q.rows_range(rows).cols_range(head * width..(head + 1) * width);
            let item = Item { kernels, shape, layer, head, query, kv: kv.cache(query.seq) };
            item.run(q, Temporaries { q_rows, o_rows, block, scores }, tile);
        });
    }
}

/// One query tile of one KV head.
struct Item<'a> {
    kernels: Kernels,
    shape: &'a AttentionShape,
    layer: usize,
    head: usize,
    query: QueryTile,
    kv: &'a dyn KvCache,
}

/// The f32 scratch of an item.
struct Temporaries<'s> {
    /// `[rows, head_dim]`: queries, scaled.
    q_rows: &'s mut [f32],
    /// `[rows, head_dim]`: the result.
    o_rows: &'s mut [f32],
    /// One block of keys `[head_dim, 64]` or values `[64, head_dim]`.
    block: &'s mut [f32],
    /// `[rows, length]`.
    scores: &'s mut [f32],
}

impl Item<'_> {
    fn run(&self, q: ActRef<'_>, t: Temporaries<'_>, mut tile: ActMut<'_>) {
        let (group, d) = (self.shape.group(), self.shape.head_dim);
        let rows = self.query.tokens * group;
        let length = self.query.position + self.query.tokens;
        let q_rows = &mut t.q_rows[..rows * d];
        for i in 0..self.query.tokens {
            load_row(self.kernels, q, i, &mut q_rows[i * group * d..(i + 1) * group * d]);
        }
        self.kernels.scale(q_rows, self.shape.scale);
        let scores = &mut t.scores[..rows * length];
        self.score(MatRef::new(q_rows, rows, d), t.block, MatMut::new(scores, rows, length));
        for (i, row) in scores.chunks_exact_mut(length).enumerate() {
            let visible = self.query.position + i / group + 1;
            self.kernels.softmax(&mut row[..visible]);
            row[visible..].fill(0.0);
        }
        let o_rows = &mut t.o_rows[..rows * d];
        o_rows.fill(0.0);
        self.weigh(MatRef::new(scores, rows, length), t.block, MatMut::new(o_rows, rows, d));
        for i in 0..self.query.tokens {
            store_row(self.kernels, &o_rows[i * group * d..(i + 1) * group * d], &mut tile, i);
        }
    }

    /// `scores = q * K^T`.
    fn score(&self, q: MatRef<'_, f32>, block: &mut [f32], mut scores: MatMut<'_, f32>) {
        let d = self.shape.head_dim;
        self.for_each_block(scores.cols(), &mut |layout, start, tokens, data| {
            layout.unpack_k(&self.kernels, data, tokens, block);
            let keys = MatRef::new(block, d, KV_BLOCK).cols_range(0..tokens);
            self.kernels.matmul_nn(q, keys, scores.rb_mut().into_cols(start..start + tokens), false);
        });
    }

    /// `out += p * V`.
    fn weigh(&self, p: MatRef<'_, f32>, block: &mut [f32], mut out: MatMut<'_, f32>) {
        let d = self.shape.head_dim;
        self.for_each_block(p.cols(), &mut |layout, start, tokens, data| {
            layout.unpack_v(&self.kernels, data, tokens, block);
            let values = MatRef::new(&block[..tokens * d], tokens, d);
            self.kernels.matmul_nn(p.cols_range(start..start + tokens), values, out.rb_mut(), true);
        });
    }

    /// Calls `f(layout, first token, tokens, block)` for every block that covers `0..length`.
    fn for_each_block(&self, length: usize, f: &mut dyn FnMut(KvLayout, usize, usize, KvRef<'_>)) {
        let layout = self.kv.layout();
        self.kv.for_each_run(self.layer, self.head, length, &mut |run| {
            for i in 0..run.block_count(&layout) {
                let start = run.first_token + i * KV_BLOCK;
                if start < length {
                    f(layout, start, KV_BLOCK.min(length - start), run.block(&layout, i));
                }
            }
        });
    }
}
