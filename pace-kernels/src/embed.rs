//! Rows by number: token ids to embeddings.

use crate::{ActMut, DType, Element, Kernels, MatMut, MatRef};

/// Elements that are converted at a time where there is no direct conversion.
const PART: usize = 256;

impl Kernels {
    /// Row i of `out` is row `ids[i]` of `table`, rounded to the type of `out`; `out` is
    /// `[ids.len(), table.cols()]`.
    ///
    /// # Panics
    /// If the shapes do not match, or the table has no such row.
    pub fn gather<E: Element>(&self, table: MatRef<'_, E>, ids: &[u32], out: ActMut<'_>) {
        assert!(
            out.rows() == ids.len() && out.cols() == table.cols(),
            "{} rows of {table:?} do not fit [{}, {}]",
            ids.len(),
            out.rows(),
            out.cols()
        );
        match out {
            ActMut::F32(out) => self.gather_as(table, ids, out),
            ActMut::Bf16(out) => self.gather_as(table, ids, out),
        }
    }

    fn gather_as<E: Element, Y: Element>(&self, table: MatRef<'_, E>, ids: &[u32], mut out: MatMut<'_, Y>) {
        for (i, &id) in ids.iter().enumerate() {
            assert!((id as usize) < table.rows(), "id {id} of {}", table.rows());
            let (src, dst) = (table.row(id as usize), out.row_mut(i));
            if E::DTYPE == Y::DTYPE {
                dst.copy_from_slice(bytemuck::cast_slice(src));
            } else if Y::DTYPE == DType::F32 {
                self.widen(src, bytemuck::cast_slice_mut(dst));
            } else {
                let mut wide = [0.0; PART];
                for (src, dst) in src.chunks(PART).zip(dst.chunks_mut(PART)) {
                    self.widen(src, &mut wide[..src.len()]);
                    self.narrow(&wide[..src.len()], dst);
                }
            }
        }
    }
}
