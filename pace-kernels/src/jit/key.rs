//! What a generated tile is specialised for, and its name.

use std::fmt;
use std::str::FromStr;

use crate::{Activation, DType, Isa};

/// Steps of 4 along K in a group of activations that share a scale.
pub(super) const GROUP_STEPS: usize = 16;

/// The most rows of a tile.
pub(super) const MAX_ROWS: usize = 8;

/// Everything that a tile is generated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TileKey {
    pub(crate) kind: TileKind,
    /// Rows: 1 to 8.
    pub(crate) mr: usize,
    /// Columns of the panel: 32 or 64.
    pub(crate) nr: usize,
    /// Steps of the K block: pairs (bf16) or quads (int8) of k.
    pub(crate) steps: usize,
    /// What happens to the sums after the last K block; none: they stay in `sums`.
    pub(crate) epilogue: Option<Epilogue>,
}

/// What a tile multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TileKind {
    /// bf16 by bf16.
    Bf16,
    /// i8 activations with one scale for each row of the K block, by u8 weights.
    Int8Tokens,
    /// i8 activations with a scale for each row and 64 of k, by u8 weights.
    Int8Groups,
    /// As `Int8Groups`, and the weights have a scale for each column and 64 of k.
    Int8WeightGroups,
}

/// What happens to a finished sum, in this order: times the scale of its output channel, plus the
/// bias, activation, times another operand, plus the residual, rounded to the result's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Epilogue {
    /// Columns of the result: the panel's, or fewer in the last panel of a matrix.
    pub(crate) cols: usize,
    /// Scales of output channels (int8 only).
    pub(crate) scaled: bool,
    pub(crate) bias: bool,
    pub(crate) act: Option<Activation>,
    pub(crate) factor: Factor,
    /// Type of the residual that is added.
    pub(crate) residual: Option<DType>,
    /// f32 or bf16.
    pub(crate) out: DType,
}

/// What the activation's value is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Factor {
    One,
    /// Another matrix of this type.
    Matrix(DType),
    /// The panel holds nr/2 columns of the gate, then the same columns of the up projection: the
    /// result is act(gate) * up.
    Up,
}

impl TileKey {
    /// The least tier that runs the tile.
    pub(crate) fn isa(&self) -> Isa {
        match self.kind {
            TileKind::Bf16 => Isa::Avx512Bf16,
            _ => Isa::Avx512Vnni,
        }
    }

    /// Whether the parts fit together, see the fields.
    pub(crate) fn is_valid(&self) -> bool {
        let epilogue = self.epilogue.is_none_or(|epilogue| epilogue.is_valid(self.kind, self.nr));
        (1..=MAX_ROWS).contains(&self.mr) && matches!(self.nr, 32 | 64) && self.steps >= 1 && epilogue
    }
}

impl TileKind {
    /// Every kind, with its name.
    pub(crate) const ALL: [(Self, &str); 4] = [
        (Self::Bf16, "bf16"),
        (Self::Int8Tokens, "int8"),
        (Self::Int8Groups, "int8-g64"),
        (Self::Int8WeightGroups, "int8-g64-w64"),
    ];

    /// Values of k in one step.
    pub(crate) fn k_per_step(self) -> usize {
        if self == Self::Bf16 { 2 } else { 4 }
    }

    fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

impl Epilogue {
    /// Rounds the sums to `out`, no more.
    pub(crate) fn store(cols: usize, out: DType) -> Self {
        Self { cols, scaled: false, bias: false, act: None, factor: Factor::One, residual: None, out }
    }

    fn is_valid(&self, kind: TileKind, nr: usize) -> bool {
        let most = if self.factor == Factor::Up { nr / 2 } else { nr };
        let is_float = |dtype| matches!(dtype, DType::F32 | DType::Bf16);
        let factor = !matches!(self.factor, Factor::Matrix(dtype) if !is_float(dtype));
        let scaled = !self.scaled || matches!(kind, TileKind::Int8Tokens | TileKind::Int8Groups);
        (1..=most).contains(&self.cols) && scaled && factor && self.residual.is_none_or(is_float) && is_float(self.out)
    }
}

/// `bf16:6x64:k2048` for sums alone; with an epilogue its parts follow, such as
/// `bf16:6x64:k2048:32:bias+silu+up:bf16` (32 columns of act(gate + bias) * (up + bias), stored as bf16).
impl fmt::Display for TileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let k = self.steps * self.kind.k_per_step();
        write!(f, "{}:{}x{}:k{k}", self.kind.name(), self.mr, self.nr)?;
        let Some(epilogue) = &self.epilogue else { return Ok(()) };
        let mut parts = Vec::new();
        parts.extend(epilogue.scaled.then(|| "scale".to_owned()));
        parts.extend(epilogue.bias.then(|| "bias".to_owned()));
        parts.extend(epilogue.act.map(|act| act.to_string()));
        match epilogue.factor {
            Factor::One => {}
            Factor::Matrix(dtype) => parts.push(format!("mul-{dtype}")),
            Factor::Up => parts.push("up".to_owned()),
        }
        parts.extend(epilogue.residual.map(|dtype| format!("add-{dtype}")));
        write!(f, ":{}:{}:{}", epilogue.cols, parts.join("+"), epilogue.out)
    }
}

/// A key's name that does not follow the form of the others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a generated kernel; one is `bf16:6x64:k2048:64:bias+silu:bf16`")]
pub struct UnknownKey(pub String);

impl FromStr for TileKey {
    type Err = UnknownKey;

    /// What `Display` writes.
    fn from_str(name: &str) -> Result<Self, UnknownKey> {
        parse(name).filter(Self::is_valid).ok_or_else(|| UnknownKey(name.to_owned()))
    }
}

fn parse(name: &str) -> Option<TileKey> {
    let fields: Vec<_> = name.split(':').collect();
    let (head, tail) = fields.split_at_checked(3)?;
    let kind = TileKind::ALL.into_iter().find(|(_, name)| *name == head[0])?.0;
    let (mr, nr) = head[1].split_once('x')?;
    let k: usize = head[2].strip_prefix('k')?.parse().ok()?;
    let epilogue = match tail {
        [] => None,
        [cols, parts, out] => Some(parse_epilogue(cols, parts, out)?),
        _ => return None,
    };
    let steps = k / kind.k_per_step();
    let key = TileKey { kind, mr: mr.parse().ok()?, nr: nr.parse().ok()?, steps, epilogue };
    // One key has one name: `k33` or parts in another order are none.
    (key.to_string() == name).then_some(key)
}

fn parse_epilogue(cols: &str, parts: &str, out: &str) -> Option<Epilogue> {
    let mut epilogue = Epilogue::store(cols.parse().ok()?, out.parse().ok()?);
    for part in parts.split('+').filter(|part| !part.is_empty()) {
        match part {
            "scale" => epilogue.scaled = true,
            "bias" => epilogue.bias = true,
            "up" => epilogue.factor = Factor::Up,
            _ => match part.split_once('-') {
                Some(("mul", dtype)) => epilogue.factor = Factor::Matrix(dtype.parse().ok()?),
                Some(("add", dtype)) => epilogue.residual = Some(dtype.parse().ok()?),
                _ => epilogue.act = Some(part.parse().ok()?),
            },
        }
    }
    Some(epilogue)
}
