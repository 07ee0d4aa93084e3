//! Normalisation of rows, with what stands next to it: the residual sum before, the quantisation after.

use crate::generic::quantize::Out;
use crate::quantize::check_groups;
use crate::{ActMut, ActRef, DType, Kernels, MatMut, MatRef};

/// How rows are normalised.
///
/// | made by | row |
/// |---|---|
/// | [`rms`](Self::rms) | x / sqrt(mean(x^2) + eps) * weight |
/// | [`layer`](Self::layer) | (x - mean) / sqrt(variance + eps) * weight + bias, with the variance of the population |
///
/// Statistics are f32 in the tier's lanes, in one order that depends on nothing but the row's length;
/// the root and the quotient are exactly rounded. The relative error of RMSNorm against f64 is at most
/// (n / 64 + 8) * 2^-24 for rows of n elements and 16 lanes with four accumulators. Then the result is
/// rounded to the type of the output, once.
///
/// Sources: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467; Ba, Kiros and
/// Hinton, "Layer Normalization", arXiv 1607.06450.
#[derive(Clone, Copy, Debug)]
pub struct RowNorm<'a> {
    pub(crate) kind: NormKind,
    pub(crate) weight: &'a [f32],
    /// What is added to each weight.
    pub(crate) weight_offset: f32,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) eps: f32,
}

/// What the statistics of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormKind {
    Rms,
    Layer,
}

impl<'a> RowNorm<'a> {
    /// RMSNorm of rows of `weight.len()` elements.
    pub const fn rms(weight: &'a [f32], eps: f32) -> Self {
        Self { kind: NormKind::Rms, weight, weight_offset: 0.0, bias: None, eps }
    }

    /// LayerNorm of rows of `weight.len()` elements.
    ///
    /// # Panics
    /// If there is a bias of another length.
    pub const fn layer(weight: &'a [f32], bias: Option<&'a [f32]>, eps: f32) -> Self {
        if let Some(bias) = bias {
            assert!(bias.len() == weight.len(), "lengths of weight and bias");
        }
        Self { kind: NormKind::Layer, weight, weight_offset: 0.0, bias, eps }
    }

    /// The same with weight + 1 in place of weight, as Gemma stores it.
    #[must_use]
    pub const fn weight_plus_one(self) -> Self {
        Self { weight_offset: 1.0, ..self }
    }

    /// Elements of a row.
    pub const fn cols(&self) -> usize {
        self.weight.len()
    }
}

impl Kernels {
    /// out = norm(x), row by row; both are `[rows, norm.cols()]`.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn norm(&self, norm: &RowNorm<'_>, x: ActRef<'_>, out: ActMut<'_>) {
        check(norm, x, out.as_ref());
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().norm)(norm, x, out) }
    }

    /// x += r, rounded to the type of x, then out = norm(x), row by row; all are `[rows, norm.cols()]`.
    /// The same bits as the two steps by themselves.
    ///
    /// # Panics
    /// If the shapes do not match, or `x` and `r` differ in type.
    pub fn add_norm(&self, norm: &RowNorm<'_>, x: ActMut<'_>, r: ActRef<'_>, out: ActMut<'_>) {
        check(norm, x.as_ref(), out.as_ref());
        check(norm, r, out.as_ref());
        assert_eq!(x.dtype(), r.dtype(), "types of the residual stream and of what is added to it");
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().add_norm)(norm, x, r, out) }
    }

    /// norm(x) of one row, rounded to `dtype` and quantised as by
    /// [`quantize_groups`](Self::quantize_groups), with the same bits as the two steps by themselves.
    /// `scratch` holds a row.
    ///
    /// # Panics
    /// If `x` is not one row of `norm.cols()` elements, `dtype` is f16, `scratch` is shorter than the
    /// row, or as [`quantize_groups`](Self::quantize_groups).
    pub fn norm_quantize(
        &self,
        norm: &RowNorm<'_>,
        x: ActRef<'_>,
        dtype: DType,
        group: usize,
        scratch: &mut [f32],
        values: &mut [i8],
        scales: &mut [f32],
        sums: &mut [i32],
    ) {
        assert!(x.rows() == 1 && x.cols() == norm.cols(), "a row of {} is {x:?}", norm.cols());
        assert!(dtype != DType::F16, "activations are f32 or bf16, not f16");
        check_groups(x.cols(), group, values, scales, sums);
        assert!(scratch.len() >= x.cols(), "scratch of {} for a row of {}", scratch.len(), x.cols());
        let scratch = &mut scratch[..x.cols()];
        let out = Out { group, values, scales, sums };
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().norm_quantize)(norm, x, dtype, scratch, out) }
    }

    /// out = x / sqrt(mean(x^2) + eps) * weight for one row, see [`RowNorm`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.norm(&RowNorm::rms(weight, eps), row(x), row_mut(out));
    }

    /// out = (x - mean) / sqrt(variance + eps) * weight + bias for one row, see [`RowNorm`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn layer_norm(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
        self.norm(&RowNorm::layer(weight, bias, eps), row(x), row_mut(out));
    }
}

fn row(x: &[f32]) -> ActRef<'_> {
    ActRef::F32(MatRef::new(x, 1, x.len()))
}

fn row_mut(x: &mut [f32]) -> ActMut<'_> {
    let len = x.len();
    ActMut::F32(MatMut::new(x, 1, len))
}

fn check(norm: &RowNorm<'_>, x: ActRef<'_>, out: ActRef<'_>) {
    assert!(
        x.cols() == norm.cols() && out.cols() == norm.cols() && x.rows() == out.rows(),
        "lengths of rows and weight: {}, {} and {}; {} and {} rows",
        x.cols(),
        out.cols(),
        norm.cols(),
        x.rows(),
        out.rows()
    );
}
