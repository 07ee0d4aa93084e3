//! [`OpShape`]: what tells one operator's measurements and tests from those of others.

use std::fmt;

use pace_kernels::Unit;
use serde::{Deserialize, Serialize};

use crate::{OpDType, Operator};

/// An operator of a certain shape and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OpShape {
    /// The operator.
    pub op: Operator,
    /// The type that decides which backends there are.
    pub dtype: OpDType,
    /// The sizes.
    pub size: OpSize,
}

/// The sizes of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpSize {
    /// A projection by a matrix `[n, k]`.
    Matrix {
        /// Outputs.
        n: usize,
        /// Inputs.
        k: usize,
    },
    /// A feed-forward layer.
    Mlp {
        /// Inputs and outputs.
        hidden: usize,
        /// Intermediate dimension.
        ffn: usize,
        /// Whether there is a gate.
        gated: bool,
    },
    /// Attention.
    Heads {
        /// Query heads.
        n_heads: usize,
        /// KV heads.
        n_kv_heads: usize,
        /// Dimensions of a head.
        head_dim: usize,
    },
    /// Rows of so many numbers.
    Row {
        /// Numbers in a row.
        cols: usize,
    },
}

impl OpShape {
    /// A projection by a matrix `[n, k]`.
    pub const fn matrix(op: Operator, dtype: OpDType, n: usize, k: usize) -> Self {
        Self { op, dtype, size: OpSize::Matrix { n, k } }
    }

    /// A feed-forward layer.
    pub const fn mlp(dtype: OpDType, hidden: usize, ffn: usize, gated: bool) -> Self {
        Self { op: Operator::Mlp, dtype, size: OpSize::Mlp { hidden, ffn, gated } }
    }

    /// Norm or RoPE of rows or heads of `cols` numbers.
    pub const fn row(op: Operator, dtype: OpDType, cols: usize) -> Self {
        Self { op, dtype, size: OpSize::Row { cols } }
    }

    /// Whether the tiled attention kernels have this head dimension; other operators have no such bound.
    pub(crate) const fn is_tiled(&self) -> bool {
        match self.size {
            OpSize::Heads { head_dim, .. } => head_dim % 8 == 0 && head_dim >= 8 && head_dim <= 256,
            _ => true,
        }
    }

    /// The unit that multiplies: int8 keys and values are multiplied as bf16.
    pub(crate) fn unit(&self) -> Unit {
        match (self.op, self.dtype) {
            (Operator::Attention, OpDType::Int8) => Unit::Bf16,
            (_, dtype) => dtype.into(),
        }
    }

    /// Weights that a forward reads.
    pub const fn weights(&self) -> usize {
        match self.size {
            OpSize::Matrix { n, k } => n * k,
            OpSize::Mlp { hidden, ffn, gated } => hidden * ffn * if gated { 3 } else { 2 },
            OpSize::Heads { .. } => 0,
            OpSize::Row { cols } => cols,
        }
    }
}

impl fmt::Display for OpSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match *self {
            Self::Matrix { n, k } => format!("{n} x {k}"),
            Self::Mlp { hidden, ffn, gated: true } => format!("{hidden} x {ffn}, gated"),
            Self::Mlp { hidden, ffn, gated: false } => format!("{hidden} x {ffn}"),
            Self::Heads { n_heads, n_kv_heads, head_dim } => {
                format!("{n_heads}/{n_kv_heads} heads of {head_dim}")
            }
            Self::Row { cols } => format!("{cols}"),
        };
        f.pad(&text)
    }
}

impl fmt::Display for OpShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.op, self.dtype, self.size)
    }
}
