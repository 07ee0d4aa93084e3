//! Kernel bodies, written once over `pulp::Simd`.
//!
//! Everything here is `#[inline(always)]` and called only by the tier files in `arch`, whose
//! functions carry the target features: a body that were not inlined would lose them. For the same
//! reason no closure holds a vector. `mul_add_e` is a fused multiply-add where the tier has one.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod convert;
pub(crate) mod epilogue;
pub(crate) mod exp;
pub(crate) mod exp2;
pub(crate) mod four_bits;
pub(crate) mod gemv;
pub(crate) mod lanes;
pub(crate) mod norm;
pub(crate) mod probe;
pub(crate) mod quantize;
pub(crate) mod rope;
pub(crate) mod rotate;
pub(crate) mod softmax;
pub(crate) mod tile;
pub(crate) mod unpack;
pub(crate) mod weights;
