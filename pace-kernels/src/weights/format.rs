//! Names and sizes of weight formats, and the order of weights in memory.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use crate::generic::rotate;

/// Inputs that share a scale in [`WeightFormat::Mxfp4`].
const MX_GROUP: usize = 32;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight, IEEE half precision, rounded to nearest, ties to even.
    F16,
    /// 2 bytes a weight, rounded to nearest, ties to even.
    Bf16,
    /// 1 byte a weight, symmetric in [-127, 127], with one f32 scale an output. Panels only.
    Int8,
    /// As `Int8`, of rows that are rotated in blocks of 64 inputs, as their activations are then: a large element is spread
    /// over its block, and int8 loses a third or less.
    Int8Rotated,
    /// As `Int8Rotated`, with one f32 scale for each block of 64 inputs of an output, which loses a quarter less.
    Int8RotatedGroup,
    /// As `Int8`, with one f32 scale for each group of so many consecutive inputs of an output: 16, 32,
    /// 64, 128 or 256.
    Int8Group(usize),
    /// 1 byte a weight, `q * scale + min` with q in [0, 255] and both numbers f32, for groups of 16 to 256 inputs. Panels
    /// only, as all that follow.
    Int8Min(usize),
    /// 4 bits a weight, symmetric in [-8, 7], with one f16 scale for each group of 32, 64 or 128 inputs.
    Int4(usize),
    /// 4 bits a weight, `q * scale + min` with q in [0, 15] and both numbers f16, for groups of 32, 64 or 128 inputs.
    Int4Min(usize),
    /// 4 bits a weight, an E2M1 number (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) times a power of two for each group
    /// of 32 inputs. Source: OCP Microscaling Formats (MX) Specification 1.0.
    Mxfp4,
}

impl WeightFormat {
    /// Every format, groups of 64 for those that have groups.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Int8,
        Self::Int8Rotated,
        Self::Int8RotatedGroup,
        Self::Int8Group(64),
        Self::Int8Min(32),
        Self::Int4(32),
        Self::Int4Min(32),
        Self::Mxfp4,
    ];

    /// Bytes that `weights` weights take, at least: the scales of `Int8`, one for each output, and what pads
    /// outputs to panels and inputs to groups come on top.
    pub const fn bytes(self, weights: usize) -> usize {
        match self {
            Self::F32 => weights * size_of::<f32>(),
            Self::F16 | Self::Bf16 => weights * size_of::<bf16>(),
            Self::Int8 | Self::Int8Rotated => weights,
            Self::Int8RotatedGroup => weights + weights / rotate::BLOCK * size_of::<f32>(),
            Self::Int8Group(group) => weights + weights / group * size_of::<f32>(),
            Self::Int8Min(group) => weights + weights / group * 2 * size_of::<f32>(),
            Self::Int4(group) => weights / 2 + weights / group * size_of::<f16>(),
            Self::Int4Min(group) => weights / 2 + weights / group * 2 * size_of::<f16>(),
            Self::Mxfp4 => weights / 2 + weights / MX_GROUP * size_of::<bf16>(),
        }
    }

    /// Inputs that share a scale, for formats with groups.
    pub const fn group(self) -> Option<usize> {
        match self {
            Self::Int8Group(group) | Self::Int8Min(group) | Self::Int4(group) | Self::Int4Min(group) => {
                Some(group)
            }
            Self::Mxfp4 => Some(MX_GROUP),
            Self::Int8RotatedGroup => Some(rotate::BLOCK),
            Self::F32 | Self::F16 | Self::Bf16 | Self::Int8 | Self::Int8Rotated => None,
        }
    }

    /// Whether groups have a minimum beside their scale.
    pub const fn has_min(self) -> bool {
        matches!(self, Self::Int8Min(_) | Self::Int4Min(_))
    }

    /// Whether weights are stored as integers, which multiply activations that are rounded to integers.
    pub const fn is_quantised(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Whether inputs are rotated in blocks, as activations have to be then.
    pub const fn is_rotated(self) -> bool {
        matches!(self, Self::Int8Rotated | Self::Int8RotatedGroup)
    }

    /// Whether each output has one scale.
    pub(crate) const fn is_per_output(self) -> bool {
        matches!(self, Self::Int8 | Self::Int8Rotated)
    }

    /// Whether two weights share a byte.
    pub const fn is_4_bit(self) -> bool {
        matches!(self, Self::Int4(_) | Self::Int4Min(_) | Self::Mxfp4)
    }

    /// The code of the weight 0 in a format without minimum: codes are unsigned.
    pub const fn zero(self) -> u8 {
        match self {
            Self::Int8 | Self::Int8Rotated | Self::Int8RotatedGroup | Self::Int8Group(_) => 128,
            Self::Int4(_) => 8,
            _ => 0,
        }
    }

    /// Whether there is such a group.
    pub(crate) const fn is_known(self) -> bool {
        match self {
            Self::Int8Group(group) | Self::Int8Min(group) => matches!(group, 16 | 32 | 64 | 128 | 256),
            Self::Int4(group) | Self::Int4Min(group) => matches!(group, 32 | 64 | 128),
            _ => true,
        }
    }

    /// Inputs that share 4 bytes of a panel, one step of the kernels; those of 4 bits are unpacked before.
    pub(crate) const fn step_inputs(self) -> usize {
        match self {
            Self::F32 | Self::F16 => 1,
            Self::Bf16 => 2,
            _ => 4,
        }
    }

    /// Bytes that a step takes in a panel, for one output; 4 bits are in records of their own.
    pub(crate) const fn step_bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            _ => 4,
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.pad("f32"),
            Self::F16 => f.pad("f16"),
            Self::Bf16 => f.pad("bf16"),
            Self::Int8 => f.pad("int8"),
            Self::Int8Rotated => f.pad("int8r"),
            Self::Int8RotatedGroup => f.pad("int8r:64"),
            Self::Int8Group(group) => f.pad(&format!("int8:{group}")),
            Self::Int8Min(group) => f.pad(&format!("int8m:{group}")),
            Self::Int4(group) => f.pad(&format!("int4:{group}")),
            Self::Int4Min(group) => f.pad(&format!("int4m:{group}")),
            Self::Mxfp4 => f.pad("mxfp4"),
        }
    }
}

/// No weight format has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown weight format `{0}`; known: f32, f16, bf16, int8, int8r, int8r:64, int8:G and int8m:G (G 16, 32, 64, 128, 256), int4:G and \
     int4m:G (G 32, 64, 128), mxfp4"
)]
pub struct UnknownWeightFormat(pub String);

impl FromStr for WeightFormat {
    type Err = UnknownWeightFormat;

    fn from_str(name: &str) -> Result<Self, UnknownWeightFormat> {
        let of_group =
            |group| [Self::Int8Group, Self::Int8Min, Self::Int4, Self::Int4Min].map(|of| of(group));
        Self::ALL
            .into_iter()
            .chain([16, 32, 64, 128, 256].into_iter().flat_map(of_group))
            .filter(|format| format.is_known())
            .find(|format| format.to_string().eq_ignore_ascii_case(name))
            .ok_or_else(|| UnknownWeightFormat(name.to_owned()))
    }
}

/// The order of the weights in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightLayout {
    /// Row after row, as in a checkpoint: what a library that packs by itself reads.
    Rows,
    /// Panels of 64 or 32 outputs, each read front to back by [`Kernels::gemm`](crate::Kernels::gemm).
    Panels {
        /// Outputs in a panel: 64, which measures best, or 32.
        width: usize,
        /// The matrix holds two of n / 2 outputs, one below the other (gate and up): a panel holds
        /// half a panel of each, so that `act(gate) * up` needs no second pass.
        paired: bool,
    },
}

impl WeightLayout {
    /// Panels of the width that measures best.
    pub const PANELS: Self = Self::Panels { width: 64, paired: false };

    /// The same for a gate matrix with the up matrix below it.
    pub const PAIRED_PANELS: Self = Self::Panels { width: 64, paired: true };
}

/// How a matrix is packed: a format and an order. A format alone means [`WeightLayout::Rows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackSpec {
    /// How a weight is stored.
    pub format: WeightFormat,
    /// Where it is stored.
    pub layout: WeightLayout,
}

impl PackSpec {
    /// In panels, for [`Kernels::gemm`](crate::Kernels::gemm).
    pub const fn panels(format: WeightFormat) -> Self {
        Self { format, layout: WeightLayout::PANELS }
    }

    /// A gate matrix with the up matrix below it, in panels that hold half of each.
    pub const fn paired_panels(format: WeightFormat) -> Self {
        Self { format, layout: WeightLayout::PAIRED_PANELS }
    }
}

impl From<WeightFormat> for PackSpec {
    fn from(format: WeightFormat) -> Self {
        Self { format, layout: WeightLayout::Rows }
    }
}
