//! Conversions between storage types and f32.

use half::{bf16, f16};

use crate::{DType, Element, Kernels};

impl Kernels {
    /// `dst[i] = src[i]`, exactly.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn widen_bf16(&self, src: &[bf16], dst: &mut [f32]) {
        assert_eq!(src.len(), dst.len(), "lengths of source and destination");
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().widen_bf16)(src, dst) }
    }

    /// `dst[i] = src[i]`, exactly.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn widen_f16(&self, src: &[f16], dst: &mut [f32]) {
        assert_eq!(src.len(), dst.len(), "lengths of source and destination");
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().widen_f16)(src, dst) }
    }

    /// `dst[i]` is the bf16 nearest to `src[i]`, ties to even; NaN stays NaN. The same bits on every
    /// tier.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn narrow_bf16(&self, src: &[f32], dst: &mut [bf16]) {
        assert_eq!(src.len(), dst.len(), "lengths of source and destination");
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().narrow_bf16)(src, dst) }
    }

    /// `even[i] = src[2i]` and `odd[i] = src[2i + 1]`, exactly.
    ///
    /// # Panics
    /// If `even` and `odd` do not have half the length of `src`.
    pub fn deinterleave_bf16(&self, src: &[bf16], even: &mut [f32], odd: &mut [f32]) {
        assert!(
            src.len() == 2 * even.len() && even.len() == odd.len(),
            "{} pairs do not fill {} and {} elements",
            src.len() / 2,
            even.len(),
            odd.len()
        );
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().deinterleave_bf16)(src, even, odd) }
    }

    /// `dst[i] = src[i]` from any storage type, exactly.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn widen<E: Element>(&self, src: &[E], dst: &mut [f32]) {
        match E::DTYPE {
            DType::F32 => dst.copy_from_slice(bytemuck::cast_slice(src)),
            DType::F16 => self.widen_f16(bytemuck::cast_slice(src), dst),
            DType::Bf16 => self.widen_bf16(bytemuck::cast_slice(src), dst),
        }
    }

    /// `dst[i]` is the nearest value of any storage type, ties to even; NaN stays NaN.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn narrow<E: Element>(&self, src: &[f32], dst: &mut [E]) {
        assert_eq!(src.len(), dst.len(), "lengths of source and destination");
        match E::DTYPE {
            DType::F32 => bytemuck::cast_slice_mut(dst).copy_from_slice(src),
            DType::Bf16 => self.narrow_bf16(src, bytemuck::cast_slice_mut(dst)),
            DType::F16 => {
                for (dst, &src) in dst.iter_mut().zip(src) {
                    *dst = E::from_f32(src);
                }
            }
        }
    }
}
