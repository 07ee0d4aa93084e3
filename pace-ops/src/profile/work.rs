//! How much work the operators' calls are.

use pace_kernels::{ActRef, Unit};

use super::Work;
use crate::{OpDType, OpShape};

impl Work {
    /// A product of `rows` rows by weights of `weight_bytes` bytes that turns `input` into `output`. `output` is read,
    /// too, where the product is added to it; that is not counted.
    pub(crate) fn product(
        shape: OpShape,
        weight_bytes: usize,
        input: ActRef<'_>,
        output: ActRef<'_>,
    ) -> Self {
        Self {
            rows: input.rows(),
            bytes: weight_bytes + act_bytes(input) + act_bytes(output),
            flops: 2 * input.rows() * shape.weights(),
            unit: shape.unit(),
        }
    }

    /// `input` is read and `output` written, with no product that counts.
    pub(crate) fn rows(input: ActRef<'_>, output: ActRef<'_>) -> Self {
        let bytes = act_bytes(input) + act_bytes(output);
        Self { rows: output.rows(), bytes, flops: 0, unit: Unit::F32 }
    }
}

impl From<OpDType> for Unit {
    /// The unit that is made for the type.
    fn from(dtype: OpDType) -> Self {
        match dtype {
            OpDType::F32 => Self::F32,
            OpDType::Bf16 => Self::Bf16,
            OpDType::Int8 | OpDType::Int4 => Self::Int8,
        }
    }
}

/// Bytes of a matrix of activations.
pub(crate) fn act_bytes(act: ActRef<'_>) -> usize {
    act.rows() * act.cols() * act.dtype().size()
}
