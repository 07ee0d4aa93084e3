//! The attention step by code that is generated for a head dimension and a number of query heads for each
//! KV head: its key, its arguments and its call. The code itself is in [`code`].

mod code;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;

pub(super) use self::code::generate;
use super::Kernel;
use crate::KV_BLOCK;
use crate::attention::{Logits, SUM_LANES, Step};

/// Everything that an attention step is generated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AttentionKey {
    /// A multiple of 8, up to 256.
    pub(crate) head_dim: usize,
    /// Query heads of a KV head.
    pub(crate) group: usize,
    pub(crate) scores: Scores,
}

/// From the product of a query and a key to a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scores {
    /// Times a factor above 0, which commutes with the maximum.
    Scaled,
    /// Times any factor.
    Multiplied,
    /// With a softcap.
    Capped,
}

impl Scores {
    const ALL: [(Self, &str); 3] = [(Self::Scaled, ""), (Self::Multiplied, ":mul"), (Self::Capped, ":cap")];

    pub(crate) fn of(logits: Logits) -> Self {
        match logits {
            Logits::Scaled { factor } if factor > 0.0 => Self::Scaled,
            Logits::Scaled { .. } => Self::Multiplied,
            Logits::Capped { .. } => Self::Capped,
        }
    }
}

impl AttentionKey {
    pub(crate) fn is_valid(&self) -> bool {
        self.head_dim.is_multiple_of(8) && (8..=256).contains(&self.head_dim) && self.group >= 1
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        let (head_dim, rest) = name.strip_prefix("attention:d")?.split_once(":g")?;
        let (group, _) = rest.split_once(':').unwrap_or((rest, ""));
        let (head_dim, group) = (head_dim.parse().ok()?, group.parse().ok()?);
        let keys = Scores::ALL.map(|(scores, _)| Self { head_dim, group, scores });
        keys.into_iter().find(|key| key.is_valid() && key.to_string() == name)
    }

    /// The numbers of rows beyond whole fours that a few tokens of this group can have.
    fn rests(&self) -> impl Iterator<Item = usize> {
        let group = self.group;
        (1..4).filter(move |rest| (1..=4).any(|tokens| tokens * group % 4 == *rest))
    }

    /// The dimensions of a row of values, the padding included.
    fn width(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }
}

/// `attention:d128:g4`; with a softcap `attention:d128:g4:cap`, with a factor of any sign `:mul`.
impl fmt::Display for AttentionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind =
            Scores::ALL.into_iter().find(|(scores, _)| *scores == self.scores).map_or("", |(_, name)| name);
        write!(f, "attention:d{}:g{}{kind}", self.head_dim, self.group)
    }
}

/// What the code reads.
#[repr(C)]
struct Args {
    q: *const bf16,
    block: *const bf16,
    p: *mut f32,
    shrink: *mut f32,
    m: *mut f32,
    l: *mut f32,
    o: *mut f32,
    /// Rows in fours, and beyond.
    fours: usize,
    rest: usize,
    /// What a product is multiplied by at first, unless the scores are `Scaled`.
    inner: f32,
    cap: f32,
    /// What is multiplied by after the maximum.
    factor: f32,
    /// The tokens that each row sees, as in [`Step`]; null if the rows see all.
    seen: *const u64,
    /// First and number of the pairs of tokens that each four rows see.
    pairs: *const [usize; 2],
}

/// A generated attention step.
#[derive(Clone, Debug)]
pub(crate) struct AttentionStep {
    key: AttentionKey,
    kernel: Arc<Kernel>,
}

impl AttentionStep {
    /// `kernel` is that of `key`.
    pub(super) fn new(key: AttentionKey, kernel: Arc<Kernel>) -> Self {
        Self { key, kernel }
    }

    /// What the table's step does.
    ///
    /// # Panics
    /// If the step has another head dimension, group or kind of scores, or slices that do not fit.
    pub(crate) fn run(&self, mut step: Step<'_, bf16>) {
        step.check();
        let (key, scores) = (self.key, Scores::of(step.logits));
        assert!(
            (step.head_dim, scores) == (key.head_dim, key.scores) && step.rows().is_multiple_of(key.group),
            "{} rows of {} dimensions with {scores:?} scores by {key:?}",
            step.rows(),
            step.head_dim
        );
        for first in (0..step.rows()).step_by(MAX_ROWS) {
            let rows = first..step.rows().min(first + MAX_ROWS);
            let pairs = pairs(&step, &rows);
            let args = Args::new(&mut step, &rows, &pairs);
            // SAFETY: the code was generated for this head dimension, group and kind of scores, on a CPU
            // that has its tier. `check` has compared every slice of the step with its rows, what they see
            // included; there are pairs for every four rows of a call.
            unsafe { self.kernel.call(&raw const args, std::ptr::null::<()>()) };
        }
    }
}

/// Rows that one call takes at most, in fours.
const MAX_ROWS: usize = 32;

impl Args {
    fn new(step: &mut Step<'_, bf16>, rows: &Range<usize>, pairs: &Pairs) -> Self {
        let (inner, cap, factor) = match step.logits {
            Logits::Scaled { factor } if factor > 0.0 => (1.0, 0.0, factor),
            Logits::Scaled { factor } => (factor, 0.0, 1.0),
            Logits::Capped { inner, cap } => (inner, cap, 1.0),
        };
        let (first, d, w) = (rows.start, step.head_dim, step.width());
        Self {
            q: step.q[first * d..].as_ptr(),
            block: step.block.as_ptr(),
            p: step.p[first * KV_BLOCK..].as_mut_ptr(),
            shrink: step.shrink[first..].as_mut_ptr(),
            m: step.m[first..].as_mut_ptr(),
            l: step.l[first * SUM_LANES..].as_mut_ptr(),
            o: step.o[first * w..].as_mut_ptr(),
            fours: rows.len() / 4,
            rest: rows.len() % 4,
            inner,
            cap,
            factor,
            seen: step.seen.map_or(std::ptr::null(), |seen| seen[first..].as_ptr()),
            pairs: pairs.as_ptr(),
        }
    }
}

/// First and number of the pairs of tokens that four rows see together, for each four of a call.
type Pairs = [[usize; 2]; MAX_ROWS / 4];

fn pairs(step: &Step<'_, bf16>, rows: &Range<usize>) -> Pairs {
    let mut all = [[0; 2]; MAX_ROWS / 4];
    for (pairs, row) in all.iter_mut().zip(rows.clone().step_by(4)) {
        let seen = step.seen_together(row..rows.end.min(row + 4));
        let first = seen.start / 2;
        *pairs = [first, seen.end.div_ceil(2).saturating_sub(first)];
    }
    all
}
