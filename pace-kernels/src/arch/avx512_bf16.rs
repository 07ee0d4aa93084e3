//! AVX-512 with BF16.
//!
//! `narrow_bf16` stays the one of the tier below: `vcvtneps2bf16` flushes denormals to zero, and a
//! conversion must give the same bits on every CPU.

mod attention;

use super::avx512_vnni;
use crate::attention::AttentionTiles;
use crate::table::Table;

pub(crate) const TABLE: Table = Table {
    attention: AttentionTiles { step_bf16: attention::step, ..avx512_vnni::TABLE.attention },
    ..avx512_vnni::TABLE
};
