//! [`Region`]: blocks of some layers in one piece of memory.

use pace_kernels::{Buffer, HugePages, KV_BLOCK, KvMut, KvRun, MatMut, OutOfMemory, Par, Placement};
use pace_ops::KvRows;

use super::KvShape;
use super::schedule::Schedule;

/// From so many bytes in the end on a region that grows lies in huge pages: the one that is not full costs at most an
/// eighth of what the region takes on average.
const HUGE_FROM: usize = 16 << 20;

/// Memory in parts `[layers, heads, blocks]` that hold consecutive positions: the blocks of a layer and head follow each
/// other within a part.
pub(super) struct Region {
    data: Buffer,
    layers: usize,
    parts: Vec<Part>,
}

/// The blocks `first..first + blocks` of every layer and head.
#[derive(Clone, Copy)]
struct Part {
    first: usize,
    blocks: usize,
    /// f32 words before it: what blocks of every type are measured in here.
    start: usize,
}

impl Region {
    /// Room for `blocks` blocks of each head in all layers, in one part.
    pub(super) fn fixed(shape: &KvShape, blocks: usize, placement: Placement) -> Result<Self, OutOfMemory> {
        Self::zeroed(shape, shape.n_layers, blocks, |_| placement)
    }

    /// Room for `blocks` blocks of each head in one layer, in one part, until it is copied into a longer one.
    pub(super) fn layer(shape: &KvShape, blocks: usize, placement: Placement) -> Result<Self, OutOfMemory> {
        Self::zeroed(shape, 1, blocks, |bytes| growing(bytes, placement))
    }

    fn zeroed(
        shape: &KvShape,
        layers: usize,
        blocks: usize,
        placement: impl FnOnce(usize) -> Placement,
    ) -> Result<Self, OutOfMemory> {
        let bytes = shape.bytes(layers, blocks).ok_or(OutOfMemory { bytes: usize::MAX })?;
        let data = Buffer::zeroed(bytes, placement(bytes))?;
        Ok(Self { data, layers, parts: vec![Part { first: 0, blocks, start: 0 }] })
    }

    /// Addresses for all layers of the longest cache, and no memory yet.
    pub(super) fn reserved(
        shape: &KvShape,
        schedule: &Schedule,
        placement: Placement,
    ) -> Result<Self, OutOfMemory> {
        let bytes = shape.bytes(shape.n_layers, schedule.max_blocks());
        let bytes = bytes.ok_or(OutOfMemory { bytes: usize::MAX })?;
        let data = Buffer::reserve(bytes, growing(bytes, placement))?;
        // Growing must not allocate: a decode step does it.
        let parts = Vec::with_capacity(schedule.max_parts());
        Ok(Self { data, layers: shape.n_layers, parts })
    }

    /// Blocks of each layer and head.
    pub(super) fn blocks(&self) -> usize {
        self.parts.last().map_or(0, |part| part.first + part.blocks)
    }

    /// Bytes that it may take from the system.
    pub(super) fn bytes(&self) -> usize {
        self.data.held()
    }

    /// Commits a part that brings a reserved region to `blocks` blocks.
    pub(super) fn extend(&mut self, shape: &KvShape, blocks: usize) -> Result<(), OutOfMemory> {
        let first = self.blocks();
        let (old, new) = (shape.bytes(self.layers, first), shape.bytes(self.layers, blocks));
        let (old, new) = old.zip(new).ok_or(OutOfMemory { bytes: usize::MAX })?;
        self.data.extend(new)?;
        self.parts.push(Part { first, blocks: blocks - first, start: old / size_of::<f32>() });
        Ok(())
    }

    /// Copies the first `blocks` blocks of each head from a region of as many layers and one part. Gives the bytes.
    pub(super) fn copy_from(&mut self, shape: &KvShape, old: &Self, blocks: usize) -> usize {
        let heads = self.layers * shape.n_kv_heads;
        let len = blocks * shape.layout.block_words();
        let [from, to] = [old, &*self].map(|region| region.blocks() * shape.layout.block_words());
        copy_rows(&old.data, from, &mut self.data, to, heads, len);
        heads * blocks * shape.layout.block_bytes()
    }

    /// Block `block` of `layer`, counted from this region's first, and of KV head `head`.
    pub(super) fn block_mut(
        &mut self,
        shape: &KvShape,
        layer: usize,
        head: usize,
        block: usize,
    ) -> KvMut<'_> {
        let part = self.parts.iter().rfind(|part| part.first <= block);
        let part = *part.filter(|part| block < part.first + part.blocks).expect("block was not reserved");
        let len = shape.layout.block_words();
        let start = part.offset(shape, layer, head) + (block - part.first) * len;
        shape.layout.view_mut(&mut self.data.as_mut_slice()[start..start + len])
    }

    /// Stores `rows` in `layer`. `heads` is 0, 1 and so on to the number of KV heads. A part of a layer is a matrix of a row
    /// for each head, cut into blocks, which threads fill side by side.
    pub(super) fn append(
        &mut self,
        shape: &KvShape,
        heads: &[usize],
        par: Par<'_>,
        layer: usize,
        rows: KvRows<'_>,
    ) {
        assert!(rows.blocks().end <= self.blocks(), "rows were not reserved");
        let (layout, block_words) = (shape.layout, shape.layout.block_words());
        for part in &self.parts {
            let blocks = rows.blocks();
            let first = blocks.start.max(part.first) - part.first;
            let end = blocks.end.min(part.first + part.blocks).saturating_sub(part.first);
            if first >= end {
                continue;
            }
            let (start, cols) = (part.offset(shape, layer, 0), part.blocks * block_words);
            let data = &mut self.data.as_mut_slice()[start..start + shape.n_kv_heads * cols];
            let out =
                MatMut::new(data, shape.n_kv_heads, cols).into_cols(first * block_words..end * block_words);
            par.grid(out, heads, block_words, &mut [], |_, head, block, mut tile| {
                let words = layout.view_mut(tile.row_mut(0));
                rows.store(&layout, head, part.first + first + block, words);
            });
        }
    }

    /// Calls `f` with the runs that cover the first `blocks` blocks of `layer` and `head`.
    pub(super) fn for_each_run(
        &self,
        shape: &KvShape,
        layer: usize,
        head: usize,
        blocks: usize,
        f: &mut dyn FnMut(KvRun<'_>),
    ) {
        assert!(blocks <= self.blocks(), "longer than the cache");
        for part in self.parts.iter().take_while(|part| part.first < blocks) {
            let start = part.offset(shape, layer, head);
            let range = start..start + part.blocks.min(blocks - part.first) * shape.layout.block_words();
            let blocks = shape.layout.view(&self.data.as_slice()[range]);
            f(KvRun { first_token: part.first * KV_BLOCK, blocks });
        }
    }
}

impl Part {
    /// f32 words before the first block of `layer` and `head`.
    fn offset(&self, shape: &KvShape, layer: usize, head: usize) -> usize {
        assert!(head < shape.n_kv_heads, "no such head");
        self.start + (layer * shape.n_kv_heads + head) * self.blocks * shape.layout.block_words()
    }
}

/// Bytes that [`Region::fixed`] takes.
pub(super) fn fixed_bytes(shape: &KvShape, blocks: usize, placement: Placement) -> usize {
    shape.bytes(shape.n_layers, blocks).map_or(usize::MAX, |bytes| placement.held(bytes, None))
}

/// Bytes that [`Region::layer`] takes.
pub(super) fn layer_bytes(shape: &KvShape, blocks: usize, placement: Placement) -> usize {
    shape.bytes(1, blocks).map_or(usize::MAX, |bytes| growing(bytes, placement).held(bytes, None))
}

/// Bytes that a region of [`Region::reserved`] takes once it has grown to `blocks` blocks.
pub(super) fn committed_bytes(shape: &KvShape, blocks: usize, placement: Placement) -> usize {
    let all = [blocks, shape.max_blocks()].map(|blocks| shape.bytes(shape.n_layers, blocks));
    match all {
        [Some(bytes), Some(max)] => growing(max, placement).held(bytes, Some(max)),
        _ => usize::MAX,
    }
}

/// Where a region is put that is `bytes` long in the end, or until it is copied.
fn growing(bytes: usize, placement: Placement) -> Placement {
    match placement.hugepages {
        HugePages::Auto if bytes < HUGE_FROM => Placement { hugepages: HugePages::Never },
        _ => placement,
    }
}

/// Copies the first `len` f32 words of `rows` rows, which begin every `from` and `to` words.
fn copy_rows(old: &Buffer, from: usize, new: &mut Buffer, to: usize, rows: usize, len: usize) {
    if len == 0 {
        return;
    }
    let new = new.as_mut_slice::<f32>().chunks_exact_mut(to);
    for (old, new) in old.as_slice::<f32>().chunks_exact(from).zip(new).take(rows) {
        new[..len].copy_from_slice(&old[..len]);
    }
}
