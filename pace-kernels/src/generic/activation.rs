//! Activation functions over vectors, one type for each.

use super::lanes::Lanes;
use crate::Activation;

/// out = act(gate) * up.
#[inline(always)]
pub(crate) fn act_mul<S: Lanes>(simd: S, kind: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match kind {
        Activation::Silu => map_mul(simd, Silu, gate, up, out),
        Activation::Gelu => map_mul(simd, Gelu, gate, up, out),
        Activation::GeluTanh => map_mul(simd, GeluTanh, gate, up, out),
        Activation::Relu => map_mul(simd, Relu, gate, up, out),
    }
}

/// x = act(x).
#[inline(always)]
pub(crate) fn activate<S: Lanes>(simd: S, kind: Activation, x: &mut [f32]) {
    match kind {
        Activation::Silu => map(simd, Silu, x),
        Activation::Gelu => map(simd, Gelu, x),
        Activation::GeluTanh => map(simd, GeluTanh, x),
        Activation::Relu => map(simd, Relu, x),
    }
}

trait Unary: Copy {
    fn apply<S: Lanes>(self, simd: S, x: S::f32s) -> S::f32s;
}

#[inline(always)]
fn map<S: Lanes>(simd: S, f: impl Unary, x: &mut [f32]) {
    let (head, tail) = S::as_mut_simd_f32s(x);
    for x in head {
        *x = f.apply(simd, *x);
    }
    if !tail.is_empty() {
        let y = f.apply(simd, simd.partial_load_f32s(tail));
        simd.partial_store_f32s(tail, y);
    }
}

#[inline(always)]
fn map_mul<S: Lanes>(simd: S, f: impl Unary, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let (gates, gate_tail) = S::as_simd_f32s(gate);
    let (ups, up_tail) = S::as_simd_f32s(up);
    let (outs, out_tail) = S::as_mut_simd_f32s(out);
    for ((out, &gate), &up) in outs.iter_mut().zip(gates).zip(ups) {
        *out = simd.mul_f32s(f.apply(simd, gate), up);
    }
    if !out_tail.is_empty() {
        let act = f.apply(simd, simd.partial_load_f32s(gate_tail));
        simd.partial_store_f32s(out_tail, simd.mul_f32s(act, simd.partial_load_f32s(up_tail)));
    }
}

#[derive(Clone, Copy)]
struct Silu;

impl Unary for Silu {
    #[inline(always)]
    fn apply<S: Lanes>(self, simd: S, x: S::f32s) -> S::f32s {
        times_sigmoid(simd, x, x)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct GeluTanh;

impl GeluTanh {
    pub(crate) const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    pub(crate) const CUBIC: f32 = 0.044_715;
}

impl Unary for GeluTanh {
    /// (1 + tanh u) / 2 = sigmoid(2u), with u = sqrt(2 / pi) (x + 0.044715 x^3).
    #[inline(always)]
    fn apply<S: Lanes>(self, simd: S, x: S::f32s) -> S::f32s {
        let x2 = simd.mul_f32s(x, x);
        let slope = simd.mul_add_e_f32s(
            x2,
            simd.splat_f32s(Self::TWICE_SQRT_2_OVER_PI * Self::CUBIC),
            simd.splat_f32s(Self::TWICE_SQRT_2_OVER_PI),
        );
        times_sigmoid(simd, x, simd.mul_f32s(x, slope))
    }
}

#[derive(Clone, Copy)]
struct Relu;

impl Unary for Relu {
    /// NaN stays NaN.
    #[inline(always)]
    fn apply<S: Lanes>(self, simd: S, x: S::f32s) -> S::f32s {
        let zero = simd.splat_f32s(0.0);
        simd.select_f32s(simd.less_than_f32s(x, zero), zero, x)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Gelu;

impl Gelu {
    /// (Phi(x) - 1/2) / x as a polynomial in x^2 on |x| <= 1, where Phi is the normal distribution
    /// function. Fitted here by Lawson's iteration: error of Phi 7.6e-9.
    pub(crate) const CENTRE: [f32; 5] =
        [0.398_942_2, -0.066_488_7, 0.009_964_033, -0.001_165_147_4, 0.000_092_366_805];

    /// (a + 3) (1 - Phi(a)) e^(a^2 / 2) as a polynomial in (a - 3) / (a + 3), a >= 0. The map takes
    /// [0, inf) to [-1, 1), where the function is smooth, so few and small coefficients do. Fitted
    /// likewise: relative error 8.5e-8.
    pub(crate) const TAIL: [f32; 10] = [
        0.729_083_8,
        -0.509_331_9,
        0.230_014_34,
        -0.047_263_075,
        -0.010_432_926,
        0.006_966_313,
        0.000_933_427_14,
        -0.001_019_729_7,
        -0.000_127_526_85,
        0.000_119_581_94,
    ];

    /// Beyond, 1 - Phi is 0.
    pub(crate) const CAP: f32 = 20.0;

    /// 1 - Phi(a) for a >= 0.
    #[inline(always)]
    fn tail<S: Lanes>(simd: S, a: S::f32s) -> S::f32s {
        // The cap keeps infinity out of the quotient. NaN passes.
        let cap = simd.splat_f32s(Self::CAP);
        let a = simd.select_f32s(simd.greater_than_f32s(a, cap), cap, a);
        let three = simd.splat_f32s(3.0);
        let inverse = simd.div_f32s(simd.splat_f32s(1.0), simd.add_f32s(a, three));
        let u = simd.mul_f32s(simd.sub_f32s(a, three), inverse);
        let gauss = simd.exp(simd.mul_f32s(simd.mul_f32s(a, a), simd.splat_f32s(-0.5)));
        simd.mul_f32s(simd.mul_f32s(polynomial(simd, &Self::TAIL, u), inverse), gauss)
    }
}

impl Unary for Gelu {
    /// x Phi(x), where Phi(x) = (1 + erf(x / sqrt 2)) / 2. Outside of |x| <= 1 the tail 1 - Phi(|x|) is
    /// computed first, so that negative x lose nothing by cancellation.
    #[inline(always)]
    fn apply<S: Lanes>(self, simd: S, x: S::f32s) -> S::f32s {
        let one = simd.splat_f32s(1.0);
        let negative = simd.less_than_f32s(x, simd.splat_f32s(0.0));
        let a = simd.select_f32s(negative, simd.sub_f32s(simd.splat_f32s(0.0), x), x);

        let tail = Self::tail(simd, a);
        let outer = simd.select_f32s(negative, tail, simd.sub_f32s(one, tail));
        let slope = polynomial(simd, &Self::CENTRE, simd.mul_f32s(x, x));
        let inner = simd.mul_add_e_f32s(slope, x, simd.splat_f32s(0.5));
        let phi = simd.select_f32s(simd.less_than_f32s(a, one), inner, outer);
        simd.mul_f32s(x, phi)
    }
}

/// c[0] + c[1] x + c[2] x^2 + ...
#[inline(always)]
fn polynomial<S: Lanes, const N: usize>(simd: S, c: &[f32; N], x: S::f32s) -> S::f32s {
    let mut p = simd.splat_f32s(c[N - 1]);
    for i in (0..N - 1).rev() {
        p = simd.mul_add_e_f32s(p, x, simd.splat_f32s(c[i]));
    }
    p
}

/// x / (1 + e^-u). For large -u the divisor is infinite and the result 0.
#[inline(always)]
fn times_sigmoid<S: Lanes>(simd: S, x: S::f32s, u: S::f32s) -> S::f32s {
    let e = simd.exp(simd.sub_f32s(simd.splat_f32s(0.0), u));
    simd.div_f32s(x, simd.add_f32s(simd.splat_f32s(1.0), e))
}
