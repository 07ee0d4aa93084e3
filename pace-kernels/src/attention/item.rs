//! Work items: a tile's rows over some of the blocks that they see, and the merge of a split tile.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::plan::{Item, Merge, Tile, UNIT_BLOCKS};
use super::tile::{KvElement, Logits, Part, SUM_LANES, State, Step, Unpack, seen_together};
use super::{AttentionParams, AttentionPlan, KV_BLOCK, KvLayout, KvRef, KvSource};
use crate::jit::AttentionStep;
use crate::{ActMut, ActRef, Kernels, KvDType, MatMut, Par, Scratch};

/// Everything that the items of a call share.
pub(super) struct Call<'a> {
    pub(super) kernels: Kernels,
    /// The step to use instead of the table's.
    pub(super) generated: Option<&'a AttentionStep>,
    pub(super) params: &'a AttentionParams<'a>,
    pub(super) plan: &'a AttentionPlan,
    pub(super) kv: &'a dyn KvSource,
    pub(super) layout: KvLayout,
    pub(super) q: ActRef<'a>,
    pub(super) out: ActMut<'a>,
    /// The states of the units of split tiles, one a row.
    pub(super) states: MatMut<'a, f32>,
}

/// Elements of a state of `rows` rows.
pub(super) fn state_len(rows: usize, head_dim: usize) -> usize {
    rows * (2 + width(head_dim))
}

/// The values' width in a block.
fn width(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

impl Call<'_> {
    pub(super) fn run<E: KvElement>(&self, scratch: &Scratch, par: &Par<'_>) {
        let slot_len = Work::<E>::len(self.plan.tile_rows(), self.params.head_dim, self.unpacked_len());
        let slots = slot_len.checked_mul(par.threads()).expect("the size of the attention scratch fits");
        let mut slots = scratch.take(slots);
        par.tasks(self.plan.items.len(), &mut slots, |slot, index| {
            self.item::<E>(slot, &self.plan.items[index]);
        });
        par.tasks(self.plan.merges.len(), &mut slots, |slot, index| {
            self.merge::<E>(slot, &self.plan.merges[index]);
        });
    }

    fn item<E: KvElement>(&self, slot: &mut [f32], item: &Item) {
        let tile = &self.plan.tiles[item.tile];
        let mut work = self.work::<E>(slot, tile);
        self.load_queries(tile, item.head, work.q);
        let mut unit = None;
        self.for_each_block(tile.seq, item.head, &item.blocks, &mut |index, block| {
            let this = index / UNIT_BLOCKS;
            if unit != Some(this) {
                self.close(&mut work, item, unit);
                work.open();
                unit = Some(this);
            }
            self.step(tile, &mut work, index, block);
        });
        self.close(&mut work, item, unit);
        if item.state.is_none() {
            self.finish(tile, item.head, &mut work);
        }
    }

    /// Ends a unit, if there is one: folds its state into the rows', or keeps it for the merge.
    fn close<E: KvElement>(&self, work: &mut Work<'_, E>, item: &Item, unit: Option<usize>) {
        let Some(unit) = unit else { return };
        work.sum_lanes();
        let nth = unit - item.blocks.start / UNIT_BLOCKS;
        let Some(first) = item.state else {
            if nth == 0 {
                // A fold into nothing is a copy.
                std::mem::swap(&mut work.total, &mut work.unit);
            } else {
                // SAFETY: the CPU has this table's tier.
                unsafe { (self.kernels.table().attention.fold)(&mut work.total, work.unit.as_part()) };
            }
            return;
        };
        let (index, part) = (first + nth, work.unit.as_part());
        // SAFETY: each unit of a split tile has a state of its own, which only its item writes.
        let mut kept = unsafe { self.states.alias() }.into_rows(index..index + 1);
        let (m, rest) = kept.row_mut(0).split_at_mut(part.m.len());
        let (l, rest) = rest.split_at_mut(part.l.len());
        m.copy_from_slice(part.m);
        l.copy_from_slice(part.l);
        rest[..part.o.len()].copy_from_slice(part.o);
    }

    /// Folds the states of a split tile in the order of their units.
    fn merge<E: KvElement>(&self, slot: &mut [f32], merge: &Merge) {
        let tile = &self.plan.tiles[merge.tile];
        let mut work = self.work::<E>(slot, tile);
        work.total.clear();
        for index in merge.states.clone() {
            let (m, rest) = self.states.row(index).split_at(work.total.m.len());
            let (l, rest) = rest.split_at(m.len());
            let part = Part { m, l, o: &rest[..work.total.o.len()] };
            // SAFETY: the CPU has this table's tier.
            unsafe { (self.kernels.table().attention.fold)(&mut work.total, part) };
        }
        self.finish(tile, merge.head, &mut work);
    }

    /// The rows that see something of a block take it in.
    fn step<E: KvElement>(&self, tile: &Tile, work: &mut Work<'_, E>, index: usize, block: KvRef<'_>) {
        let (d, w, group) = (self.params.head_dim, width(self.params.head_dim), self.params.group());
        let tokens = self.tokens_that_see(tile, index);
        let rows = tokens.start * group..tokens.end * group;
        if rows.is_empty() {
            return;
        }
        let seen = self.masks(tile, &tokens, index, &mut work.seen[..rows.len()]);
        let block = E::block(self.kernels, &self.layout, seen_together(seen), block, &mut *work.block);
        let step = Step {
            head_dim: d,
            logits: logits(self.params),
            seen,
            q: &work.q[rows.start * d..rows.end * d],
            block,
            p: &mut work.p[..rows.len() * KV_BLOCK],
            shrink: &mut work.shrink[..rows.len()],
            m: &mut work.unit.m[rows.clone()],
            l: &mut work.lanes[rows.start * SUM_LANES..rows.end * SUM_LANES],
            o: &mut work.unit.o[rows.start * w..rows.end * w],
        };
        step.check();
        E::step(self.kernels, self.generated, step);
    }

    /// What the rows of some tokens see of a block, as in [`Step`].
    fn masks<'s>(
        &self,
        tile: &Tile,
        tokens: &Range<usize>,
        block: usize,
        masks: &'s mut [u64],
    ) -> Option<&'s [u64]> {
        let mask = |token: usize| {
            let position = tile.position + token;
            let end = if self.params.causal { position + 1 } else { tile.length };
            let start = self.params.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let slot = |position: usize| position.saturating_sub(block * KV_BLOCK).min(KV_BLOCK);
            low_bits(slot(end)) & !low_bits(slot(start))
        };
        // The first token sees least of the end of the block, the last one least of its start.
        if mask(tokens.start) & mask(tokens.end - 1) == u64::MAX {
            return None;
        }
        for (token, masks) in tokens.clone().zip(masks.chunks_exact_mut(self.params.group())) {
            masks.fill(mask(token));
        }
        Some(masks)
    }

    /// The tokens of the tile that see something of a block.
    fn tokens_that_see(&self, tile: &Tile, block: usize) -> Range<usize> {
        if !self.params.causal {
            return 0..tile.tokens;
        }
        let (start, end) = (block * KV_BLOCK, (block + 1) * KV_BLOCK);
        let first = start.saturating_sub(tile.position).min(tile.tokens);
        // A token at p sees the block's last position while p - window < end - 1.
        let last = self.params.window.map_or(tile.tokens, |window| {
            (end - 1).saturating_add(window).saturating_sub(tile.position).min(tile.tokens)
        });
        first..last.max(first)
    }

    /// Divides, and writes the tile's part of `out`.
    fn finish<E: KvElement>(&self, tile: &Tile, head: usize, work: &mut Work<'_, E>) {
        let (d, w, group) = (self.params.head_dim, width(self.params.head_dim), self.params.group());
        let rows = tile.first_row..tile.first_row + tile.tokens;
        let cols = head * group * d..(head + 1) * group * d;
        // SAFETY: the tile and the head own these rows and columns: no other item or merge that
        // finishes has them.
        let mut out = unsafe { self.out.alias() }.into_rows(rows).into_cols(cols);
        for row in 0..tile.tokens * group {
            let o = &mut work.total.o[row * w..row * w + d];
            let sink = self
                .params
                .sinks
                .map_or(f32::NEG_INFINITY, |sinks| sinks[head * group + row % group] * LOG2_E);
            // SAFETY: the CPU has this table's tier.
            unsafe { (self.kernels.table().attention.finish)(work.total.m[row], work.total.l[row], sink, o) };
            if self.is_rotated() {
                self.kernels.rotate(o);
            }
            let cols = row % group * d..(row % group + 1) * d;
            match &mut out {
                ActMut::F32(out) => out.row_mut(row / group)[cols].copy_from_slice(o),
                ActMut::Bf16(out) => self.kernels.narrow_bf16(o, &mut out.row_mut(row / group)[cols]),
            }
        }
    }

    fn work<'s, E: KvElement>(&self, slot: &'s mut [f32], tile: &Tile) -> Work<'s, E> {
        Work::carve(slot, tile.tokens * self.params.group(), self.params.head_dim, self.unpacked_len())
    }

    /// Elements of a block that a step reads and the cache does not hold.
    fn unpacked_len(&self) -> usize {
        match self.layout.dtype() {
            KvDType::F32 | KvDType::Bf16 => 0,
            KvDType::Int8 => Unpack::len(&self.layout),
        }
    }

    /// Whether keys and values are rotated.
    fn is_rotated(&self) -> bool {
        self.layout.dtype() == KvDType::Int8
    }

    fn load_queries<E: KvElement>(&self, tile: &Tile, head: usize, q: &mut [E]) {
        let d = self.params.head_dim;
        let row = self.params.group() * d;
        for (token, out) in q.chunks_exact_mut(row).enumerate() {
            let (token, start) = (tile.first_row + token, head * row);
            if !self.is_rotated() {
                E::load_queries(&self.kernels, self.q, token, start..start + row, out);
                continue;
            }
            for (i, out) in out.chunks_exact_mut(d).enumerate() {
                E::load_rotated(&self.kernels, self.q, token, start + i * d..start + (i + 1) * d, out);
            }
        }
    }

    /// Calls `f(index, block)` for every block of a range, in order.
    fn for_each_block(
        &self,
        seq: usize,
        head: usize,
        blocks: &Range<usize>,
        f: &mut dyn FnMut(usize, KvRef<'_>),
    ) {
        let mut next = blocks.start;
        let block_len = self.layout.block_len();
        let positions = blocks.start * KV_BLOCK..blocks.end * KV_BLOCK;
        self.kv.for_each_run(seq, head, positions, &mut |run| {
            let first = run.first_token / KV_BLOCK;
            let (dtype, wanted) = (run.blocks.dtype(), self.layout.dtype());
            assert!(dtype == wanted, "{dtype} blocks in a batch of {wanted} blocks");
            assert!(
                run.first_token.is_multiple_of(KV_BLOCK) && run.blocks.len().is_multiple_of(block_len),
                "a run of whole KV blocks"
            );
            let end = (first + run.blocks.len() / block_len).min(blocks.end);
            while (first..end).contains(&next) {
                f(next, run.block(&self.layout, next - first));
                next += 1;
            }
        });
        assert_eq!(
            next, blocks.end,
            "KV blocks of sequence {seq}, head {head}: the first one that is missing"
        );
    }
}

/// A thread's memory for one item.
struct Work<'a, E> {
    q: &'a mut [E],
    /// A block that the cache holds as int8.
    block: &'a mut [E],
    p: &'a mut [f32],
    shrink: &'a mut [f32],
    /// What each row sees of the block.
    seen: &'a mut [u64],
    /// The sums of the unit.
    lanes: &'a mut [f32],
    unit: State<'a>,
    total: State<'a>,
}

impl<'a, E: KvElement> Work<'a, E> {
    /// Elements of scratch for `rows` rows and `unpacked` elements of a block, each part on a cache line.
    fn len(rows: usize, head_dim: usize, unpacked: usize) -> usize {
        aligned(rows * head_dim)
            + aligned(unpacked)
            + rows * (KV_BLOCK + SUM_LANES)
            + aligned(rows)
            + aligned(2 * rows)
            + 2 * (2 * aligned(rows) + rows * width(head_dim))
    }

    fn carve(slot: &'a mut [f32], rows: usize, head_dim: usize, unpacked: usize) -> Self {
        let mut rest = slot;
        let mut take = |len: usize| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(aligned(len));
            rest = tail;
            &mut head[..len]
        };
        let w = width(head_dim);
        Self {
            q: &mut bytemuck::cast_slice_mut(take(rows * head_dim))[..rows * head_dim],
            block: &mut bytemuck::cast_slice_mut(take(unpacked))[..unpacked],
            p: take(rows * KV_BLOCK),
            lanes: take(rows * SUM_LANES),
            shrink: take(rows),
            seen: bytemuck::cast_slice_mut(take(2 * rows)),
            unit: State { m: take(rows), l: take(rows), o: take(rows * w) },
            total: State { m: take(rows), l: take(rows), o: take(rows * w) },
        }
    }

    /// Starts a unit from nothing.
    fn open(&mut self) {
        self.unit.clear();
        self.lanes.fill(0.0);
    }

    /// Adds up the lanes of the rows' sums, always in the same order.
    fn sum_lanes(&mut self) {
        for (l, lanes) in self.unit.l.iter_mut().zip(self.lanes.as_chunks::<SUM_LANES>().0) {
            let mut sum = *lanes;
            for half in [8, 4, 2, 1] {
                for i in 0..half {
                    sum[i] += sum[i + half];
                }
            }
            *l = sum[0];
        }
    }
}

/// The first `n` bits.
fn low_bits(n: usize) -> u64 {
    if n == 0 { 0 } else { u64::MAX >> (KV_BLOCK - n) }
}

/// Elements up to the next cache line.
const fn aligned(len: usize) -> usize {
    len.next_multiple_of(16)
}

pub(super) fn logits(params: &AttentionParams<'_>) -> Logits {
    match params.softcap {
        None => Logits::Scaled { factor: params.scale * LOG2_E },
        Some(cap) => Logits::Capped { inner: params.scale / cap, cap: cap * LOG2_E },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvRun, MatRef};

    /// Never asked for its blocks.
    struct NoBlocks;

    impl KvSource for NoBlocks {
        fn layout(&self) -> KvLayout {
            KvLayout::new(KvDType::F32, 8)
        }

        fn for_each_run(&self, _: usize, _: usize, _: Range<usize>, _: &mut dyn FnMut(KvRun<'_>)) {}
    }

    /// The tokens of a tile of 4 from position 62 on that see something of a block, and their masks.
    fn seen(params: AttentionParams<'_>, block: usize) -> (Range<usize>, Option<Vec<u64>>) {
        let call = Call {
            kernels: Kernels::detect(),
            generated: None,
            params: &params,
            plan: &AttentionPlan::new(),
            kv: &NoBlocks,
            layout: NoBlocks.layout(),
            q: ActRef::F32(MatRef::new(&[], 0, 0)),
            out: ActMut::F32(MatMut::new(&mut [], 0, 0)),
            states: MatMut::new(&mut [], 0, 0),
        };
        let tile = Tile { seq: 0, first_row: 0, position: 62, tokens: 4, length: 70 };
        let tokens = call.tokens_that_see(&tile, block);
        let mut masks = vec![0; 2 * tokens.len()];
        let masks = call.masks(&tile, &tokens, block, &mut masks).map(<[u64]>::to_vec);
        (tokens, masks)
    }

    #[test]
    fn rows_see_what_positions_and_windows_say() {
        let all = u64::MAX;
        let causal = AttentionParams::causal(2, 1, 8);
        assert_eq!(seen(causal, 0), (0..4, Some(vec![all >> 1, all >> 1, all, all, all, all, all, all])));
        assert_eq!(seen(causal, 1), (2..4, Some(vec![1, 1, 3, 3])));
        let window = AttentionParams { window: Some(2), ..causal };
        let two = |start: u32| 3 << start;
        assert_eq!(seen(window, 0), (0..3, Some(vec![two(61), two(61), two(62), two(62), 1 << 63, 1 << 63])));
        assert_eq!(seen(window, 1), (2..4, Some(vec![1, 1, 3, 3])));
        let full = AttentionParams { causal: false, ..causal };
        assert_eq!(seen(full, 0), (0..4, None));
        assert_eq!(seen(full, 1), (0..4, Some(vec![63; 8])));
    }
}
