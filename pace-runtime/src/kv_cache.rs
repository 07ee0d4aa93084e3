//! KV caches: one per sequence, all behind [`pace_ops::KvCache`].
//!
//! A cache is told by when it grows and how. [`KvCacheKind::Static`] never grows. [`KvCacheKind::Dynamic`] is copied at
//! each append, into memory for as many blocks of 64 tokens as it needs then: what HF transformers does, for comparison. [`KvCacheKind::Bmc`] ("balancing
//! memory and compute") grows in parts, which may be longer. Rows beyond the sequence's length are spare: they cost no
//! time, and speculative tokens can be stored and dropped there.

mod cost;
mod parted;
mod region;
mod schedule;

use std::fmt;

use pace_kernels::{Buffer, KV_BLOCK, KvDType, KvLayout, Placement};
use pace_models::DecoderSpec;
use pace_ops::{KvCache, KvError};

use self::parted::PartedKvCache;
use self::region::Region;
use self::schedule::Schedule;

pub use self::cost::{KvCandidate, KvCostModel, KvPlanTable, KvWorkload};

/// How a cache gets its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvCacheKind {
    /// Copied into new memory at each append.
    Dynamic,
    /// Room for the longest sequence from the start; pages are touched as they are used.
    Static,
    /// Grown in parts, as [`BmcConfig`] says.
    #[default]
    Bmc,
}

/// How the parts of a BMC cache follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BmcGrowth {
    /// Each allocation is twice the one before, the last one the maximum length.
    #[default]
    Doubling,
    /// Each allocation adds as many rows.
    Linear,
}

/// What happens to the rows that a BMC cache holds when it grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BmcGrow {
    /// They are copied into new memory, layer by layer.
    Copy,
    /// They stay: the addresses of the longest sequence are reserved, and memory is committed from part to part. Where
    /// the system does not know the difference, they are copied.
    #[default]
    Commit,
}

/// Settings of [`KvCacheKind::Bmc`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BmcConfig {
    /// Allocations up to the maximum length, from 1 to that length; parts below a block of 64 tokens are merged, so that a
    /// short sequence has fewer. None: the cost model chooses.
    pub splits: Option<usize>,
    /// How parts follow each other. None: by doubling if `splits` is given, else the cost model chooses.
    pub growth: Option<BmcGrowth>,
    /// How it grows.
    pub grow: BmcGrow,
    /// What growing costs on this machine.
    pub cost: KvCostModel,
}

/// Which caches an engine makes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KvConfig {
    /// How they get their memory.
    pub kind: KvCacheKind,
    /// Settings of one kind.
    pub bmc: BmcConfig,
    /// Where their memory lies. Unless it says always or never, a cache that grows lies in huge pages if it is 16 MiB or
    /// longer in the end.
    pub placement: Placement,
}

/// The shape of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub n_layers: usize,
    /// KV heads per layer.
    pub n_kv_heads: usize,
    /// How a block is laid out.
    pub layout: KvLayout,
    /// The longest sequence, in tokens.
    pub max_len: usize,
}

impl KvCacheKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Dynamic, Self::Static, Self::Bmc];

    /// The name used everywhere: lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::Static => "static",
            Self::Bmc => "bmc",
        }
    }

    /// An empty cache of this kind with the default settings.
    ///
    /// # Errors
    /// As [`KvConfig::build`].
    pub fn build(self, shape: KvShape) -> Result<Box<dyn KvCache>, KvError> {
        KvConfig::from(self).build(shape)
    }
}

impl KvConfig {
    /// The same as this system and machine can do it for caches of up to `shape`: growth by copy where it refuses to
    /// reserve addresses, and the cost of copies measured where that decides something, which takes some 20 ms.
    pub fn settled(mut self, shape: &KvShape) -> Self {
        if self.kind != KvCacheKind::Bmc {
            return self;
        }
        if self.grow() == BmcGrow::Commit
            && let Err(error) = Region::reserved(shape, &self.schedule(shape), self.placement)
        {
            tracing::warn!("KV caches grow by copy: no addresses can be reserved for the longest: {error}");
            self.bmc.grow = BmcGrow::Copy;
        }
        if self.bmc.splits.is_none() && self.grow() == BmcGrow::Copy {
            self.bmc.cost = KvCostModel::measure();
        }
        self
    }

    /// Checks the settings against the longest sequence that there can be, in tokens.
    ///
    /// # Errors
    /// There are to be more splits than tokens, or none.
    pub const fn check(&self, max_len: usize) -> Result<(), KvError> {
        match (self.kind, self.bmc.splits) {
            (KvCacheKind::Bmc, Some(asked)) if asked == 0 || asked > max_len => {
                Err(KvError::Splits { asked, max: max_len })
            }
            _ => Ok(()),
        }
    }

    /// An empty cache.
    ///
    /// # Errors
    /// There is no memory.
    pub fn build(&self, shape: KvShape) -> Result<Box<dyn KvCache>, KvError> {
        let cache = PartedKvCache::new(self, shape, self.schedule(&shape))?;
        Ok(Box::new(cache))
    }

    /// Bytes that a cache of this shape comes to hold at most, what is there twice during a copy included.
    pub fn peak_bytes(&self, shape: &KvShape) -> usize {
        self.schedule(shape).peak_bytes(shape, self.kind, self.grow(), self.placement)
    }

    /// What the settings that BMC can have would cost a batch of sequences of this shape, and which of them is taken
    /// where none is given.
    pub fn table(&self, shape: &KvShape, workload: KvWorkload) -> KvPlanTable {
        KvPlanTable::new(self, shape, workload)
    }

    fn schedule(&self, shape: &KvShape) -> Schedule {
        let max = shape.max_blocks();
        let (splits, growth) = match self.kind {
            KvCacheKind::Static => (1, BmcGrowth::Doubling),
            KvCacheKind::Dynamic => (max, BmcGrowth::Linear),
            KvCacheKind::Bmc => match self.bmc.splits {
                Some(splits) => (splits, self.bmc.growth.unwrap_or_default()),
                None => {
                    let table = self.table(shape, KvWorkload { batch: 1, expected_len: shape.max_len });
                    (table.choice().splits, table.choice().growth)
                }
            },
        };
        Schedule::new(max, splits, growth)
    }

    fn grow(&self) -> BmcGrow {
        match self.kind {
            KvCacheKind::Bmc => self.bmc.grow.effective(),
            KvCacheKind::Dynamic | KvCacheKind::Static => BmcGrow::Copy,
        }
    }
}

impl From<KvCacheKind> for KvConfig {
    fn from(kind: KvCacheKind) -> Self {
        Self { kind, ..Self::default() }
    }
}

impl fmt::Display for KvConfig {
    /// The kind, with the settings that were given: `bmc splits=4 growth=linear grow=copy`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if self.kind == KvCacheKind::Bmc {
            if let Some(splits) = self.bmc.splits {
                write!(f, " splits={splits}")?;
            }
            if let Some(growth) = self.bmc.growth {
                write!(f, " growth={}", growth.name())?;
            }
            if self.bmc.grow == BmcGrow::Copy {
                f.write_str(" grow=copy")?;
            }
        }
        Ok(())
    }
}

impl BmcGrowth {
    /// The name used everywhere: lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Doubling => "doubling",
            Self::Linear => "linear",
        }
    }
}

impl BmcGrow {
    /// The name used everywhere: lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Commit => "commit",
        }
    }

    /// What this system does for it.
    const fn effective(self) -> Self {
        if Buffer::GROWS_IN_PLACE { self } else { Self::Copy }
    }
}

impl KvShape {
    /// The shape of the caches of a model, for sequences of up to `max_len` tokens.
    pub fn new(spec: &DecoderSpec, dtype: impl Into<KvDType>, max_len: usize) -> Self {
        let layout = KvLayout::new(dtype, spec.head_dim);
        Self { n_layers: spec.n_layers, n_kv_heads: spec.n_kv_heads, layout, max_len }
    }

    /// Blocks of the longest sequence.
    const fn max_blocks(&self) -> usize {
        self.max_len.div_ceil(KV_BLOCK)
    }

    /// Bytes of `blocks` blocks of each head in `layers` layers; none if they overflow.
    fn bytes(&self, layers: usize, blocks: usize) -> Option<usize> {
        [layers, self.n_kv_heads, blocks].into_iter().try_fold(self.layout.block_bytes(), usize::checked_mul)
    }
}

#[cfg(test)]
mod tests;
