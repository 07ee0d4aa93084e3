//! The tier without vector instructions of its own: every CPU, and the reference for the others.

use half::{bf16, f16};

use crate::generic::lanes::{Lanes, Stored};
use crate::table::Table;
use crate::{ActMut, ActRef, Activation, MatRef, RowNorm, generic};

pub(crate) const TABLE: Table = SHIMS;

shims! { [] pulp::Scalar }

impl Lanes for pulp::Scalar {
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> f32 {
        src[0].widen()
    }

    #[inline(always)]
    fn store_bf16(self, x: f32, dst: &mut [bf16]) {
        dst[0] = generic::convert::nearest_bf16(x);
    }
}

pub(super) fn widen_f16(src: &[f16], dst: &mut [f32]) {
    generic::convert::widen_f16(src, dst);
}
