//! Projections: [`Linear`], [`QkvProjection`] and [`OutProjection`], over one small backend trait.

mod native;
mod panels;
mod projection;

use std::sync::Arc;

use pace_kernels::{ActMut, ActRef, PackedWeights};

pub(crate) use self::native::NativeMatrix;
pub(crate) use self::projection::{Finish, LinearBackend, Projection, Projects};
use crate::{BuildCx, Choice, OpCx, OpError, Operator, RopeAngles};

/// `out = a * W^T`, plus a bias where there is one.
pub struct Linear {
    projection: Projection,
}

impl Linear {
    /// `weights` is `[n, k]`, packed as [`BuildCx::pack_spec`] says, `bias` `[n]`.
    ///
    /// # Errors
    /// The operator has no such backend, not for these weights, or not here.
    ///
    /// # Panics
    /// The bias has another length than `n`.
    pub fn new(
        build: &BuildCx,
        weights: Arc<PackedWeights>,
        bias: Option<Vec<f32>>,
        choice: impl Into<Choice>,
    ) -> Result<Self, OpError> {
        Ok(Self { projection: Projection::new(build, Operator::Linear, weights, bias, choice.into())? })
    }

    /// Makes every backend wrong.
    #[cfg(test)]
    pub(crate) fn break_backends(&mut self) {
        self.projection.break_backends();
    }

    /// Projects `a` `[rows, k]` into `out` `[rows, n]`.
    ///
    /// # Panics
    /// Shapes differ.
    pub fn forward(&self, cx: &OpCx<'_>, a: ActRef<'_>, out: ActMut<'_>) {
        self.projection.forward(cx, a, out, Finish::Store);
    }
}

/// Query, key and value in one projection; RoPE is applied in f32, then the row is rounded once.
pub struct QkvProjection {
    projection: Projection,
    head_dim: usize,
    rotated: usize,
}

impl QkvProjection {
    /// `weights` is `[(n_heads + 2 * n_kv_heads) * head_dim, hidden]`: all query heads, all key heads, all value
    /// heads. `bias` has one number per row.
    ///
    /// # Errors
    /// As [`Linear::new`].
    ///
    /// # Panics
    /// The weights or the bias do not have that shape.
    pub fn new(
        build: &BuildCx,
        weights: Arc<PackedWeights>,
        bias: Option<Vec<f32>>,
        n_heads: usize,
        n_kv_heads: usize,
        head_dim: usize,
        choice: impl Into<Choice>,
    ) -> Result<Self, OpError> {
        assert_eq!(weights.n(), (n_heads + 2 * n_kv_heads) * head_dim, "rows of the fused projection");
        let projection = Projection::new(build, Operator::QkvProjection, weights, bias, choice.into())?;
        Ok(Self { projection, head_dim, rotated: (n_heads + n_kv_heads) * head_dim })
    }

    /// Projects `x` `[rows, hidden]` into `out` `[rows, q | k | v]`, q and k rotated by `angles` (one row a token).
    ///
    /// # Panics
    /// Shapes differ.
    pub fn forward(&self, cx: &OpCx<'_>, x: ActRef<'_>, angles: &RopeAngles<'_>, out: ActMut<'_>) {
        assert_eq!(angles.tokens(), x.rows(), "one row of angles per token");
        let (head_dim, rotated) = (self.head_dim, self.rotated);
        self.projection.forward(cx, x, out, Finish::Rope { angles: angles.table(), head_dim, rotated });
    }
}

/// The attention's output projection, added to the residual stream.
pub struct OutProjection {
    projection: Projection,
}

impl OutProjection {
    /// `weights` is `[hidden, n_heads * head_dim]`.
    ///
    /// # Errors
    /// As [`Linear::new`].
    ///
    /// # Panics
    /// The bias has another length than `hidden`.
    pub fn new(
        build: &BuildCx,
        weights: Arc<PackedWeights>,
        bias: Option<Vec<f32>>,
        choice: impl Into<Choice>,
    ) -> Result<Self, OpError> {
        Ok(Self {
            projection: Projection::new(build, Operator::OutProjection, weights, bias, choice.into())?,
        })
    }

    /// `residual += a * W^T + bias`, summed in f32 and rounded once.
    ///
    /// # Panics
    /// Shapes differ.
    pub fn forward(&self, cx: &OpCx<'_>, a: ActRef<'_>, residual: ActMut<'_>) {
        self.projection.forward(cx, a, residual, Finish::Residual);
    }
}

impl Projects for Linear {
    fn projection(&self) -> &Projection {
        &self.projection
    }

    fn projection_mut(&mut self) -> &mut Projection {
        &mut self.projection
    }

    fn with_finish<R>(&self, _: &OpCx<'_>, f: impl FnOnce(Finish<'_>) -> R) -> R {
        f(Finish::Store)
    }
}

impl Projects for QkvProjection {
    fn projection(&self) -> &Projection {
        &self.projection
    }

    fn projection_mut(&mut self) -> &mut Projection {
        &mut self.projection
    }

    fn with_finish<R>(&self, cx: &OpCx<'_>, f: impl FnOnce(Finish<'_>) -> R) -> R {
        let (angles, head_dim, rotated) =
            (RopeAngles::sample(cx, self.head_dim), self.head_dim, self.rotated);
        f(Finish::Rope { angles: angles.table(), head_dim, rotated })
    }
}

impl Projects for OutProjection {
    fn projection(&self) -> &Projection {
        &self.projection
    }

    fn projection_mut(&mut self) -> &mut Projection {
        &mut self.projection
    }

    fn with_finish<R>(&self, _: &OpCx<'_>, f: impl FnOnce(Finish<'_>) -> R) -> R {
        f(Finish::Residual)
    }
}
