//! AVX-512 with VNNI. The integer dot product serves int8 tiles only, so the element-wise kernels are
//! those of the tier below.

use std::arch::x86_64::*;

use super::avx512::{dot_bf16, lanes_512};
use crate::gemm::tile::{Dots, TileArgs, TileKind};
use crate::generic;
use crate::table::Table;

pub(crate) const TABLE: Table = Table { tile_int8, tile_4_bit, probe_peak, ..super::avx512::TABLE };

lanes_512! {
    /// AVX-512 with `vpdpbusd`.
    LanesVnni, dot_bf16, dot_int8
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn dot_int8(acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
    _mm512_dpbusd_epi32(acc, w, a)
}

/// # Safety
/// The CPU has this tier; what `t` describes is accessible.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile_int8(t: &TileArgs) {
    // SAFETY: passed on to the caller.
    unsafe { generic::tile::tile::<generic::tile::Int8, _>(LanesVnni, t) }
}

/// # Safety
/// The CPU has this tier; what `t` describes is accessible.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile_4_bit(t: &TileArgs) {
    // SAFETY: passed on to the caller.
    unsafe { generic::four_bits::tile(LanesVnni, t) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn probe_peak(kind: TileKind, rounds: usize) -> u64 {
    generic::probe::peak(LanesVnni, kind, rounds)
}
