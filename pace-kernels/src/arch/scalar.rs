//! The tier without vector instructions of its own: every CPU, and the reference for the others.

use half::{bf16, f16};

use crate::attention::{AttentionTiles, Part, State, Step};
use crate::generic::gemv::LoadBf16;
use crate::table::Table;
use crate::{Activation, MatRef, generic};

pub(crate) const TABLE: Table = SHIMS;

shims! { [] pulp::Scalar }

impl LoadBf16 for pulp::Scalar {
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> f32 {
        f32::from_bits(u32::from(src[0].to_bits()) << 16)
    }
}

pub(super) fn widen_f16(src: &[f16], dst: &mut [f32]) {
    generic::convert::widen_f16(src, dst);
}
