//! The kernels' formats of integers, until pace-kernels has them.

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight, IEEE half precision.
    F16,
    /// 2 bytes a weight.
    Bf16,
    /// 8 bits, symmetric, a scale an output.
    Int8,
    /// 8 bits, symmetric, a scale for so many inputs.
    Int8Group(usize),
    /// 8 bits, with a minimum.
    Int8Min(usize),
    /// 4 bits, symmetric.
    Int4(usize),
    /// 4 bits, with a minimum.
    Int4Min(usize),
    /// 4 bits, E2M1, scales E8M0 over 32.
    Mxfp4,
}

/// Some rows of a matrix as integers.
#[derive(Debug)]
pub struct CodeRows<'a> {
    /// One byte a weight, `[rows, k]`.
    pub codes: &'a mut [u8],
    /// `[rows, ceil(k / group)]`.
    pub scales: &'a mut [f32],
    /// As `scales`, or empty.
    pub mins: &'a mut [f32],
}
