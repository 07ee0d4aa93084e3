//! [`PartedKvCache`]: every kind of cache, told apart by when it grows and how.

use pace_kernels::{KV_BLOCK, KvLayout, KvMut, KvRun, OutOfMemory, Par, Placement};
use pace_ops::{KvCache, KvError, KvRows, KvUsage};

use super::region::Region;
use super::schedule::Schedule;
use super::{BmcGrow, KvCacheKind, KvConfig, KvShape};

/// From so many tokens on a second thread saves more time than it takes to wake.
const PARALLEL_TOKENS: usize = 16;

/// A cache that follows a schedule of capacities.
///
/// Growth by copy gives each layer a region of its own, so that only one layer is there twice at a time. Growth by commit
/// extends one reservation for all layers: a new part lies behind the old ones, and nothing moves.
pub(super) struct PartedKvCache {
    kind: KvCacheKind,
    shape: KvShape,
    schedule: Schedule,
    placement: Placement,
    /// What is left of the schedule is reserved; otherwise each growth copies. A dynamic cache grows at each append.
    in_place: bool,
    regions: Vec<Region>,
    layers_per_region: usize,
    len: usize,
    /// Tokens that room was made for.
    reserved: usize,
    allocations: usize,
    bytes_copied: usize,
    /// 0, 1 and so on to the number of KV heads: where the heads of a layer begin.
    heads: Vec<usize>,
}

impl PartedKvCache {
    /// An empty cache. A static one has its memory, any other none yet.
    ///
    /// # Errors
    /// There is no memory, or the size overflows.
    pub(super) fn new(config: &KvConfig, shape: KvShape, schedule: Schedule) -> Result<Self, KvError> {
        let KvConfig { kind, placement, .. } = *config;
        let mut cache = Self {
            kind,
            shape,
            schedule,
            placement,
            in_place: false,
            regions: Vec::new(),
            layers_per_region: 1,
            len: 0,
            reserved: 0,
            allocations: 0,
            bytes_copied: 0,
            heads: (0..=shape.n_kv_heads).collect(),
        };
        if kind == KvCacheKind::Static {
            cache.layers_per_region = shape.n_layers.max(1);
            cache
                .regions
                .push(Region::fixed(&shape, schedule.max_blocks(), placement).map_err(out_of_memory)?);
            cache.allocations = 1;
        } else if config.grow() == BmcGrow::Commit {
            cache.layers_per_region = shape.n_layers.max(1);
            cache.regions.push(Region::reserved(&shape, &schedule, placement).map_err(out_of_memory)?);
            cache.in_place = true;
        }
        Ok(cache)
    }

    fn capacity_blocks(&self) -> usize {
        if self.regions.len() * self.layers_per_region < self.shape.n_layers {
            return 0;
        }
        self.regions.iter().map(Region::blocks).min().unwrap_or(0)
    }

    /// Grows to `blocks` blocks. After an error the cache is as long as before.
    fn grow(&mut self, blocks: usize) -> Result<(), OutOfMemory> {
        if self.in_place {
            self.regions.iter_mut().try_for_each(|region| region.extend(&self.shape, blocks))?;
        } else {
            self.copy_to(blocks)?;
        }
        self.allocations += 1;
        Ok(())
    }

    /// Moves each layer into a region of `blocks` blocks.
    fn copy_to(&mut self, blocks: usize) -> Result<(), OutOfMemory> {
        let used = self.len.div_ceil(KV_BLOCK);
        for layer in 0..self.shape.n_layers {
            let mut region = Region::layer(&self.shape, blocks, self.placement)?;
            match self.regions.get_mut(layer) {
                None => self.regions.push(region),
                Some(old) => {
                    self.bytes_copied += region.copy_from(&self.shape, old, used);
                    *old = region;
                }
            }
        }
        Ok(())
    }

    /// The region of `layer`, and which of its layers that is.
    fn locate(&self, layer: usize) -> (usize, usize) {
        assert!(layer < self.shape.n_layers, "no such layer");
        (layer / self.layers_per_region, layer % self.layers_per_region)
    }
}

impl KvCache for PartedKvCache {
    fn layout(&self) -> KvLayout {
        self.shape.layout
    }

    fn len(&self) -> usize {
        self.len
    }

    fn reserve(&mut self, len: usize) -> Result<(), KvError> {
        if len > self.shape.max_len {
            return Err(KvError::TooLong { asked: len, max: self.shape.max_len });
        }
        let blocks = len.div_ceil(KV_BLOCK);
        let grows = match self.kind {
            KvCacheKind::Dynamic => len > self.reserved,
            _ => blocks > self.capacity_blocks(),
        };
        if grows {
            self.grow(self.schedule.capacity(blocks)).map_err(out_of_memory)?;
            self.reserved = len;
        }
        Ok(())
    }

    fn block_mut(&mut self, layer: usize, head: usize, block: usize) -> KvMut<'_> {
        let (region, layer) = self.locate(layer);
        self.regions[region].block_mut(&self.shape, layer, head, block)
    }

    fn append(&mut self, par: Par<'_>, layer: usize, rows: KvRows<'_>) {
        assert_eq!(rows.k.cols(), self.shape.n_kv_heads * self.shape.layout.head_dim(), "keys of every head");
        let par = if rows.k.rows() < PARALLEL_TOKENS { Par::seq() } else { par };
        let (region, layer) = self.locate(layer);
        self.regions[region].append(&self.shape, &self.heads, par, layer, rows);
    }

    fn set_len(&mut self, len: usize) {
        assert!(len <= self.shape.max_len, "longer than the cache");
        self.len = len;
        if self.kind == KvCacheKind::Dynamic {
            // What is dropped is gone: the next append copies again.
            self.reserved = self.reserved.min(len);
        }
    }

    fn for_each_run(&self, layer: usize, head: usize, len: usize, f: &mut dyn FnMut(KvRun<'_>)) {
        if len == 0 {
            return;
        }
        let (region, layer) = self.locate(layer);
        self.regions[region].for_each_run(&self.shape, layer, head, len.div_ceil(KV_BLOCK), f);
    }

    fn usage(&self) -> KvUsage {
        KvUsage {
            kind: self.kind.name(),
            allocations: self.allocations,
            capacity_rows: self.capacity_blocks() * KV_BLOCK,
            bytes: self.regions.iter().map(Region::bytes).sum(),
            bytes_copied: self.bytes_copied,
        }
    }
}

fn out_of_memory(error: OutOfMemory) -> KvError {
    KvError::OutOfMemory { bytes: error.bytes }
}
