//! What every generator needs on top of the instruction encoder: frame, loops with an exact trip
//! count, constants, registers by number.

use std::ops::{Deref, DerefMut};

use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmMemoryOperand, AsmRegister64, AsmRegisterZmm, CodeAssembler, CodeLabel, dword_bcst, dword_ptr,
    registers,
};

/// What emitting an instruction gives. An error is a fault of the generator (an operand that no
/// encoding has), never of its caller.
pub(super) type Emit<T = ()> = Result<T, IcedError>;

/// The vector registers by number.
pub(super) const ZMM: [AsmRegisterZmm; 32] = {
    use registers::zmm::*;
    [
        zmm0, zmm1, zmm2, zmm3, zmm4, zmm5, zmm6, zmm7, zmm8, zmm9, zmm10, zmm11, zmm12, zmm13, zmm14, zmm15,
        zmm16, zmm17, zmm18, zmm19, zmm20, zmm21, zmm22, zmm23, zmm24, zmm25, zmm26, zmm27, zmm28, zmm29,
        zmm30, zmm31,
    ]
};

/// Registers that a function of the System V ABI must give back as it found them, in the order in
/// which the frame holds them.
const CALLEE_SAVED: [AsmRegister64; 6] = {
    use registers::gpr64::*;
    [rbx, rbp, r12, r13, r14, r15]
};

/// Finished machine code: instructions, then the constants that they refer to.
pub(super) struct Code {
    /// Everything, position-independent.
    pub(super) bytes: Vec<u8>,
    /// How many of them are instructions.
    pub(super) instructions: usize,
}

/// The encoder, and the constants that the code needs.
pub(super) struct Assembler {
    code: CodeAssembler,
    constants: Vec<(u32, CodeLabel)>,
}

impl Assembler {
    pub(super) fn new() -> Emit<Self> {
        Ok(Self { code: CodeAssembler::new(64)?, constants: Vec::new() })
    }

    /// Saves every register that the caller may count on, so that the body may use all of them.
    pub(super) fn enter(&mut self) -> Emit {
        CALLEE_SAVED.into_iter().try_for_each(|register| self.code.push(register))
    }

    /// Undoes `enter` and returns. The upper halves are cleared for the SSE code that may follow.
    pub(super) fn leave(&mut self) -> Emit {
        self.code.vzeroupper()?;
        CALLEE_SAVED.into_iter().rev().try_for_each(|register| self.code.pop(register))?;
        self.code.ret()
    }

    /// Emits `body` so that it runs `times` times, counted down in `counter`. Nothing for 0, no loop
    /// for 1.
    pub(super) fn repeat(
        &mut self,
        counter: AsmRegister64,
        times: usize,
        body: impl FnOnce(&mut Self) -> Emit,
    ) -> Emit {
        if times == 0 {
            return Ok(());
        }
        if times == 1 {
            return body(self);
        }
        self.code.mov(counter, times as u64)?;
        let mut top = self.code.create_label();
        self.code.set_label(&mut top)?;
        body(self)?;
        self.code.dec(counter)?;
        self.code.jnz(top)
    }

    /// A constant in every lane, as the memory operand of an arithmetic instruction.
    pub(super) fn splat(&mut self, value: f32) -> AsmMemoryOperand {
        self.splat_bits(value.to_bits())
    }

    /// As `splat`, for integers.
    pub(super) fn splat_bits(&mut self, bits: u32) -> AsmMemoryOperand {
        dword_bcst(self.constant(bits))
    }

    /// Loads a constant into every lane of a register.
    pub(super) fn load_splat(&mut self, to: AsmRegisterZmm, value: f32) -> Emit {
        let label = self.constant(value.to_bits());
        self.code.vbroadcastss(to, dword_ptr(label))
    }

    /// Where a constant will lie: behind the code, once however often it is used.
    fn constant(&mut self, bits: u32) -> CodeLabel {
        if let Some((_, label)) = self.constants.iter().find(|(known, _)| *known == bits) {
            return *label;
        }
        let label = self.code.create_label();
        self.constants.push((bits, label));
        label
    }

    /// Appends the constants and encodes.
    pub(super) fn finish(mut self) -> Emit<Code> {
        let count = self.constants.len();
        for (bits, mut label) in std::mem::take(&mut self.constants) {
            self.code.set_label(&mut label)?;
            self.code.dd(&[bits])?;
        }
        let bytes = self.code.assemble(0)?;
        Ok(Code { instructions: bytes.len() - 4 * count, bytes })
    }
}

impl Deref for Assembler {
    type Target = CodeAssembler;

    fn deref(&self) -> &CodeAssembler {
        &self.code
    }
}

impl DerefMut for Assembler {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.code
    }
}
