//! What kernels need of a tier beyond `pulp::Simd`: bf16 rows, and what it can do better than
//! the generic code.

use half::bf16;
use pulp::Simd;

use super::{exp, quantize, rotate};

/// Vectors of one tier. Each vector has at most [`MAX_LANES`] lanes.
pub(crate) trait Lanes: Simd {
    /// The first `F32_LANES` elements of `src`, which has at least as many.
    fn load_bf16(self, src: &[bf16]) -> Self::f32s;

    /// Rounds to the nearest bf16, ties to even, into the first `F32_LANES` elements of `dst`. NaN stays
    /// NaN. The same bits on every tier.
    fn store_bf16(self, x: Self::f32s, dst: &mut [bf16]);

    /// e^x, see [`exp::exp`].
    #[inline(always)]
    fn exp(self, x: Self::f32s) -> Self::f32s {
        exp::exp(self, x)
    }

    /// See [`quantize::group`].
    #[inline(always)]
    fn quantize_group<X: Stored>(self, src: &[X], values: &mut [i8]) -> (f32, i32) {
        quantize::group(src, values)
    }

    /// The same for a group of the usual size.
    #[inline(always)]
    fn quantize_64<X: Stored>(
        self,
        src: &[X; quantize::GROUP],
        values: &mut [i8; quantize::GROUP],
    ) -> (f32, i32) {
        quantize::group(src, values)
    }

    /// See [`rotate::block`].
    #[inline(always)]
    fn rotate_64(self, x: &mut [f32; rotate::BLOCK]) {
        rotate::block(x);
    }
}

/// Lanes of the widest tier.
const MAX_LANES: usize = 16;

/// An element type that rows are stored in, as vectors of f32.
pub(crate) trait Stored: bytemuck::Pod {
    /// The value, exactly.
    fn widen(self) -> f32;

    /// The first `F32_LANES` elements of `src`, which has at least as many.
    fn load<S: Lanes>(simd: S, src: &[Self]) -> S::f32s;

    /// All of `src`, which has fewer elements than a vector; the other lanes are 0.
    fn load_tail<S: Lanes>(simd: S, src: &[Self]) -> S::f32s;

    /// The inverse of [`load`](Self::load), rounded.
    fn store<S: Lanes>(simd: S, x: S::f32s, dst: &mut [Self]);

    /// The inverse of [`load_tail`](Self::load_tail), rounded.
    fn store_tail<S: Lanes>(simd: S, x: S::f32s, dst: &mut [Self]);
}

impl Stored for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<S: Lanes>(_: S, src: &[Self]) -> S::f32s {
        S::as_simd_f32s(src).0[0]
    }

    #[inline(always)]
    fn load_tail<S: Lanes>(simd: S, src: &[Self]) -> S::f32s {
        simd.partial_load_f32s(src)
    }

    #[inline(always)]
    fn store<S: Lanes>(_: S, x: S::f32s, dst: &mut [Self]) {
        S::as_mut_simd_f32s(dst).0[0] = x;
    }

    #[inline(always)]
    fn store_tail<S: Lanes>(simd: S, x: S::f32s, dst: &mut [Self]) {
        simd.partial_store_f32s(dst, x);
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn load<S: Lanes>(simd: S, src: &[Self]) -> S::f32s {
        simd.load_bf16(src)
    }

    #[inline(always)]
    fn load_tail<S: Lanes>(simd: S, src: &[Self]) -> S::f32s {
        let mut full = [Self::ZERO; MAX_LANES];
        full[..src.len()].copy_from_slice(src);
        simd.load_bf16(&full)
    }

    #[inline(always)]
    fn store<S: Lanes>(simd: S, x: S::f32s, dst: &mut [Self]) {
        simd.store_bf16(x, dst);
    }

    #[inline(always)]
    fn store_tail<S: Lanes>(simd: S, x: S::f32s, dst: &mut [Self]) {
        let mut full = [Self::ZERO; MAX_LANES];
        simd.store_bf16(x, &mut full);
        dst.copy_from_slice(&full[..dst.len()]);
    }
}
