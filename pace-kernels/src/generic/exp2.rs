//! 2^x for vectors.

use pulp::Simd;

/// Below this, the result is 0: the smallest normal number is 2^-126.
const LOW: f32 = -126.0;

/// 1.5 * 2^23: adding it rounds to an integer, which then sits in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;

/// (2^f - 1) / f on |f| <= 1/2, fitted here for the least relative error of 2^f: 1.6e-7 in f32.
#[allow(clippy::approx_constant)] // Next to ln 2, as it must be, but not equal.
const C: [f32; 5] = [0.693_147, 0.240_222_42, 0.055_507_336, 0.009_671_513, 0.001_326_472_7];

/// As `C`, of a degree less: 2.9e-6. Enough for probabilities that are rounded to bf16.
pub(crate) const C_FAST: [f32; 4] = [0.693_124_2, 0.240_241, 0.055_906_426, 0.009_582_853];

/// 2^x for x <= 127, relative error at most 2e-7.
///
/// 2^0 is exactly 1, 2^x is 0 below -126, NaN stays NaN. Scheme: x = n + f, 2^x = 2^n p(f), with 2^n put
/// together from its exponent bits.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let rounded = simd.add_f32s(x, simd.splat_f32s(ROUND));
    let f = simd.sub_f32s(x, simd.sub_f32s(rounded, simd.splat_f32s(ROUND)));
    let mut p = simd.splat_f32s(C[4]);
    for i in (0..4).rev() {
        p = simd.mul_add_e_f32s(p, f, simd.splat_f32s(C[i]));
    }
    p = simd.mul_add_e_f32s(p, f, simd.splat_f32s(1.0));
    let bits = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    let power = simd.transmute_f32s_u32s(simd.add_u32s(bits, simd.splat_u32s(127 << 23)));
    let low = simd.less_than_f32s(x, simd.splat_f32s(LOW));
    simd.select_f32s(low, simd.splat_f32s(0.0), simd.mul_f32s(p, power))
}
