//! AMX beside AVX-512 with VNNI and BF16: products by tiles of 16 rows of 64 bytes.
//!
//! All else is that of the tier below. On the CPUs that have AMX (Intel's since Sapphire Rapids) `vdpbf16ps` takes as long
//! as four multiply-adds in f32, and prompts of a bf16 model are read six times as fast by AMX (shared host). Of few rows of int8, whose sums are
//! exact by any instruction, the tier below computes the products.

mod detect;
mod dots;
mod tile;

pub(crate) use self::detect::is_available;
use crate::gemm::tile::TileKind;
use crate::table::Table;

pub(crate) const TABLE: Table = Table {
    tile_bf16: tile::bf16,
    tile_bf16_rows: tile::ROWS,
    tile_int8: tile::int8,
    tile_int8_rows: tile::ROWS,
    tile_many_rows: tile::ROWS,
    probe_peak,
    ..super::avx512_bf16::TABLE
};

/// # Safety
/// The CPU has this tier.
unsafe fn probe_peak(kind: TileKind, rounds: usize) -> u64 {
    // SAFETY: passed on to the caller.
    unsafe {
        match kind {
            TileKind::F32 => (super::avx512_bf16::TABLE.probe_peak)(kind, rounds),
            TileKind::Bf16 => dots::peak_bf16(rounds),
            TileKind::Int8 => dots::peak_int8(rounds),
        }
    }
}
