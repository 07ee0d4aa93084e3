//! What the hardware gives: the limits that kernels are measured against.

use crate::Kernels;
use crate::gemm::tile::TileKind;

/// A multiply-add unit of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// f32 multiply-add.
    F32,
    /// Products of bf16 pairs, summed in f32.
    Bf16,
    /// Products of int8 quads, summed in i32.
    Int8,
}

impl Unit {
    /// Every unit.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];
}

impl Kernels {
    /// Keeps a unit busy from registers alone for `rounds` rounds, as well as this tier can, and returns
    /// the operations done: two for each product.
    ///
    /// Timed, it gives the most that any kernel of this tier could reach.
    pub fn probe_peak(&self, unit: Unit, rounds: usize) -> u64 {
        let kind = match unit {
            Unit::F32 => TileKind::F32,
            Unit::Bf16 => TileKind::Bf16,
            Unit::Int8 => TileKind::Int8,
        };
        // SAFETY: the CPU has this table's tier.
        2 * unsafe { (self.table().probe_peak)(kind, rounds) }
    }

    /// Reads `data` front to back with this tier's vectors and returns the sum.
    ///
    /// Timed, it gives the read bandwidth of the memory that `data` lies in.
    pub fn probe_read(&self, data: &[f32]) -> f32 {
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().probe_read)(data) }
    }
}
