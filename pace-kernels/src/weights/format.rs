//! Names and sizes of weight formats, and the order of weights in memory.

use std::fmt;
use std::str::FromStr;

use half::bf16;

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
    /// As `Int8`, with one f32 scale for each group of so many consecutive inputs of an output: 32,
    /// 64, 128 or 256.
    Int8Group(usize),
}

impl WeightFormat {
    /// Every format, groups of 64 for those that have groups.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Int8, Self::Int8Group(64)];

    /// Bytes that `weights` weights take, at least: the scales of `Int8`, one for each output, and what pads
    /// outputs to panels and inputs to groups come on top.
    pub const fn bytes(self, weights: usize) -> usize {
        match self {
            Self::F32 => weights * size_of::<f32>(),
            Self::F16 | Self::Bf16 => weights * size_of::<bf16>(),
            Self::Int8 => weights,
            Self::Int8Group(group) => weights + weights / group * size_of::<f32>(),
        }
    }

    /// Inputs that share 4 bytes of a panel, one step of the kernels.
    pub(crate) const fn step_inputs(self) -> usize {
        match self {
            Self::F32 | Self::F16 => 1,
            Self::Bf16 => 2,
            Self::Int8 | Self::Int8Group(_) => 4,
        }
    }

    /// Bytes that a step takes in a panel, for one output.
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
            Self::Int8Group(group) => f.pad(&format!("int8:{group}")),
        }
    }
}

/// No weight format has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown weight format `{0}`; known: f32, f16, bf16, int8, int8:32, int8:64, int8:128, int8:256")]
pub struct UnknownWeightFormat(pub String);

impl FromStr for WeightFormat {
    type Err = UnknownWeightFormat;

    fn from_str(name: &str) -> Result<Self, UnknownWeightFormat> {
        let grouped = [32, 64, 128, 256].map(Self::Int8Group);
        Self::ALL
            .into_iter()
            .chain(grouped)
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
