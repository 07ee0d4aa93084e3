//! AVX-512 with BF16.
//!
//! `narrow_bf16` stays the one of the tier below: `vcvtneps2bf16` flushes denormals to zero, and a
//! conversion must give the same bits on every CPU.

use crate::table::Table;

pub(crate) const TABLE: Table = super::avx512_vnni::TABLE;
