//! [`InputOrder`]: matrices whose inputs are stored sorted, so that those that share a scale are neighbours.
//!
//! GPTQ with act-order quantises the inputs with the largest activations first, so that the inputs of a group lie anywhere
//! in a row. Sorted by group they are stored, and multiplied, as in any other matrix; activations are put in the same
//! order before they are rounded, which costs a pass over them.

use std::sync::Arc;

use crate::{ActRef, Element, MatMut, MatRef, Par};

/// Elements up to which the calling thread sorts alone: about what a parallel region costs.
const SERIAL: usize = 32 << 10;

/// A permutation of inputs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InputOrder(Arc<[u32]>);

impl InputOrder {
    /// Input `order[i]` is stored as the `i`th. None if that is not every one of so many inputs, once.
    pub fn new(order: Vec<u32>) -> Option<Self> {
        let mut seen = vec![false; order.len()];
        for &input in &order {
            if std::mem::replace(seen.get_mut(input as usize)?, true) {
                return None;
            }
        }
        Some(Self(order.into()))
    }

    /// Inputs, in the order in which they are stored.
    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }

    /// Sorts a row: `out[i]` becomes `row[order[i]]`.
    ///
    /// # Panics
    /// If the row or `out` has another number of inputs.
    pub fn sort<T: Copy>(&self, row: &[T], out: &mut [T]) {
        assert!(row.len() == self.0.len() && out.len() == row.len(), "as many inputs as the order has");
        for (out, &input) in out.iter_mut().zip(&*self.0) {
            *out = row[input as usize];
        }
    }

    /// Puts sorted rows back into the model's order. Only NATIVE and single rows need that, so memory is allocated for it.
    pub(crate) fn restore(&self, rows: &mut [f32]) {
        let mut sorted = vec![0.0; self.0.len()];
        for row in rows.chunks_exact_mut(self.0.len().max(1)) {
            sorted.copy_from_slice(row);
            for (&sorted, &input) in sorted.iter().zip(&*self.0) {
                row[input as usize] = sorted;
            }
        }
    }

    /// f32 elements of scratch that [`sort_act`](Self::sort_act) needs.
    pub(crate) fn scratch_len(a: ActRef<'_>) -> usize {
        (a.rows() * a.cols() * a.dtype().size()).div_ceil(size_of::<f32>())
    }

    /// The rows of `a`, sorted into `scratch`, of [`scratch_len`](Self::scratch_len) elements.
    pub(crate) fn sort_act<'s>(&self, par: &Par<'_>, a: ActRef<'_>, scratch: &'s mut [f32]) -> ActRef<'s> {
        match a {
            ActRef::F32(a) => ActRef::F32(self.sort_rows(par, a, scratch)),
            ActRef::Bf16(a) => ActRef::Bf16(self.sort_rows(par, a, bytemuck::cast_slice_mut(scratch))),
        }
    }

    fn sort_rows<'s, E: Element>(
        &self,
        par: &Par<'_>,
        a: MatRef<'_, E>,
        scratch: &'s mut [E],
    ) -> MatRef<'s, E> {
        let (rows, cols) = (a.rows(), a.cols());
        let mut out = MatMut::new(scratch, rows, cols);
        if rows * cols <= SERIAL {
            (0..rows).for_each(|i| self.sort(a.row(i), out.row_mut(i)));
        } else {
            par.rows(out, |i, row| self.sort(a.row(i), row));
        }
        MatRef::new(scratch, rows, cols)
    }
}
