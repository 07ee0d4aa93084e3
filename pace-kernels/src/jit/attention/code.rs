//! The instructions of the attention step.
//!
//! ```text
//! for 4 rows (and a rest, if the group leaves one):
//!   scores   4 rows x 64 tokens (16, 32 or 48 where no more are seen): head_dim / 2 steps, unrolled
//!            softcap; tokens that are not seen to -inf; softmax on the same 16 registers; P as bf16
//! for 64 dimensions, the last group as narrow as head_dim asks:
//!   for 4 rows: O = O shrink + P V over the pairs of tokens that the 4 rows see
//! ```
//!
//! Registers: scores and values 16 accumulators (zmm0-15), 4 for a line of the block (zmm16-19), 2 for
//! broadcasts (zmm20-21); the softmax uses zmm16-28 as temporaries. What is known when the code is
//! made: strides, trip counts, which rests exist, softcap or not. The operations and their order are
//! those of the intrinsics, so the bits are too.

use std::mem::offset_of;

use half::bf16;
use iced_x86::code_asm::registers::gpr64::{
    r8, r9, r10, r11, r12, r13, r14, rax, rbp, rbx, rcx, rdi, rdx, rsi,
};
use iced_x86::code_asm::registers::k::k1;
use iced_x86::code_asm::{
    AsmMemoryOperand, AsmRegister64, AsmRegisterZmm, dword_ptr, qword_ptr, word_ptr, xmmword_ptr, zmmword_ptr,
};

use super::super::assembler::{Assembler, Code, Emit, XMM, ZMM};
use super::super::math;
use super::{Args, AttentionKey, Scores};
use crate::KV_BLOCK;
use crate::attention::SUM_LANES;

/// Steps of a loop in one trip.
const UNROLL: usize = 8;

/// Bytes of a row of P, of a row of sums, and of a line of keys.
const P_ROW: usize = KV_BLOCK * size_of::<f32>();
const L_ROW: usize = SUM_LANES * size_of::<f32>();
const KEY_LINE: usize = KV_BLOCK * 2 * size_of::<bf16>();

/// What scores are still to be multiplied by.
const FACTOR: AsmRegisterZmm = ZMM[28];

/// A vector that holds a score or a value of row r.
fn at(r: usize, v: usize) -> AsmRegisterZmm {
    ZMM[4 * r + v]
}

/// The code of a step: `extern "sysv64" fn(*const Args)`.
pub(in crate::jit) fn generate(key: &AttentionKey) -> Emit<Code> {
    let mut asm = Assembler::new()?;
    asm.enter()?;
    load(&mut asm, &[(rax, offset_of!(Args, q)), (r8, offset_of!(Args, m)), (r9, offset_of!(Args, l))])?;
    load(
        &mut asm,
        &[(r10, offset_of!(Args, p)), (r11, offset_of!(Args, shrink)), (rbx, offset_of!(Args, seen))],
    )?;
    load(&mut asm, &[(rdx, offset_of!(Args, block)), (r14, offset_of!(Args, pairs))])?;
    each_rows(&mut asm, key, |asm, rows| scores(asm, key, rows))?;
    for start in (0..key.width()).step_by(64) {
        load(
            &mut asm,
            &[(rax, offset_of!(Args, p)), (r8, offset_of!(Args, o)), (r9, offset_of!(Args, shrink))],
        )?;
        load(&mut asm, &[(r10, offset_of!(Args, pairs)), (rdx, offset_of!(Args, block))])?;
        asm.add(r8, (4 * start) as i32)?;
        asm.add(rdx, (2 * KV_BLOCK * (key.head_dim + start)) as i32)?;
        let vectors = (key.width() - start).min(64) / 16;
        each_rows(&mut asm, key, |asm, rows| values(asm, key, rows, vectors))?;
    }
    asm.leave()?;
    asm.finish()
}

fn load(asm: &mut Assembler, registers: &[(AsmRegister64, usize)]) -> Emit {
    registers.iter().try_for_each(|&(register, offset)| asm.mov(register, qword_ptr(rdi + offset)))
}

/// Emits `body` for four rows in a loop, and for each rest that the group can leave. Uses r12.
fn each_rows(
    asm: &mut Assembler,
    key: &AttentionKey,
    mut body: impl FnMut(&mut Assembler, usize) -> Emit,
) -> Emit {
    let (mut top, mut rest) = (asm.create_label(), asm.create_label());
    asm.mov(r12, qword_ptr(rdi + offset_of!(Args, fours)))?;
    asm.test(r12, r12)?;
    asm.jz(rest)?;
    asm.set_label(&mut top)?;
    body(asm, 4)?;
    asm.dec(r12)?;
    asm.jnz(top)?;
    asm.set_label(&mut rest)?;
    asm.mov(r12, qword_ptr(rdi + offset_of!(Args, rest)))?;
    for rows in key.rests() {
        let mut other = asm.create_label();
        asm.cmp(r12, rows as i32)?;
        asm.jne(other)?;
        body(asm, rows)?;
        asm.set_label(&mut other)?;
        asm.nop()?;
    }
    Ok(())
}

/// The probabilities of some rows, and moves every address behind them. rax: queries, rdx: keys, r8: m,
/// r9: l, r10: P, r11: shrink, rbx: what is seen, r14: pairs. Uses rcx, rsi, r13, rbp.
fn scores(asm: &mut Assembler, key: &AttentionKey, rows: usize) -> Emit {
    dots(asm, key, rows)?;
    let (inner, cap) = (ZMM[16], ZMM[17]);
    asm.vbroadcastss(inner, dword_ptr(rdi + offset_of!(Args, inner)))?;
    asm.vbroadcastss(cap, dword_ptr(rdi + offset_of!(Args, cap)))?;
    for x in (0..rows).flat_map(|r| (0..4).map(move |v| at(r, v))) {
        if key.scores != Scores::Scaled {
            asm.vmulps(x, x, inner)?;
        }
        if key.scores == Scores::Capped {
            capped(asm, x, cap)?;
        }
    }
    mask(asm, rows)?;
    softmax(asm, rows)?;
    asm.add(rax, (rows * key.head_dim * size_of::<bf16>()) as i32)?;
    asm.add(r8, (4 * rows) as i32)?;
    asm.add(r9, (L_ROW * rows) as i32)?;
    asm.add(r10, (P_ROW * rows) as i32)?;
    asm.add(r11, (4 * rows) as i32)?;
    asm.add(r14, size_of::<[usize; 2]>() as i32)
}

/// q K^T of some rows with the block's tokens, up to the vector with the last one that they see.
fn dots(asm: &mut Assembler, key: &AttentionKey, rows: usize) -> Emit {
    for x in &ZMM[..4 * rows] {
        asm.vpxord(*x, *x, *x)?;
    }
    // The end of the pairs that are seen, 8 to a vector.
    asm.mov(rbp, qword_ptr(r14))?;
    asm.add(rbp, qword_ptr(r14 + 8))?;
    let mut done = asm.create_label();
    for vectors in 1..4 {
        let mut more = asm.create_label();
        asm.cmp(rbp, 8 * vectors as i32)?;
        asm.ja(more)?;
        dots_of(asm, key, rows, vectors)?;
        asm.jmp(done)?;
        asm.set_label(&mut more)?;
    }
    dots_of(asm, key, rows, 4)?;
    asm.set_label(&mut done)
}

/// As `dots`, for the first tokens only.
fn dots_of(asm: &mut Assembler, key: &AttentionKey, rows: usize, vectors: usize) -> Emit {
    asm.mov(rsi, rdx)?;
    asm.mov(r13, rax)?;
    let row_bytes = key.head_dim * size_of::<bf16>();
    let steps = |asm: &mut Assembler, count: usize| -> Emit {
        for step in 0..count {
            let q = |r: usize| dword_ptr(r13 + (r * row_bytes + 4 * step));
            products(asm, rows, vectors, rsi + KEY_LINE * step, q)?;
        }
        asm.add(rsi, (KEY_LINE * count) as i32)?;
        asm.add(r13, (4 * count) as i32)
    };
    let (trips, rest) = (key.head_dim / 2 / UNROLL, key.head_dim / 2 % UNROLL);
    asm.repeat(rcx, trips, |asm| steps(asm, UNROLL))?;
    if rest > 0 { steps(asm, rest) } else { Ok(()) }
}

/// acc\[r\]\[v\] += line\[v\] . scalar(r), for a line of the block at `line`.
fn products(
    asm: &mut Assembler,
    rows: usize,
    vectors: usize,
    line: AsmMemoryOperand,
    scalar: impl Fn(usize) -> AsmMemoryOperand,
) -> Emit {
    for v in 0..vectors {
        asm.vmovups(ZMM[16 + v], zmmword_ptr(line + 64 * v))?;
    }
    for r in 0..rows {
        let pair = ZMM[20 + r % 2];
        asm.vpbroadcastd(pair, scalar(r))?;
        for v in 0..vectors {
            asm.vdpbf16ps(at(r, v), ZMM[16 + v], pair)?;
        }
    }
    Ok(())
}

/// x = cap * tanh(x), tanh |x| = (1 - e) / (1 + e) with e = e^(-2 |x|).
fn capped(asm: &mut Assembler, x: AsmRegisterZmm, cap: AsmRegisterZmm) -> Emit {
    let [e, one, t0, t1] = [ZMM[18], ZMM[19], ZMM[20], ZMM[21]];
    let (magnitude, sign) = (asm.splat_bits(0x7fff_ffff), asm.splat_bits(0x8000_0000));
    let minus_two_log2_e = asm.splat(-2.0 * std::f32::consts::LOG2_E);
    asm.vandps(e, x, magnitude)?;
    asm.vmulps(e, e, minus_two_log2_e)?;
    math::exp2(asm, e, t0, t1)?;
    asm.load_splat(one, 1.0)?;
    asm.vsubps(t0, one, e)?;
    asm.vaddps(t1, one, e)?;
    asm.vdivps(t0, t0, t1)?;
    asm.vmulps(t0, t0, cap)?;
    asm.vandps(x, x, sign)?;
    asm.vorps(x, t0, x)
}

/// Scores of tokens that are not seen become -inf.
fn mask(asm: &mut Assembler, rows: usize) -> Emit {
    let mut all_seen = asm.create_label();
    asm.test(rbx, rbx)?;
    asm.jz(all_seen)?;
    let hidden = ZMM[16];
    asm.load_splat(hidden, f32::NEG_INFINITY)?;
    for (r, v) in (0..rows).flat_map(|r| (0..4).map(move |v| (r, v))) {
        asm.kmovw(k1, word_ptr(rbx + (8 * r + 2 * v)))?;
        asm.vblendmps(at(r, v).k1(), hidden, at(r, v))?;
    }
    asm.add(rbx, (8 * rows) as i32)?;
    asm.set_label(&mut all_seen)?;
    asm.nop()
}

/// From scores / factor to P, and the rows' maxima, sums and factors.
fn softmax(asm: &mut Assembler, rows: usize) -> Emit {
    let (old, new, shrink, max) = (ZMM[16], ZMM[17], ZMM[19], ZMM[23]);
    asm.vbroadcastss(FACTOR, dword_ptr(rdi + offset_of!(Args, factor)))?;
    row_maxima(asm, rows)?;
    asm.vmulps(max, max, FACTOR)?;
    // Row r's numbers are in lanes 4 r to 4 r + 3.
    load_rows(asm, rows, 16, r8 + 0)?;
    let spread = asm.table([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]);
    asm.vmovups(ZMM[18], spread)?;
    asm.vpermps(old, ZMM[18], old)?;
    asm.vmaxps(new, old, max)?;
    asm.vsubps(shrink, old, new)?;
    math::exp2(asm, shrink, ZMM[20], ZMM[21])?;
    let gather = asm.table([0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    asm.vmovups(ZMM[18], gather)?;
    for (from, to) in [(new, r8 + 0), (shrink, r11 + 0)] {
        asm.vpermps(ZMM[20], ZMM[18], from)?;
        store_rows(asm, rows, 20, to)?;
    }
    (0..rows).try_for_each(|r| probabilities(asm, r))
}

/// Up to 4 numbers, one for each row.
fn load_rows(asm: &mut Assembler, rows: usize, to: usize, from: AsmMemoryOperand) -> Emit {
    if rows == 4 {
        return asm.vmovups(XMM[to], xmmword_ptr(from));
    }
    asm.mov(r13, (1u64 << rows) - 1)?;
    asm.kmovq(k1, r13)?;
    asm.vmovups(XMM[to].k1().z(), xmmword_ptr(from))
}

/// The inverse; k1 is as `load_rows` left it.
fn store_rows(asm: &mut Assembler, rows: usize, from: usize, to: AsmMemoryOperand) -> Emit {
    let to = xmmword_ptr(to);
    asm.vmovups(if rows == 4 { to } else { to.k1() }, XMM[from])
}

/// zmm23: the largest score of row r in lanes 4 r to 4 r + 3.
fn row_maxima(asm: &mut Assembler, rows: usize) -> Emit {
    let [t0, t1, t2, t3] = [ZMM[21], ZMM[22], ZMM[23], ZMM[24]];
    for r in 0..4 {
        let max = ZMM[17 + r];
        if r < rows {
            asm.vmaxps(t0, at(r, 0), at(r, 1))?;
            asm.vmaxps(t1, at(r, 2), at(r, 3))?;
            asm.vmaxps(max, t0, t1)?;
        } else {
            asm.load_splat(max, f32::NEG_INFINITY)?;
        }
    }
    for (to, a, b) in [(t0, ZMM[17], ZMM[18]), (t1, ZMM[19], ZMM[20])] {
        asm.vshuff32x4(t2, a, b, 0x44)?;
        asm.vshuff32x4(t3, a, b, 0xee)?;
        asm.vmaxps(to, t2, t3)?;
    }
    asm.vshuff32x4(t2, t0, t1, 0x88)?;
    asm.vshuff32x4(t3, t0, t1, 0xdd)?;
    asm.vmaxps(t2, t2, t3)?;
    for order in [0x4e, 0xb1] {
        asm.vpermilps(t3, t2, order)?;
        asm.vmaxps(t2, t2, t3)?;
    }
    Ok(())
}

/// P of row r, from its scores, the new maxima in zmm17 and the factors in zmm19.
fn probabilities(asm: &mut Assembler, r: usize) -> Emit {
    let [max, shrink, t0, t1] = [ZMM[24], ZMM[25], ZMM[26], ZMM[27]];
    asm.vshuff32x4(max, ZMM[17], ZMM[17], 0x55 * r as u32)?;
    asm.vshuff32x4(shrink, ZMM[19], ZMM[19], 0x55 * r as u32)?;
    for v in 0..4 {
        asm.vmulps(at(r, v), at(r, v), FACTOR)?;
        asm.vsubps(at(r, v), at(r, v), max)?;
        math::exp2(asm, at(r, v), t0, t1)?;
    }
    asm.vaddps(t0, at(r, 0), at(r, 1))?;
    asm.vaddps(t1, at(r, 2), at(r, 3))?;
    asm.vaddps(t0, t0, t1)?;
    asm.vmovups(t1, zmmword_ptr(r9 + L_ROW * r))?;
    asm.vfmadd213ps(t1, shrink, t0)?;
    asm.vmovups(zmmword_ptr(r9 + L_ROW * r), t1)?;
    for half in 0..2 {
        asm.vcvtne2ps2bf16(t0, at(r, 2 * half + 1), at(r, 2 * half))?;
        asm.vmovups(zmmword_ptr(r10 + (P_ROW * r + 64 * half)), t0)?;
    }
    Ok(())
}

/// O = O shrink + P V for some rows and up to 64 dimensions, and moves every address behind the rows.
/// rax: P, rdx: values, r8: O, r9: shrink, r10: pairs. Uses rcx, rsi, r11, r13, rbp.
fn values(asm: &mut Assembler, key: &AttentionKey, rows: usize, vectors: usize) -> Emit {
    let (o_row, line) = (4 * key.width(), 64 * vectors);
    let o = |r: usize, v: usize| zmmword_ptr(r8 + (o_row * r + 64 * v));
    for r in 0..rows {
        asm.vbroadcastss(ZMM[16], dword_ptr(r9 + 4 * r))?;
        for v in 0..vectors {
            asm.vmulps(at(r, v), ZMM[16], o(r, v))?;
        }
    }
    asm.mov(rbp, qword_ptr(r10))?;
    asm.mov(rcx, qword_ptr(r10 + 8))?;
    asm.lea(r13, qword_ptr(rax + rbp * 4))?;
    asm.imul_3(rsi, rbp, line as i32)?;
    asm.add(rsi, rdx)?;
    let pairs = |asm: &mut Assembler, count: usize| -> Emit {
        for pair in 0..count {
            let p = |r: usize| dword_ptr(r13 + (P_ROW * r + 4 * pair));
            products(asm, rows, vectors, rsi + line * pair, p)?;
        }
        asm.add(rsi, (line * count) as i32)?;
        asm.add(r13, (4 * count) as i32)
    };
    asm.mov(r11, rcx)?;
    asm.shr(r11, UNROLL.ilog2())?;
    asm.count_down(r11, |asm| pairs(asm, UNROLL))?;
    asm.and(rcx, UNROLL as i32 - 1)?;
    asm.count_down(rcx, |asm| pairs(asm, 1))?;
    for (r, v) in (0..rows).flat_map(|r| (0..vectors).map(move |v| (r, v))) {
        asm.vmovups(o(r, v), at(r, v))?;
    }
    asm.add(rax, (P_ROW * rows) as i32)?;
    asm.add(r8, (o_row * rows) as i32)?;
    asm.add(r9, (4 * rows) as i32)?;
    asm.add(r10, size_of::<[usize; 2]>() as i32)
}
