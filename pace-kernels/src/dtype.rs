//! The element types that activations, KV blocks and weights are stored in.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

/// A storage type. Arithmetic is always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// bfloat16: 8 exponent bits, 8 bits of precision.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// What cached keys and values are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDType {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// 8-bit integers, with an f32 scale for the key and one for the value of each token and head.
    Int8,
}

impl KvDType {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Bytes of the key, or of the value, of one token and head: its elements and its scale.
    pub const fn row_bytes(self, head_dim: usize) -> usize {
        let scale = match self {
            Self::F32 | Self::Bf16 => 0,
            Self::Int8 => size_of::<f32>(),
        };
        head_dim * self.size() + scale
    }
}

impl From<DType> for KvDType {
    /// The type that keeps activations of a type: bf16 for f16, which blocks are not stored in.
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::F32,
            DType::Bf16 | DType::F16 => Self::Bf16,
        }
    }
}

impl fmt::Display for KvDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
        })
    }
}

/// The name is none of `bf16`, `f16`, `f32`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown element type `{0}`; known: bf16, f16, f32")]
pub struct UnknownDType(pub String);

impl FromStr for DType {
    type Err = UnknownDType;

    fn from_str(name: &str) -> Result<Self, UnknownDType> {
        match name.to_ascii_lowercase().as_str() {
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "fp16" | "float16" => Ok(Self::F16),
            "f32" | "fp32" | "float32" => Ok(Self::F32),
            _ => Err(UnknownDType(name.to_owned())),
        }
    }
}

/// An element type that kernels read and write: `f32`, `f16` and `bf16`, and no other.
pub trait Element: bytemuck::Pod + Send + Sync + PartialEq + fmt::Debug + sealed::Sealed {
    /// The value-level name of this type.
    const DTYPE: DType;

    /// The value as f32, exactly.
    fn to_f32(self) -> f32;

    /// The nearest representable value, ties to even; NaN stays NaN.
    fn from_f32(value: f32) -> Self;
}

impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;

    #[inline]
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }

    #[inline]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;

    #[inline]
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }

    #[inline]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;

    #[inline]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline]
    fn from_f32(value: f32) -> Self {
        value
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
    impl Sealed for f32 {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for dtype in [DType::Bf16, DType::F16, DType::F32] {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        assert_eq!("BFloat16".parse(), Ok(DType::Bf16));
        assert!("int8".parse::<DType>().unwrap_err().to_string().contains("`int8`"));
    }

    #[test]
    fn sizes_match_the_types() {
        assert_eq!(<bf16 as Element>::DTYPE.size(), size_of::<bf16>());
        assert_eq!(<f16 as Element>::DTYPE.size(), size_of::<f16>());
        assert_eq!(<f32 as Element>::DTYPE.size(), size_of::<f32>());
        assert_eq!(KvDType::ALL.map(|dtype| dtype.row_bytes(64)), [256, 128, 68]);
    }
}
