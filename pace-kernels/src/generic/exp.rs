//! e^x for vectors.

use pulp::Simd;

/// Below this, the result is 0: about 1e-38, the smallest normal number.
pub(crate) const EXP_LOW: f32 = -86.9;
/// Above this, the result is infinite. (It is already above ln(f32::MAX) = 88.72.)
pub(crate) const EXP_HIGH: f32 = 89.0;

/// ln 2 in two parts; the first one has few bits, so that its product with an exponent is exact.
pub(crate) const LN_2_HI: f32 = 0.693_145_75;
pub(crate) const LN_2_LO: f32 = 1.428_606_8e-6;

/// 1.5 * 2^23: adding it rounds to an integer, which then sits in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;

/// (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2, fitted here for the least relative error of e^r: 1.1e-7.
pub(crate) const C: [f32; 4] = [0.499_992_3, 0.166_671_16, 0.041_890_56, 0.008_312_486];

/// e^x, relative error at most 3e-7.
///
/// e^0 is exactly 1, e^x is 0 below -86.9 and infinite above 89, NaN stays NaN: no input gives
/// another NaN. Scheme: x = n ln 2 + r, e^x = 2^n (1 + r + r^2 p(r)), with 2^n put together from
/// its exponent bits.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let rounded = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), simd.splat_f32s(ROUND));
    let n = simd.sub_f32s(rounded, simd.splat_f32s(ROUND));
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN_2_HI), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN_2_LO), r);

    let p = simd.mul_add_e_f32s(simd.splat_f32s(C[3]), r, simd.splat_f32s(C[2]));
    let p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(C[1]));
    let p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(C[0]));
    let r2 = simd.mul_f32s(r, r);
    let p = simd.add_f32s(simd.splat_f32s(1.0), simd.mul_add_e_f32s(p, r2, r));

    // n reaches 128, one more than an exponent can say: scale by 2^(n-1), then by 2.
    let bits = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    let half_scale = simd.transmute_f32s_u32s(simd.add_u32s(bits, simd.splat_u32s(126 << 23)));
    let e = simd.mul_f32s(simd.mul_f32s(p, half_scale), simd.splat_f32s(2.0));

    let low = simd.less_than_f32s(x, simd.splat_f32s(EXP_LOW));
    let high = simd.greater_than_f32s(x, simd.splat_f32s(EXP_HIGH));
    let e = simd.select_f32s(low, simd.splat_f32s(0.0), e);
    simd.select_f32s(high, simd.splat_f32s(f32::INFINITY), e)
}
