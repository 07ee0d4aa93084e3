//! AVX-512 with VNNI and BF16.
//!
//! `narrow_bf16` stays the one of the tier below: `vcvtneps2bf16` flushes denormals to zero, and a
//! conversion must give the same bits on every CPU.

mod attention;
mod tile;
mod unpack;

use std::arch::x86_64::*;

use super::avx512::lanes_512;
use super::avx512_vnni;
use super::avx512_vnni::dot_int8;
use crate::attention::AttentionTiles;
use crate::gemm::tile::{Dots, TileKind};
use crate::generic;
use crate::table::Table;

pub(crate) const TABLE: Table = Table {
    attention: AttentionTiles {
        step_bf16: attention::step,
        unpack: unpack::unpack,
        ..avx512_vnni::TABLE.attention
    },
    tile_bf16: tile::tile,
    tile_bf16_rows: tile::ROWS,
    tile_bf16_products: usize::MAX,
    probe_peak,
    ..avx512_vnni::TABLE
};

lanes_512! {
    /// AVX-512 with `vdpbf16ps` and `vpdpbusd`.
    LanesBf16, dot_bf16, dot_int8
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_bf16(acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
    // SAFETY: both types are 512 bits without invalid values; std has no cast between them.
    let (w, a) =
        unsafe { (std::mem::transmute::<__m512i, __m512bh>(w), std::mem::transmute::<__m512i, __m512bh>(a)) };
    _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(acc), w, a))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
fn probe_peak(kind: TileKind, rounds: usize) -> u64 {
    generic::probe::peak(LanesBf16, kind, rounds)
}
