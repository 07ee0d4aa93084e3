//! [`Rope`]: rotary position embedding, half-split as in HF's Llama.

use pace_kernels::{ActMut, DType, Kernels, MatRef, ScratchBuf};

use crate::self_test::{Mismatch, Random, Sample, SelfTest};
use crate::{Backend, BuildCx, Choice, MClass, OpCx, OpDType, OpError, OpShape, Operator};

/// Builds the angles of a batch; the projection that owns q and k applies them before it rounds.
///
/// Angles are built in f64: a product rounded to f32 is off by 5e-4 at position 8192 already.
/// Source: Su et al. 2021, "RoFormer".
///
/// NATIVE rotates pair by pair as the formula says, TPP by vectors; both in f32.
#[derive(Debug)]
pub struct Rope {
    rotary_dim: usize,
    dtype: OpDType,
    backend: Backend,
}

impl Rope {
    /// RoPE over the first `rotary_dim` (even) dimensions of each head of activations of type `dtype`.
    ///
    /// # Errors
    /// The operator has no such backend.
    pub fn new(
        build: &BuildCx,
        rotary_dim: usize,
        dtype: DType,
        choice: impl Into<Choice>,
    ) -> Result<Self, OpError> {
        let choice = build.resolve(OpShape::row(Operator::Rope, dtype.into(), rotary_dim), choice.into())?;
        Ok(Self { rotary_dim, dtype: dtype.into(), backend: choice.of(MClass::One) })
    }

    /// How pairs are turned.
    pub(crate) const fn backend(&self) -> Backend {
        self.backend
    }

    /// Space for the angles of `tokens` tokens.
    pub fn angles<'a>(&self, cx: &OpCx<'a>, tokens: usize) -> RopeAngles<'a> {
        let half = self.rotary_dim / 2;
        RopeAngles { buf: cx.scratch.take(2 * tokens * half), tokens, half, backend: self.backend }
    }
}

impl SelfTest for Rope {
    fn shape(&self) -> OpShape {
        OpShape::row(Operator::Rope, self.dtype, self.rotary_dim)
    }

    fn self_test(&self, cx: &OpCx<'_>) -> Result<(), Mismatch> {
        if self.backend == Backend::Native {
            return Ok(());
        }
        let (sample, rotation) = (Sample::new(OpDType::F32), RotationSample::new(self.rotary_dim));
        let run = |backend| {
            let mut rows = sample.rows(1, self.rotary_dim);
            rotation.rotate(cx, backend, rows.rows_mut(1));
            rows
        };
        sample.compare(self.backend, &run(self.backend), &run(Backend::Native), 1)
    }

    fn set_native(&mut self) {
        self.backend = Backend::Native;
    }
}

/// Cosines and sines for every token of a batch.
pub struct RopeAngles<'a> {
    buf: ScratchBuf<'a>,
    tokens: usize,
    half: usize,
    backend: Backend,
}

impl<'a> RopeAngles<'a> {
    /// Random angles for any number of tokens that a self-test has.
    pub(crate) fn sample(cx: &OpCx<'a>, rotary_dim: usize) -> Self {
        let RotationSample { cos_sin, half } = RotationSample::new(rotary_dim);
        let mut buf = cx.scratch.take(cos_sin.len());
        buf.copy_from_slice(&cos_sin);
        Self { buf, tokens: SAMPLE_TOKENS, half, backend: Backend::Tpp }
    }

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
            backend: self.backend,
        }
    }
}

/// Tokens that random angles are made for.
const SAMPLE_TOKENS: usize = 32;

/// Random angles, for tests and measurements.
pub(crate) struct RotationSample {
    /// Cosines, then sines, `[SAMPLE_TOKENS, half]` each.
    cos_sin: Vec<f32>,
    half: usize,
}

impl RotationSample {
    pub(crate) fn new(rotary_dim: usize) -> Self {
        let (mut random, half) = (Random(0x5851_f42d_4c95_7f2d), rotary_dim / 2);
        let angles: Vec<f32> = (0..SAMPLE_TOKENS * half).map(|_| 3.0 * random.next()).collect();
        let cos_sin = angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin())).collect();
        Self { cos_sin, half }
    }

    /// Rotates heads of f32, one a row.
    pub(crate) fn rotate(&self, cx: &OpCx<'_>, backend: Backend, heads: ActMut<'_>) {
        let ActMut::F32(mut heads) = heads else { return };
        let (cos, sin) = self.cos_sin.split_at(self.cos_sin.len() / 2);
        let view = |angles| MatRef::new(angles, SAMPLE_TOKENS, self.half);
        let (table, head_dim) = (AngleTable { cos: view(cos), sin: view(sin), backend }, heads.cols());
        for i in 0..heads.rows() {
            table.rotate_row(cx.kernels, i % SAMPLE_TOKENS, head_dim, heads.row_mut(i));
        }
    }
}

/// Cosines and sines, `[tokens, rotary_dim / 2]` each, and how pairs are turned by them.
#[derive(Clone, Copy)]
pub(crate) struct AngleTable<'a> {
    cos: MatRef<'a, f32>,
    sin: MatRef<'a, f32>,
    backend: Backend,
}

impl AngleTable<'_> {
    /// Rotates the heads in a row by the angles of token `token`.
    pub(crate) fn rotate_row(&self, kernels: Kernels, token: usize, head_dim: usize, heads: &mut [f32]) {
        let (cos, sin) = (self.cos.row(token), self.sin.row(token));
        if self.backend != Backend::Native {
            return kernels.rope_half(heads, head_dim, cos, sin);
        }
        for head in heads.chunks_exact_mut(head_dim) {
            for (i, (c, s)) in cos.iter().zip(sin).enumerate() {
                let (x, y) = (head[i], head[i + cos.len()]);
                head[i] = x * c - y * s;
                head[i + cos.len()] = y * c + x * s;
            }
        }
    }
}
