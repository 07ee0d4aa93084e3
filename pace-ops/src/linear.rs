//! Projections: [`Linear`], [`QkvProjection`] and [`OutProjection`], over one small backend trait.

mod native;

use std::sync::Arc;

use pace_kernels::{ActMut, ActRef, PackedWeights};

pub(crate) use self::native::NativeMatrix;
use crate::rope::AngleTable;
use crate::{Backend, OpCx, OpError, Operator, RopeAngles};

/// `out = a * W^T`, plus a bias where there is one.
pub struct Linear {
    backend: Box<dyn LinearBackend>,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// `weights` is `[n, k]`, `bias` `[n]`.
    ///
    /// # Errors
    /// The operator has no such backend.
    ///
    /// # Panics
    /// The bias has another length than `n`.
    pub fn new(
        weights: Arc<PackedWeights>,
        bias: Option<Vec<f32>>,
        backend: Backend,
    ) -> Result<Self, OpError> {
        check_bias(&weights, bias.as_deref());
        Ok(Self { backend: build(Operator::Linear, weights, backend)?, bias })
    }

    /// Projects `a` `[rows, k]` into `out` `[rows, n]`.
    ///
    /// # Panics
    /// Shapes differ.
    pub fn forward(&self, cx: &OpCx<'_>, a: ActRef<'_>, out: ActMut<'_>) {
        self.backend.forward(cx, a, out, Epilogue::Store { bias: self.bias.as_deref() });
    }
}

/// Query, key and value in one projection; RoPE is applied in f32, then the row is rounded once.
pub struct QkvProjection {
    backend: Box<dyn LinearBackend>,
    bias: Option<Vec<f32>>,
    head_dim: usize,
    rotated: usize,
}

impl QkvProjection {
    /// `weights` is `[(n_heads + 2 * n_kv_heads) * head_dim, hidden]`: all query heads, all key heads, all value
    /// heads. `bias` has one number per row.
    ///
    /// # Errors
    /// The operator has no such backend.
    ///
    /// # Panics
    /// The weights or the bias do not have that shape.
    pub fn new(
        weights: Arc<PackedWeights>,
        bias: Option<Vec<f32>>,
        n_heads: usize,
        n_kv_heads: usize,
        head_dim: usize,
        backend: Backend,
    ) -> Result<Self, OpError> {
        assert_eq!(weights.n(), (n_heads + 2 * n_kv_heads) * head_dim, "rows of the fused projection");
        check_bias(&weights, bias.as_deref());
        let rotated = (n_heads + n_kv_heads) * head_dim;
        Ok(Self { backend: build(Operator::QkvProjection, weights, backend)?, bias, head_dim, rotated })
    }

    /// Projects `x` `[rows, hidden]` into `out` `[rows, q | k | v]`, q and k rotated by `angles` (one row a token).
    ///
    /// # Panics
    /// Shapes differ.
    pub fn forward(&self, cx: &OpCx<'_>, x: ActRef<'_>, angles: &RopeAngles<'_>, out: ActMut<'_>) {
        assert_eq!(angles.tokens(), x.rows(), "one row of angles per token");
        let (head_dim, rotated) = (self.head_dim, self.rotated);
        let epilogue =
            Epilogue::Rope { bias: self.bias.as_deref(), angles: angles.table(), head_dim, rotated };
        self.backend.forward(cx, x, out, epilogue);
    }
}

/// The attention's output projection, added to the residual stream.
pub struct OutProjection {
    backend: Box<dyn LinearBackend>,
    bias: Option<Vec<f32>>,
}

impl OutProjection {
    /// `weights` is `[hidden, n_heads * head_dim]`.
    ///
    /// # Errors
    /// The operator has no such backend.
    ///
    /// # Panics
    /// The bias has another length than `hidden`.
    pub fn new(
        weights: Arc<PackedWeights>,
        bias: Option<Vec<f32>>,
        backend: Backend,
    ) -> Result<Self, OpError> {
        check_bias(&weights, bias.as_deref());
        Ok(Self { backend: build(Operator::OutProjection, weights, backend)?, bias })
    }

    /// `residual += a * W^T + bias`, summed in f32 and rounded once.
    ///
    /// # Panics
    /// Shapes differ.
    pub fn forward(&self, cx: &OpCx<'_>, a: ActRef<'_>, residual: ActMut<'_>) {
        self.backend.forward(cx, a, residual, Epilogue::Residual { bias: self.bias.as_deref() });
    }
}

/// How a projection's f32 result becomes its output.
#[derive(Clone, Copy)]
pub(crate) enum Epilogue<'a> {
    /// Add the bias, round.
    Store {
        /// One number per output column.
        bias: Option<&'a [f32]>,
    },
    /// Add the bias and what the output holds, round.
    Residual {
        /// One number per output column.
        bias: Option<&'a [f32]>,
    },
    /// Add the bias, rotate the heads in the columns `..rotated`, round.
    Rope {
        /// One number per output column.
        bias: Option<&'a [f32]>,
        /// One row a token.
        angles: AngleTable<'a>,
        /// Columns of one head.
        head_dim: usize,
        /// Columns of the query and key heads together.
        rotated: usize,
    },
}

/// One way to compute a projection.
pub(crate) trait LinearBackend: Send + Sync {
    /// Output columns.
    fn n(&self) -> usize;

    /// `out = epilogue(a * W^T)`; `a` is `[rows, k]`, `out` `[rows, n]`.
    fn forward(&self, cx: &OpCx<'_>, a: ActRef<'_>, out: ActMut<'_>, epilogue: Epilogue<'_>);
}

/// Builds the backend of a projection.
pub(crate) fn build(
    op: Operator,
    weights: Arc<PackedWeights>,
    backend: Backend,
) -> Result<Box<dyn LinearBackend>, OpError> {
    match op.resolve(backend)? {
        Backend::Native => Ok(Box::new(NativeMatrix::new(weights))),
        other => Err(OpError::Unsupported { op, backend: other, available: op.backends() }),
    }
}

fn check_bias(weights: &PackedWeights, bias: Option<&[f32]>) {
    assert!(bias.is_none_or(|b| b.len() == weights.n()), "one bias per output column");
}
