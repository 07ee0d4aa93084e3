//! The tile of the blocked GEMM, generated for one shape: sums += a x panel over one K block, then
//! the epilogue.
//!
//! ```text
//! for each block of rows, for each strip of the panel's vectors, so that the sums fit the registers:
//!   sum[row][vector] = 0, or the sums of the K block before
//!   for each step along K (2 values of bf16, 4 of int8), front to back:    unrolled, exact count
//!     w[vector]  = panel line of the step                                  a load for each vector
//!     for each row: a = the row's 2 or 4 values in every lane              1 load
//!       for each vector: sum[row][vector] += w[vector] . a                 vdpbf16ps, vpdpbusd
//!   int8: the products of a group along K go to acc[row][vector] in i32, then
//!         sum += f32(acc) * scale(row, group)
//!   store the sums; or the epilogue, from registers to the output
//! ```
//!
//! Registers, bf16: 6 rows x 4 vectors (or 8 x 2) of sums, 4 for the panel line, 2 for activations.
//! int8 needs two accumulators for each sum: 6 rows x 2 vectors, or 3 x 4. Activations are broadcast
//! by a load of their own: as the embedded broadcast of each product they would be loaded once for each
//! vector, more than one load a cycle.
//!
//! The operations and their order are those of the intrinsics tiles, so the bits are too.
//!
//! Measured as fractions of the int8 peak at K = 2048, one thread, panels in L2. f32 sums in registers
//! instead of L1: groups of 64 0.85 instead of 0.81 (6 rows, strips of 2 vectors), 0.89 instead of 0.83
//! (3 rows); groups of 1024 0.92 instead of 0.96; and a third of the speed when the panel comes from
//! memory, as strips skip every other pair of lines. So all three are here, see [`Plan`].

use std::mem::offset_of;

use iced_x86::code_asm::registers::gpr64::{
    r8, r9, r10, r11, r12, r13, r14, r15, rax, rbp, rbx, rcx, rdi, rdx, rsi, rsp,
};
use iced_x86::code_asm::{
    AsmMemoryOperand, AsmRegister64, AsmRegisterZmm, byte_ptr, dword_ptr, qword_ptr, zmmword_ptr,
};

use super::assembler::{Assembler, Code, Emit, ZMM};
use super::epilogue::{self, Frame};
use super::key::{Operands, TileKey};
use crate::gemm::tile::{PREFETCH_STEPS, TileArgs};

/// The most vectors of sums: what is left beside a panel line of 4 and 2 activations, rounded to rows.
const SUMS: usize = 24;

/// Steps in one trip of the loop over K: a group of 64 in int8.
const UNROLL: usize = 16;

/// Where the addresses of the two argument blocks lie above the stack pointer.
const TILE_ARGS: usize = 8;
const EPILOGUE_ARGS: usize = 0;

/// The code of a tile: `extern "sysv64" fn(*const TileArgs, *const EpilogueArgs)`.
pub(super) fn generate(key: &TileKey) -> Emit<Code> {
    let mut asm = Assembler::new()?;
    asm.enter()?;
    // The addresses of the arguments, so that their registers are free in the loops.
    asm.push(rdi)?;
    asm.push(rsi)?;
    let width = key.width / 16;
    let plan = Plan::new(key, width);
    let blocks = key.rows.div_ceil(plan.rows);
    let rows = key.rows.div_ceil(blocks);
    for first in (0..key.rows).step_by(rows) {
        let rows = rows.min(key.rows - first);
        let block = Strip { key, first, rows, first_vector: 0, vectors: width, in_memory: plan.in_memory };
        for first_vector in (0..width).step_by(plan.vectors) {
            Strip { first_vector, vectors: plan.vectors, ..block }.emit(&mut asm)?;
        }
        if let Some(epilogue) = &key.epilogue {
            if plan.in_memory || plan.vectors < width {
                block.each_sum(&mut asm, |asm, sum, at| asm.vmovups(sum, at))?;
            }
            asm.mov(rsi, qword_ptr(rsp + EPILOGUE_ARGS))?;
            epilogue::emit(&mut asm, epilogue, &Frame { first, rows, vectors: width })?;
        }
    }
    asm.add(rsp, 16)?;
    asm.leave()?;
    asm.finish()
}

/// How a tile is cut for the registers.
struct Plan {
    /// The most rows of a block.
    rows: usize,
    /// Vectors of a strip.
    vectors: usize,
    /// Whether the f32 sums stay in `TileArgs::sums`.
    in_memory: bool,
}

impl Plan {
    fn new(key: &TileKey, width: usize) -> Self {
        match key.operands {
            Operands::Bf16 => Self { rows: SUMS / width, vectors: width, in_memory: false },
            Operands::Int8 { .. } if key.rows <= 3 => Self { rows: 3, vectors: width, in_memory: false },
            // Strips read the panel several times, which only pays if it is in the cache already and if
            // sums are needed often.
            Operands::Int8 { group_steps: ..=32, weight_scales: false, streamed: false } => {
                Self { rows: (SUMS / width).min(7), vectors: 2, in_memory: false }
            }
            Operands::Int8 { .. } => Self { rows: (SUMS / width).min(7), vectors: width, in_memory: true },
        }
    }
}

/// The sums of some rows and some vectors of the panel, over all of K.
#[derive(Clone, Copy)]
struct Strip<'a> {
    key: &'a TileKey,
    first: usize,
    rows: usize,
    first_vector: usize,
    vectors: usize,
    in_memory: bool,
}

impl Strip<'_> {
    fn emit(&self, asm: &mut Assembler) -> Emit {
        self.load_arguments(asm)?;
        self.start_sums(asm)?;
        self.start_prefetch(asm)?;
        match self.key.operands {
            Operands::Bf16 => self.steps(asm, self.key.steps)?,
            Operands::Int8 { group_steps, weight_scales, .. } => {
                self.groups(asm, group_steps, weight_scales)?;
            }
        }
        let wanted_in_registers = self.key.epilogue.is_some() && 16 * self.vectors == self.key.width;
        if self.in_memory || wanted_in_registers {
            return Ok(());
        }
        self.each_sum(asm, |asm, sum, at| asm.vmovups(at, sum))
    }

    fn sum(&self, row: usize, vector: usize) -> AsmRegisterZmm {
        ZMM[row * self.vectors + vector]
    }

    /// Where products are added: to the sums themselves; or in i32, behind the sums if they are in
    /// registers.
    fn acc(&self, row: usize, vector: usize) -> AsmRegisterZmm {
        match self.key.operands {
            Operands::Int8 { .. } if !self.in_memory => ZMM[(self.rows + row) * self.vectors + vector],
            _ => self.sum(row, vector),
        }
    }

    fn panel(&self, vector: usize) -> AsmRegisterZmm {
        ZMM[30 - self.vectors + vector]
    }

    /// The registers of the activations are used in turns.
    fn row(&self, row: usize) -> AsmRegisterZmm {
        ZMM[30 + row % 2]
    }

    /// rax: activations; r8, r9, r10, rbp: 1, 3, 5, 7 of their row strides; rdx: panel; r11, rbx:
    /// sums and the bytes between their rows. int8: r12, r13, r14: scales, offsets and the bytes
    /// between their rows; r15: scales of the weights.
    fn load_arguments(&self, asm: &mut Assembler) -> Emit {
        asm.mov(rdi, qword_ptr(rsp + TILE_ARGS))?;
        asm.mov(rax, qword_ptr(rdi + offset_of!(TileArgs, a)))?;
        asm.mov(r8, qword_ptr(rdi + offset_of!(TileArgs, a_stride)))?;
        asm.mov(rdx, qword_ptr(rdi + offset_of!(TileArgs, w)))?;
        asm.mov(r11, qword_ptr(rdi + offset_of!(TileArgs, sums)))?;
        asm.mov(rbx, qword_ptr(rdi + offset_of!(TileArgs, sums_stride)))?;
        asm.shl(rbx, 2)?;
        asm.add(rdx, (64 * self.first_vector) as i32)?;
        skip_rows(asm, rax, r8, self.first)?;
        skip_rows(asm, r11, rbx, self.first)?;
        asm.lea(r9, qword_ptr(r8 + r8 * 2))?;
        asm.lea(r10, qword_ptr(r8 + r8 * 4))?;
        if self.key.operands == Operands::Bf16 {
            return asm.lea(rbp, qword_ptr(r9 + r8 * 4));
        }
        asm.mov(r12, qword_ptr(rdi + offset_of!(TileArgs, a_scales)))?;
        asm.mov(r13, qword_ptr(rdi + offset_of!(TileArgs, a_offsets)))?;
        asm.mov(r14, qword_ptr(rdi + offset_of!(TileArgs, a_groups)))?;
        asm.mov(r15, qword_ptr(rdi + offset_of!(TileArgs, w_scales)))?;
        asm.shl(r14, 2)?;
        asm.add(r15, (64 * self.first_vector) as i32)?;
        skip_rows(asm, r12, r14, self.first)?;
        skip_rows(asm, r13, r14, self.first)
    }

    /// Sums start at zero or where the K block before ended.
    fn start_sums(&self, asm: &mut Assembler) -> Emit {
        let (mut resume, mut done) = (asm.create_label(), asm.create_label());
        asm.cmp(byte_ptr(rdi + offset_of!(TileArgs, resume)), 0)?;
        asm.jne(if self.in_memory { done } else { resume })?;
        if self.in_memory {
            asm.vpxord(ZMM[0], ZMM[0], ZMM[0])?;
            self.each_sum(asm, |asm, _, at| asm.vmovups(at, ZMM[0]))?;
            return asm.set_label(&mut done);
        }
        for register in &ZMM[..self.rows * self.vectors] {
            asm.vpxord(*register, *register, *register)?;
        }
        asm.jmp(done)?;
        asm.set_label(&mut resume)?;
        self.each_sum(asm, |asm, sum, at| asm.vmovups(sum, at))?;
        asm.set_label(&mut done)
    }

    /// rdi: the memory to prefetch. The tile's arguments are read no more.
    fn start_prefetch(&self, asm: &mut Assembler) -> Emit {
        if self.key.prefetch == 0 {
            return Ok(());
        }
        asm.mov(rdi, qword_ptr(rdi + offset_of!(TileArgs, prefetch)))
    }

    /// `emit` for each sum and its place in `sums`. Uses rsi.
    fn each_sum(
        &self,
        asm: &mut Assembler,
        emit: impl Fn(&mut Assembler, AsmRegisterZmm, AsmMemoryOperand) -> Emit,
    ) -> Emit {
        asm.mov(rsi, r11)?;
        for row in 0..self.rows {
            for vector in 0..self.vectors {
                emit(asm, self.sum(row, vector), zmmword_ptr(rsi + 64 * (self.first_vector + vector)))?;
            }
            asm.add(rsi, rbx)?;
        }
        Ok(())
    }

    /// `count` steps along K, which also moves the operands' addresses behind them. Uses rcx.
    fn steps(&self, asm: &mut Assembler, count: usize) -> Emit {
        asm.repeat(rcx, count / UNROLL, |asm| self.unrolled(asm, UNROLL))?;
        self.unrolled(asm, count % UNROLL)
    }

    fn unrolled(&self, asm: &mut Assembler, count: usize) -> Emit {
        if count == 0 {
            return Ok(());
        }
        let lines = (self.key.prefetch * count).div_ceil(PREFETCH_STEPS);
        for step in 0..count {
            // Spread over the steps, so that they do not crowd out the loads that are waited for.
            for line in (lines * step).div_ceil(count)..(lines * (step + 1)).div_ceil(count) {
                asm.prefetcht1(byte_ptr(rdi + 64 * line))?;
            }
            self.step(asm, step)?;
        }
        if lines > 0 {
            asm.add(rdi, (64 * lines) as i32)?;
        }
        asm.add(rax, (4 * count) as i32)?;
        asm.add(rdx, (4 * self.key.width * count) as i32)
    }

    fn step(&self, asm: &mut Assembler, step: usize) -> Emit {
        for vector in 0..self.vectors {
            asm.vmovups(self.panel(vector), zmmword_ptr(rdx + (4 * self.key.width * step + 64 * vector)))?;
        }
        for row in 0..self.rows {
            let a = self.row(row);
            asm.vpbroadcastd(a, dword_ptr(row_address(row) + 4 * step))?;
            for vector in 0..self.vectors {
                let (acc, w) = (self.acc(row, vector), self.panel(vector));
                match self.key.operands {
                    Operands::Bf16 => asm.vdpbf16ps(acc, w, a)?,
                    Operands::Int8 { .. } => asm.vpdpbusd(acc, w, a)?,
                }
            }
        }
        Ok(())
    }

    /// The groups along K, each summed exactly in i32 and then added in f32. Uses rbp.
    fn groups(&self, asm: &mut Assembler, group_steps: usize, weight_scales: bool) -> Emit {
        asm.repeat(rbp, self.key.steps / group_steps, |asm| self.group(asm, group_steps, weight_scales))?;
        let rest = self.key.steps % group_steps;
        if rest > 0 { self.group(asm, rest, weight_scales) } else { Ok(()) }
    }

    fn group(&self, asm: &mut Assembler, steps: usize, weight_scales: bool) -> Emit {
        self.start_group(asm)?;
        self.steps(asm, steps)?;
        self.end_group(asm, weight_scales)
    }

    /// i32 accumulators start at the row's offset, which takes back the 128 that the weights carry.
    fn start_group(&self, asm: &mut Assembler) -> Emit {
        asm.mov(rsi, r13)?;
        for row in 0..self.rows {
            asm.vpbroadcastd(self.acc(row, 0), dword_ptr(rsi))?;
            for vector in 1..self.vectors {
                asm.vmovdqa32(self.acc(row, vector), self.acc(row, 0))?;
            }
            asm.add(rsi, r14)?;
        }
        asm.add(r13, 4)
    }

    /// sum += f32(acc) * scale. Uses rcx and rsi.
    fn end_group(&self, asm: &mut Assembler, weight_scales: bool) -> Emit {
        asm.mov(rcx, r12)?;
        asm.mov(rsi, r11)?;
        for row in 0..self.rows {
            let a_scale = self.row(row);
            asm.vbroadcastss(a_scale, dword_ptr(rcx))?;
            for vector in 0..self.vectors {
                let mut scale = a_scale;
                if weight_scales {
                    scale = self.panel(vector);
                    asm.vmulps(scale, a_scale, zmmword_ptr(r15 + 64 * vector))?;
                }
                self.add_scaled(asm, row, vector, scale)?;
            }
            asm.add(rcx, r14)?;
            asm.add(rsi, rbx)?;
        }
        if weight_scales {
            asm.add(r15, (4 * self.key.width) as i32)?;
        }
        asm.add(r12, 4)
    }

    /// rsi: the row's sums, if they are in memory.
    fn add_scaled(&self, asm: &mut Assembler, row: usize, vector: usize, scale: AsmRegisterZmm) -> Emit {
        let acc = self.acc(row, vector);
        asm.vcvtdq2ps(acc, acc)?;
        if !self.in_memory {
            return asm.vfmadd231ps(self.sum(row, vector), acc, scale);
        }
        let at = zmmword_ptr(rsi + 64 * (self.first_vector + vector));
        asm.vfmadd213ps(acc, scale, at)?;
        asm.vmovups(at, acc)
    }
}

/// Row `row` of the activations, see `load_arguments`.
fn row_address(row: usize) -> AsmMemoryOperand {
    match row {
        0 => rax + 0,
        1 => rax + r8,
        2 => rax + r8 * 2,
        3 => rax + r9,
        4 => rax + r8 * 4,
        5 => rax + r10,
        6 => rax + r9 * 2,
        _ => rax + rbp,
    }
}

/// address += rows * stride. Uses rcx.
pub(super) fn skip_rows(
    asm: &mut Assembler,
    address: AsmRegister64,
    stride: AsmRegister64,
    rows: usize,
) -> Emit {
    if rows == 0 {
        return Ok(());
    }
    asm.imul_3(rcx, stride, rows as i32)?;
    asm.add(address, rcx)
}
