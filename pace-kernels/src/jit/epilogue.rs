//! What happens to a tile's sums while they are still in registers.
//!
//! ```text
//! for each row, for each vector of 16 columns:
//!   x = acc [* scale] [+ bias];  x = act(x);  [x *= up];  [x *= other];  [x += out];  out = x
//! ```
//!
//! Sums lie in zmm0-23, temporaries are zmm24-31. Vectors are independent, so out-of-order
//! execution overlaps their chains; interleaving them by hand would need more temporaries than there
//! are. The last vector of a panel that is not full goes through the mask k1: nothing outside of the
//! matrices is touched.

use std::mem::offset_of;

use iced_x86::code_asm::registers::gpr64::{r8, r9, r10, r11, r14, r15, rax, rdx, rsi};
use iced_x86::code_asm::registers::k::k1;
use iced_x86::code_asm::{
    AsmMemoryOperand, AsmRegister64, AsmRegisterZmm, qword_ptr, ymmword_ptr, zmmword_ptr,
};

use super::assembler::{Assembler, Emit, ZMM};
use super::brgemm::skip_rows;
use super::key::TileEpilogue;
use super::math::{self, Temps};
use crate::DType;

/// The operands of an epilogue; those that a tile was not generated for may be null.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct EpilogueArgs {
    /// f32 \[cols\] at the tile's first column; of the gate, if the panel is paired.
    pub(crate) bias: *const f32,
    /// f32 \[cols\]: the bias of the up projection.
    pub(crate) up_bias: *const f32,
    /// f32 \[width\]: scales of the panel's columns.
    pub(crate) scales: *const f32,
    /// \[rows\]\[cols\] of the type to multiply by.
    pub(crate) multiply: *const u8,
    /// Bytes between its rows.
    pub(crate) multiply_stride: usize,
    /// \[rows\]\[cols\] of the output's type.
    pub(crate) out: *mut u8,
    /// Bytes between its rows.
    pub(crate) out_stride: usize,
}

/// Which rows of the tile lie in the accumulators.
pub(super) struct Frame {
    pub(super) first: usize,
    pub(super) rows: usize,
    /// Vectors of 16 columns in each row.
    pub(super) vectors: usize,
}

const OUT: Matrix = Matrix { address: rax, stride: r8 };
const MULTIPLY: Matrix = Matrix { address: rdx, stride: r9 };
const BIAS: AsmRegister64 = r11;
const UP_BIAS: AsmRegister64 = r14;
const SCALES: AsmRegister64 = r15;

/// rsi holds the address of `EpilogueArgs`.
pub(super) fn emit(asm: &mut Assembler, epilogue: &TileEpilogue, frame: &Frame) -> Emit {
    load_arguments(asm, epilogue, frame)?;
    let columns = epilogue.cols.div_ceil(16);
    let up = if epilogue.paired { frame.vectors / 2 } else { 0 };
    for row in 0..frame.rows {
        for vector in 0..columns {
            let register = row * frame.vectors + vector;
            let part = Vector {
                epilogue,
                index: vector,
                masked: 16 * (vector + 1) > epilogue.cols,
                acc: ZMM[register],
                up: ZMM[register + up],
                up_index: vector + up,
            };
            part.emit(asm)?;
        }
        OUT.next_row(asm)?;
        if epilogue.multiply.is_some() {
            MULTIPLY.next_row(asm)?;
        }
    }
    Ok(())
}

fn load_arguments(asm: &mut Assembler, epilogue: &TileEpilogue, frame: &Frame) -> Emit {
    asm.mov(SCALES, qword_ptr(rsi + offset_of!(EpilogueArgs, scales)))?;
    asm.mov(BIAS, qword_ptr(rsi + offset_of!(EpilogueArgs, bias)))?;
    asm.mov(UP_BIAS, qword_ptr(rsi + offset_of!(EpilogueArgs, up_bias)))?;
    let at = (offset_of!(EpilogueArgs, out), offset_of!(EpilogueArgs, out_stride));
    OUT.load(asm, at, frame.first)?;
    let at = (offset_of!(EpilogueArgs, multiply), offset_of!(EpilogueArgs, multiply_stride));
    MULTIPLY.load(asm, at, frame.first)?;
    let partial = epilogue.cols % 16;
    if partial > 0 {
        asm.mov(r10, (1u64 << partial) - 1)?;
        asm.kmovq(k1, r10)?;
    }
    Ok(())
}

/// A matrix that the epilogue walks down row by row.
struct Matrix {
    address: AsmRegister64,
    stride: AsmRegister64,
}

impl Matrix {
    /// `at`: where `EpilogueArgs` holds the address and the stride.
    fn load(&self, asm: &mut Assembler, at: (usize, usize), first_row: usize) -> Emit {
        asm.mov(self.address, qword_ptr(rsi + at.0))?;
        asm.mov(self.stride, qword_ptr(rsi + at.1))?;
        skip_rows(asm, self.address, self.stride, first_row)
    }

    fn next_row(&self, asm: &mut Assembler) -> Emit {
        asm.add(self.address, self.stride)
    }
}

/// 16 columns of one row.
struct Vector<'a> {
    epilogue: &'a TileEpilogue,
    /// Position in the result's columns.
    index: usize,
    /// Whether only the columns in k1 exist.
    masked: bool,
    acc: AsmRegisterZmm,
    /// The sums of the up projection, and their position in the panel.
    up: AsmRegisterZmm,
    up_index: usize,
}

impl Vector<'_> {
    fn emit(&self, asm: &mut Assembler) -> Emit {
        let mut temps = Temps::new(&ZMM[24..]);
        self.finish_sum(asm, self.acc, self.index, BIAS, &mut temps)?;
        if let Some(activation) = self.epilogue.activation {
            math::activate(asm, activation, self.acc, &mut temps)?;
        }
        if self.epilogue.paired {
            self.finish_sum(asm, self.up, self.up_index, UP_BIAS, &mut temps)?;
            asm.vmulps(self.acc, self.acc, self.up)?;
        }
        let other = temps.take();
        if let Some(dtype) = self.epilogue.multiply {
            self.load(asm, other, MULTIPLY.address, dtype)?;
            asm.vmulps(self.acc, self.acc, other)?;
        }
        if self.epilogue.accumulate {
            self.load(asm, other, OUT.address, self.epilogue.out)?;
            // The order of the table's kernel, which decides which of two NaNs is passed on.
            if self.epilogue.out == DType::F32 {
                asm.vaddps(self.acc, other, self.acc)?;
            } else {
                asm.vaddps(self.acc, self.acc, other)?;
            }
        }
        temps.give(other);
        self.store(asm, &mut temps)
    }

    /// sum = sum * scale of its channel + bias. `panel_index`: its position in the panel.
    fn finish_sum(
        &self,
        asm: &mut Assembler,
        sum: AsmRegisterZmm,
        panel_index: usize,
        bias: AsmRegister64,
        temps: &mut Temps,
    ) -> Emit {
        if self.epilogue.scaled {
            asm.vmulps(sum, sum, zmmword_ptr(SCALES + 64 * panel_index))?;
        }
        if self.epilogue.bias {
            let term = temps.take();
            self.load(asm, term, bias, DType::F32)?;
            asm.vaddps(sum, sum, term)?;
            temps.give(term);
        }
        Ok(())
    }

    /// This vector's columns of a row that starts at `from`, widened to f32.
    fn load(&self, asm: &mut Assembler, to: AsmRegisterZmm, from: AsmRegister64, dtype: DType) -> Emit {
        let masked = if self.masked { to.k1().z() } else { to };
        if dtype == DType::F32 {
            return asm.vmovups(masked, zmmword_ptr(from + 64 * self.index));
        }
        asm.vpmovzxwd(masked, ymmword_ptr(from + 32 * self.index))?;
        asm.vpslld(to, to, 16)
    }

    fn store(&self, asm: &mut Assembler, temps: &mut Temps) -> Emit {
        let masked = |at: AsmMemoryOperand| if self.masked { at.k1() } else { at };
        if self.epilogue.out == DType::F32 {
            return asm.vmovups(masked(zmmword_ptr(OUT.address + 64 * self.index)), self.acc);
        }
        math::narrow_bf16(asm, self.acc, temps)?;
        asm.vpmovdw(masked(ymmword_ptr(OUT.address + 32 * self.index)), self.acc)
    }
}
