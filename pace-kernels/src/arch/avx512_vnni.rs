//! AVX-512 with VNNI. The integer dot product serves int8 tiles only, so the f32 and bf16 kernels
//! are those of the tier below.

use crate::table::Table;

pub(crate) const TABLE: Table = super::avx512::TABLE;
