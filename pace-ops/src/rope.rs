//! [`Rope`]: rotary position embedding, half-split as in HF's Llama.

use pace_kernels::{Kernels, MatMut, MatRef, ScratchBuf};

use crate::{Backend, OpCx, OpError, Operator};

/// Builds the angles of a batch; the projection that owns q and k applies them before it rounds.
///
/// Angles are built in f64: a product rounded to f32 is off by 5e-4 at position 8192 already.
/// Source: Su et al. 2021, "RoFormer".
#[derive(Debug)]
pub struct Rope {
    rotary_dim: usize,
}

impl Rope {
    /// RoPE over the first `rotary_dim` (even) dimensions of each head.
    ///
    /// # Errors
    /// The operator has no such backend.
    pub fn new(rotary_dim: usize, backend: Backend) -> Result<Self, OpError> {
        Operator::Rope.resolve(backend)?;
        Ok(Self { rotary_dim })
    }

    /// Space for the angles of `tokens` tokens.
    pub fn angles<'a>(&self, cx: &OpCx<'a>, tokens: usize) -> RopeAngles<'a> {
        let half = self.rotary_dim / 2;
        RopeAngles { buf: cx.scratch.take(2 * tokens * half), tokens, half }
    }
}

/// Cosines and sines for every token of a batch.
pub struct RopeAngles<'a> {
    buf: ScratchBuf<'a>,
    tokens: usize,
    half: usize,
}

impl RopeAngles<'_> {
    /// Sets row `token` to `position` under the inverse frequencies `inv_freq` (`rotary_dim / 2` of them, radians
    /// a position).
    ///
    /// # Panics
    /// `token` or the number of frequencies is out of range.
    pub fn set(&mut self, token: usize, position: usize, inv_freq: &[f64]) {
        assert_eq!(inv_freq.len(), self.half, "one frequency per pair of dimensions");
        let (cos, sin) = self.buf.split_at_mut(self.tokens * self.half);
        let row = token * self.half..(token + 1) * self.half;
        for ((c, s), f) in cos[row.clone()].iter_mut().zip(&mut sin[row]).zip(inv_freq) {
            let angle = position as f64 * f;
            *c = angle.cos() as f32;
            *s = angle.sin() as f32;
        }
    }

    /// Tokens that angles were asked for.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The finished table, for any thread.
    pub(crate) fn table(&self) -> AngleTable<'_> {
        let (cos, sin) = self.buf.split_at(self.tokens * self.half);
        AngleTable {
            cos: MatRef::new(cos, self.tokens, self.half),
            sin: MatRef::new(sin, self.tokens, self.half),
        }
    }
}

/// Cosines and sines, `[tokens, rotary_dim / 2]` each.
#[derive(Clone, Copy)]
pub(crate) struct AngleTable<'a> {
    cos: MatRef<'a, f32>,
    sin: MatRef<'a, f32>,
}

impl AngleTable<'_> {
    /// Rotates the heads of `head_dim` columns in the columns `..rotated` of `tile`, whose row `i` is token `i`.
    pub(crate) fn rotate(
        &self,
        kernels: Kernels,
        head_dim: usize,
        rotated: usize,
        tile: &mut MatMut<'_, f32>,
    ) {
        for i in 0..tile.rows() {
            let heads = &mut tile.row_mut(i)[..rotated];
            kernels.rope_half(heads, head_dim, self.cos.row(i), self.sin.row(i));
        }
    }
}
