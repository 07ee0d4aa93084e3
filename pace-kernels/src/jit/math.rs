//! Element-wise functions as instructions: operation for operation what the AVX-512 tiers compute in
//! `generic::activation` and `generic::lanes`, so that the bits are the same.

use iced_x86::code_asm::AsmRegisterZmm;
use iced_x86::code_asm::registers::k::{k2, k3};

use super::assembler::{Assembler, Emit};
use crate::Activation;
use crate::generic::activation::{Gelu, GeluTanh};
use crate::generic::exp::{C, EXP_HIGH, EXP_LOW, LN_2_HI, LN_2_LO};

/// Predicates of `vcmpps`: ordered and quiet, as the portable comparisons are.
const LESS: u32 = 0x11;
const GREATER: u32 = 0x1e;
const UNORDERED: u32 = 3;
/// True for NaN, too.
const NOT_LESS: u32 = 5;

/// Rounding of `vrndscaleps`: to the nearest integer, without exceptions.
const TO_NEAREST: u32 = 8;

/// Vector registers that hold nothing at the moment.
pub(super) struct Temps {
    free: Vec<AsmRegisterZmm>,
}

impl Temps {
    pub(super) fn new(free: &[AsmRegisterZmm]) -> Self {
        Self { free: free.to_vec() }
    }

    /// # Panics
    /// All are in use: a fault of the generator, which every test of its function would show.
    pub(super) fn take(&mut self) -> AsmRegisterZmm {
        self.free.pop().expect("a function needs no more registers than the epilogue has")
    }

    pub(super) fn give(&mut self, register: AsmRegisterZmm) {
        self.free.push(register);
    }
}

/// x = act(x). Uses k2 and k3.
pub(super) fn activate(asm: &mut Assembler, act: Activation, x: AsmRegisterZmm, temps: &mut Temps) -> Emit {
    match act {
        Activation::Silu => {
            let u = temps.take();
            asm.vmovaps(u, x)?;
            times_sigmoid(asm, x, u, temps)
        }
        Activation::Gelu => gelu(asm, x, temps),
        Activation::GeluTanh => gelu_tanh(asm, x, temps),
        Activation::Relu => {
            let zero = asm.splat(0.0);
            asm.vcmpps(k2, x, zero, LESS)?;
            asm.vpxord(x.k2(), x, x)
        }
    }
}

/// The upper halves of the 32-bit lanes of x, rounded to the nearest bf16, in their lower halves.
pub(super) fn narrow_bf16(asm: &mut Assembler, x: AsmRegisterZmm, temps: &mut Temps) -> Emit {
    let (high, round) = (temps.take(), temps.take());
    asm.vcmpps(k2, x, x, UNORDERED)?;
    asm.vpsrld(high, x, 16)?;
    let (one, half, quiet) = (asm.splat_bits(1), asm.splat_bits(0x7fff), asm.splat_bits(0x40));
    asm.vpandd(round, high, one)?;
    asm.vpaddd(round, round, half)?;
    asm.vpaddd(x, x, round)?;
    asm.vpsrld(x, x, 16)?;
    asm.vpord(x.k2(), high, quiet)?;
    temps.give(high);
    temps.give(round);
    Ok(())
}

/// x = x / (1 + e^-u); u is given back.
fn times_sigmoid(asm: &mut Assembler, x: AsmRegisterZmm, u: AsmRegisterZmm, temps: &mut Temps) -> Emit {
    let zero = temps.take();
    asm.vpxord(zero, zero, zero)?;
    asm.vsubps(u, zero, u)?;
    temps.give(zero);
    exp(asm, u, temps)?;
    let one = asm.splat(1.0);
    asm.vaddps(u, u, one)?;
    asm.vdivps(x, x, u)?;
    temps.give(u);
    Ok(())
}

fn gelu_tanh(asm: &mut Assembler, x: AsmRegisterZmm, temps: &mut Temps) -> Emit {
    let (u, slope) = (temps.take(), temps.take());
    asm.vmulps(u, x, x)?;
    asm.load_splat(slope, GeluTanh::TWICE_SQRT_2_OVER_PI)?;
    let cubic = asm.splat(GeluTanh::TWICE_SQRT_2_OVER_PI * GeluTanh::CUBIC);
    asm.vfmadd231ps(slope, u, cubic)?;
    asm.vmulps(u, x, slope)?;
    temps.give(slope);
    times_sigmoid(asm, x, u, temps)
}

fn gelu(asm: &mut Assembler, x: AsmRegisterZmm, temps: &mut Temps) -> Emit {
    let a = temps.take();
    // k3: negative; a = |x|.
    let zero = asm.splat(0.0);
    asm.vcmpps(k3, x, zero, LESS)?;
    asm.vpxord(a, a, a)?;
    asm.vsubps(a, a, x)?;
    asm.vblendmps(a.k3(), x, a)?;
    let tail = gelu_tail(asm, a, temps)?;
    let phi = temps.take();
    // Outside: negative ? tail : 1 - tail.
    asm.load_splat(phi, 1.0)?;
    asm.vsubps(phi, phi, tail)?;
    asm.vmovaps(phi.k3(), tail)?;
    // Where a < 1: slope(x^2) x + 1/2.
    let (one, half) = (asm.splat(1.0), asm.splat(0.5));
    asm.vcmpps(k2, a, one, LESS)?;
    asm.vmulps(a, x, x)?;
    polynomial(asm, tail, &Gelu::CENTRE, a)?;
    asm.vfmadd213ps(tail, x, half)?;
    asm.vmovaps(phi.k2(), tail)?;
    asm.vmulps(x, x, phi)?;
    [a, tail, phi].into_iter().for_each(|register| temps.give(register));
    Ok(())
}

/// 1 - Phi(a) for a >= 0, in a register taken from `temps`.
fn gelu_tail(asm: &mut Assembler, a: AsmRegisterZmm, temps: &mut Temps) -> Emit<AsmRegisterZmm> {
    let (gauss, inverse, u) = (temps.take(), temps.take(), temps.take());
    let (cap, three, minus_half) = (asm.splat(Gelu::CAP), asm.splat(3.0), asm.splat(-0.5));
    asm.vmovaps(gauss, a)?;
    asm.vcmpps(k2, a, cap, GREATER)?;
    asm.load_splat(gauss.k2(), Gelu::CAP)?;
    asm.vaddps(u, gauss, three)?;
    asm.load_splat(inverse, 1.0)?;
    asm.vdivps(inverse, inverse, u)?;
    asm.vsubps(u, gauss, three)?;
    asm.vmulps(u, u, inverse)?;
    asm.vmulps(gauss, gauss, gauss)?;
    asm.vmulps(gauss, gauss, minus_half)?;
    exp(asm, gauss, temps)?;
    let tail = temps.take();
    polynomial(asm, tail, &Gelu::TAIL, u)?;
    asm.vmulps(tail, tail, inverse)?;
    asm.vmulps(tail, tail, gauss)?;
    [gauss, inverse, u].into_iter().for_each(|register| temps.give(register));
    Ok(tail)
}

/// p = c[0] + c[1] x + c[2] x^2 + ...
fn polynomial(asm: &mut Assembler, p: AsmRegisterZmm, c: &[f32], x: AsmRegisterZmm) -> Emit {
    let Some((last, rest)) = c.split_last() else { return Ok(()) };
    asm.load_splat(p, *last)?;
    for &coefficient in rest.iter().rev() {
        let coefficient = asm.splat(coefficient);
        asm.vfmadd213ps(p, x, coefficient)?;
    }
    Ok(())
}

/// x = e^x. Uses k2.
fn exp(asm: &mut Assembler, x: AsmRegisterZmm, temps: &mut Temps) -> Emit {
    let (r, n, p) = (temps.take(), temps.take(), temps.take());
    let (log2_e, ln_2_hi, ln_2_lo) =
        (asm.splat(std::f32::consts::LOG2_E), asm.splat(LN_2_HI), asm.splat(LN_2_LO));
    asm.load_splat(r, EXP_HIGH)?;
    asm.vminps(r, r, x)?;
    asm.vmulps(n, r, log2_e)?;
    asm.vrndscaleps(n, n, TO_NEAREST)?;
    asm.vfnmadd231ps(r, n, ln_2_hi)?;
    asm.vfnmadd231ps(r, n, ln_2_lo)?;

    let (r2, one, low) = (temps.take(), asm.splat(1.0), asm.splat(EXP_LOW));
    polynomial(asm, p, &C, r)?;
    asm.vmulps(r2, r, r)?;
    asm.vfmadd213ps(p, r2, r)?;
    asm.vaddps(p, p, one)?;
    asm.vcmpps(k2, x, low, NOT_LESS)?;
    asm.vscalefps(x.k2().z(), p, n)?;
    [r, n, p, r2].into_iter().for_each(|register| temps.give(register));
    Ok(())
}
