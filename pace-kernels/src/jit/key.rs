//! What a generated tile is specialised for, and its name.

use std::fmt;
use std::str::FromStr;

use super::assembler::{Code, Emit};
use super::attention::{self, AttentionKey};
use super::brgemm;
use crate::gemm::tile::PREFETCH_STEPS;
use crate::{Activation, DType, Isa};

/// What a kernel is generated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum KernelKey {
    Tile(TileKey),
    Attention(AttentionKey),
}

impl KernelKey {
    /// The least tier that runs the kernel.
    pub(super) fn isa(&self) -> Isa {
        match self {
            Self::Tile(key) => key.isa(),
            Self::Attention(_) => Isa::Avx512Bf16,
        }
    }

    pub(super) fn is_valid(&self) -> bool {
        match self {
            Self::Tile(key) => key.is_valid(),
            Self::Attention(key) => key.is_valid(),
        }
    }

    pub(super) fn generate(&self) -> Emit<Code> {
        match self {
            Self::Tile(key) => brgemm::generate(key),
            Self::Attention(key) => attention::generate(key),
        }
    }
}

impl fmt::Display for KernelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tile(key) => key.fmt(f),
            Self::Attention(key) => key.fmt(f),
        }
    }
}

impl FromStr for KernelKey {
    type Err = UnknownKey;

    /// What `Display` writes.
    fn from_str(name: &str) -> Result<Self, UnknownKey> {
        let tile = parse(name).map(Self::Tile);
        tile.or_else(|| AttentionKey::parse(name).map(Self::Attention))
            .ok_or_else(|| UnknownKey(name.to_owned()))
    }
}

/// The most rows of a tile.
pub(super) const MAX_ROWS: usize = 8;

/// The most lines of a prefetch for a round of steps: one for each that they read.
const MAX_PREFETCH: usize = 4 * PREFETCH_STEPS;

/// Everything that a tile is generated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TileKey {
    pub(crate) operands: Operands,
    /// 1 to 8.
    pub(crate) rows: usize,
    /// Columns of the panel: 32 or 64.
    pub(crate) width: usize,
    /// Steps of the K block: pairs (bf16) or quads (int8) of k.
    pub(crate) steps: usize,
    /// Cache lines of `TileArgs::prefetch` for every [`PREFETCH_STEPS`] steps.
    pub(crate) prefetch: usize,
    /// What happens to the sums after the last K block; none: they stay in `sums`.
    pub(crate) epilogue: Option<TileEpilogue>,
}

/// What a tile multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operands {
    /// bf16 by bf16.
    Bf16,
    /// i8 activations, with a scale for each row and group, by u8 weights.
    Int8 {
        /// Steps of a group. The last one may be shorter.
        group_steps: usize,
        /// Whether the weights have scales too, one for each column and group.
        weight_scales: bool,
        /// Whether the weights come from memory, to be used by few rows.
        streamed: bool,
    },
}

/// What happens to a finished sum, in this order: times the scale of its column, plus the bias,
/// activation, times the up projection, times another matrix, plus what the output holds, rounded to
/// the output's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TileEpilogue {
    /// Columns of the output: the panel's (half of them if `paired`), or fewer in the last panel of
    /// a matrix.
    pub(crate) cols: usize,
    /// Scales of columns, for int8 weights without scales of groups.
    pub(crate) scaled: bool,
    pub(crate) bias: bool,
    pub(crate) activation: Option<Activation>,
    /// The panel holds width/2 columns of the gate, then the same columns of the up projection.
    pub(crate) paired: bool,
    /// Type of the matrix to multiply by.
    pub(crate) multiply: Option<DType>,
    pub(crate) accumulate: bool,
    /// f32 or bf16.
    pub(crate) out: DType,
}

impl TileKey {
    /// The least tier that runs the tile.
    pub(crate) fn isa(&self) -> Isa {
        match self.operands {
            Operands::Bf16 => Isa::Avx512Bf16,
            Operands::Int8 { .. } => Isa::Avx512Vnni,
        }
    }

    /// Whether the parts fit together, see the fields. Addresses inside of a tile are 32 bits.
    pub(crate) fn is_valid(&self) -> bool {
        let epilogue = self.epilogue.is_none_or(|epilogue| epilogue.is_valid(self.operands, self.width));
        let groups = !matches!(self.operands, Operands::Int8 { group_steps: 0, .. });
        let shape = (1..=MAX_ROWS).contains(&self.rows) && matches!(self.width, 32 | 64);
        shape && groups && (1..=1 << 24).contains(&self.steps) && self.prefetch <= MAX_PREFETCH && epilogue
    }
}

impl Operands {
    /// Values of k in one step.
    const fn k_per_step(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Int8 { .. } => 4,
        }
    }
}

impl TileEpilogue {
    /// Rounds the sums to `out`, no more.
    pub(crate) const fn store(cols: usize, out: DType) -> Self {
        Self {
            cols,
            scaled: false,
            bias: false,
            activation: None,
            paired: false,
            multiply: None,
            accumulate: false,
            out,
        }
    }

    fn is_valid(&self, operands: Operands, width: usize) -> bool {
        let most = if self.paired { width / 2 } else { width };
        let is_float = |dtype| matches!(dtype, DType::F32 | DType::Bf16);
        let scaled = !self.scaled || matches!(operands, Operands::Int8 { weight_scales: false, .. });
        (1..=most).contains(&self.cols) && scaled && self.multiply.is_none_or(is_float) && is_float(self.out)
    }
}

/// `bf16:6x64:k2048` for sums alone; with an epilogue its parts follow, such as
/// `bf16:6x64:k2048:32:bias+silu+up:bf16` (32 columns of act(gate + bias) * (up + bias), stored as bf16).
impl fmt::Display for TileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operands, rows, width, steps, prefetch, epilogue } = self;
        write!(f, "{operands}:{rows}x{width}:k{}", steps * operands.k_per_step())?;
        if *prefetch > 0 {
            write!(f, "p{prefetch}")?;
        }
        let Some(epilogue) = epilogue else { return Ok(()) };
        write!(f, ":{}:{}:{}", epilogue.cols, epilogue.parts().join("+"), epilogue.out)
    }
}

/// `bf16`, `int8-g64` (groups of 64 along K), `int8-g64w` (scales of weights for them too), both with an
/// `s` behind if weights are streamed.
impl fmt::Display for Operands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bf16 => f.write_str("bf16"),
            Self::Int8 { group_steps, weight_scales, streamed } => {
                let letter = |on: bool, letter| if on { letter } else { "" };
                write!(
                    f,
                    "int8-g{}{}{}",
                    4 * group_steps,
                    letter(*weight_scales, "w"),
                    letter(*streamed, "s")
                )
            }
        }
    }
}

impl TileEpilogue {
    fn parts(&self) -> Vec<String> {
        let named = [(self.scaled, "scale"), (self.bias, "bias")];
        let mut parts: Vec<_> =
            named.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_owned()).collect();
        parts.extend(self.activation.map(|activation| activation.to_string()));
        parts.extend(self.paired.then(|| "up".to_owned()));
        parts.extend(self.multiply.map(|dtype| format!("mul-{dtype}")));
        parts.extend(self.accumulate.then(|| "add".to_owned()));
        parts
    }
}

/// A key's name that does not follow the form of the others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a generated kernel; one is `bf16:6x64:k2048:64:bias+silu:bf16`")]
pub struct UnknownKey(pub String);

fn parse(name: &str) -> Option<TileKey> {
    let fields: Vec<_> = name.split(':').collect();
    let (head, tail) = fields.split_at_checked(3)?;
    let operands = parse_operands(head[0])?;
    let (rows, width) = head[1].split_once('x')?;
    let depth = head[2].strip_prefix('k')?;
    let (k, prefetch) = depth.split_once('p').unwrap_or((depth, "0"));
    let epilogue = match tail {
        [] => None,
        [cols, parts, out] => Some(parse_epilogue(cols, parts, out)?),
        _ => return None,
    };
    let key = TileKey {
        operands,
        rows: rows.parse().ok()?,
        width: width.parse().ok()?,
        steps: k.parse::<usize>().ok()? / operands.k_per_step(),
        prefetch: prefetch.parse().ok()?,
        epilogue,
    };
    // One key has one name: `k33` or parts in another order are none.
    (key.is_valid() && key.to_string() == name).then_some(key)
}

fn parse_operands(name: &str) -> Option<Operands> {
    if name == "bf16" {
        return Some(Operands::Bf16);
    }
    let group = name.strip_prefix("int8-g")?;
    let (group, streamed) = group.strip_suffix('s').map_or((group, false), |group| (group, true));
    let (group, weight_scales) = group.strip_suffix('w').map_or((group, false), |group| (group, true));
    Some(Operands::Int8 { group_steps: group.parse::<usize>().ok()? / 4, weight_scales, streamed })
}

fn parse_epilogue(cols: &str, parts: &str, out: &str) -> Option<TileEpilogue> {
    let mut epilogue = TileEpilogue::store(cols.parse().ok()?, out.parse().ok()?);
    for part in parts.split('+').filter(|part| !part.is_empty()) {
        match part {
            "scale" => epilogue.scaled = true,
            "bias" => epilogue.bias = true,
            "up" => epilogue.paired = true,
            "add" => epilogue.accumulate = true,
            _ => match part.strip_prefix("mul-") {
                Some(dtype) => epilogue.multiply = Some(dtype.parse().ok()?),
                None => epilogue.activation = Some(part.parse().ok()?),
            },
        }
    }
    Some(epilogue)
}
