//! Activations to int8, for the integer matrix products.

use half::bf16;

use crate::generic::quantize::Out;
use crate::generic::rotate;
use crate::{ActRef, DType, Element, Kernels};

impl Kernels {
    /// Quantises a row in groups of `group` elements, the last of which may be shorter:
    /// `values = round(x * (127 / amax))`, ties to even, and `scales = amax / 127`, where amax is the
    /// group's largest magnitude; `sums` are the sums of the values. x is about `value * scale`, within
    /// half a scale. The same bits on every tier. The sum of a group of more than 16 million elements may
    /// wrap.
    ///
    /// A group with nothing above 1.5e-36 has values, sum and scale 0. A group with a NaN has the
    /// scale NaN and one with an infinity the scale infinity, with values and sum 0: both make NaN of
    /// a product.
    ///
    /// # Panics
    /// If `values` is not as long as `src`, `scales` or `sums` do not have one element for each group,
    /// `group` is 0, or the row is stored as f16.
    pub fn quantize_groups<E: Element>(
        &self,
        src: &[E],
        group: usize,
        values: &mut [i8],
        scales: &mut [f32],
        sums: &mut [i32],
    ) {
        check_groups(src.len(), group, values, scales, sums);
        let out = Out { group, values, scales, sums };
        match E::DTYPE {
            // SAFETY: the CPU has this table's tier.
            DType::F32 => unsafe { (self.table().quantize_f32)(bytemuck::cast_slice::<E, f32>(src), out) },
            // SAFETY: the CPU has this table's tier.
            DType::Bf16 => unsafe { (self.table().quantize_bf16)(bytemuck::cast_slice::<E, bf16>(src), out) },
            DType::F16 => panic!("activations are f32 or bf16, not f16"),
        }
    }
}

impl Kernels {
    /// Rotates a row in blocks of 64 elements, the last ones of 16, 4 and 1: each becomes its product with the orthogonal
    /// Hadamard matrix of that size. Twice is nothing. The same bits on every tier.
    pub fn rotate(&self, row: &mut [f32]) {
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().rotate)(row) }
    }

    /// Rotates and quantises row `i` of `a`, which stays as it is: a scale for each 64 elements, or one for the row.
    pub(crate) fn quantize_rotated(&self, a: ActRef<'_>, i: usize, out: rotate::Out<'_>) {
        let groups = a.cols().div_ceil(out.group);
        assert!(
            out.group.is_multiple_of(rotate::BLOCK) && (out.one_scale || out.group == rotate::BLOCK),
            "groups of {} rotated elements",
            out.group
        );
        assert!(
            out.values.len() == a.cols() && out.scales.len() == groups && out.sums.len() == groups,
            "values, scales and sums of {} elements",
            a.cols()
        );
        match a {
            // SAFETY: the CPU has this table's tier.
            ActRef::F32(a) => unsafe { (self.table().quantize_rotated_f32)(a.row(i), out) },
            // SAFETY: the CPU has this table's tier.
            ActRef::Bf16(a) => unsafe { (self.table().quantize_rotated_bf16)(a.row(i), out) },
        }
    }
}

pub(crate) fn check_groups(len: usize, group: usize, values: &[i8], scales: &[f32], sums: &[i32]) {
    assert!(group > 0, "a group has elements");
    let groups = len.div_ceil(group);
    assert!(
        values.len() == len && scales.len() == groups && sums.len() == groups,
        "{} values, {} scales and {} sums for {len} elements in groups of {group}",
        values.len(),
        scales.len(),
        sums.len()
    );
}
