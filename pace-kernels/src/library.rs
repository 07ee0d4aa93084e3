//! f32 matrix products: the reference path of every operator.
//!
//! Two rows and more go to the `gemm` crate, which packs what it must in every call and
//! promises no order of summation. It picks its own instruction set, whatever the tier. One row is
//! bound by the memory that the matrix comes from, and packing would double that, so it has
//! kernels of its own. All of it runs on the calling thread: operators parallelise over panels.

use half::bf16;

use crate::{Kernels, MatMut, MatRef};

/// Up to this many rows, the `gemm` crate reads a transposed right operand where it lies. Above, it
/// packs it by strided reads, which at k = 2048 took ten times as long as the product of 6 rows
/// itself, and was no gain at 512 rows either.
const TILE_ROWS: usize = 4;

/// Rows of a transposed right operand that all tiles use while they are in the cache.
const TILE_COLS: usize = 64;

impl Kernels {
    /// c = a w^T, or c += a w^T with `accumulate`; a is `[m, k]`, w `[n, k]`, c `[m, n]`.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn matmul_nt(
        &self,
        a: MatRef<'_, f32>,
        w: MatRef<'_, f32>,
        mut c: MatMut<'_, f32>,
        accumulate: bool,
    ) {
        assert!(
            a.cols() == w.cols() && c.rows() == a.rows() && c.cols() == w.rows(),
            "{a:?} x {w:?}^T does not fit {c:?}"
        );
        let m = c.rows();
        if m == 1 {
            // SAFETY: the CPU has this table's tier.
            unsafe { (self.table().gemv_nt)(a.row(0), w, c.row_mut(0), accumulate) }
        } else if m <= TILE_ROWS {
            let right = Right { ptr: w.as_ptr(), depth_stride: 1, col_stride: w.row_stride() };
            // SAFETY: element (p, j) of w^T is element (j, p) of w, and the shapes match.
            unsafe { gemm(a, right, c, accumulate) }
        } else {
            self.tiled_nt(a, w, c, accumulate);
        }
    }

    /// `matmul_nt` in tiles.
    fn tiled_nt(&self, a: MatRef<'_, f32>, w: MatRef<'_, f32>, mut c: MatMut<'_, f32>, accumulate: bool) {
        let (m, n) = (c.rows(), c.cols());
        for j in (0..n).step_by(TILE_COLS) {
            let cols = j..n.min(j + TILE_COLS);
            for i in (0..m).step_by(TILE_ROWS) {
                let rows = i..m.min(i + TILE_ROWS);
                let tile = c.rb_mut().into_rows(rows.clone()).into_cols(cols.clone());
                self.matmul_nt(a.rows_range(rows), w.rows_range(cols.clone()), tile, accumulate);
            }
        }
    }

    /// c = a w^T for one row and bf16 weights.
    pub(crate) fn gemv_nt_bf16(&self, a: &[f32], w: MatRef<'_, bf16>, c: &mut [f32]) {
        assert!(a.len() == w.cols() && c.len() == w.rows(), "{} x {w:?}^T does not fit {}", a.len(), c.len());
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().gemv_nt_bf16)(a, w, c) }
    }

    /// c = a b, or c += a b with `accumulate`; a is `[m, k]`, b `[k, n]`, c `[m, n]`.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn matmul_nn(
        &self,
        a: MatRef<'_, f32>,
        b: MatRef<'_, f32>,
        mut c: MatMut<'_, f32>,
        accumulate: bool,
    ) {
        assert!(
            a.cols() == b.rows() && c.rows() == a.rows() && c.cols() == b.cols(),
            "{a:?} x {b:?} does not fit {c:?}"
        );
        if c.rows() == 1 {
            // SAFETY: the CPU has this table's tier.
            unsafe { (self.table().gemv_nn)(a.row(0), b, c.row_mut(0), accumulate) }
        } else {
            let right = Right { ptr: b.as_ptr(), depth_stride: b.row_stride(), col_stride: 1 };
            // SAFETY: element (p, j) of the right operand is element (p, j) of b, and the shapes match.
            unsafe { gemm(a, right, c, accumulate) }
        }
    }
}

/// The right operand: element (p, j) lies at `p * depth_stride + j * col_stride`.
struct Right {
    ptr: *const f32,
    depth_stride: usize,
    col_stride: usize,
}

/// c (+)= a right.
///
/// # Safety
/// The elements (p, j) of `right` with p < a.cols() and j < c.cols() are readable, and c has as many
/// rows as a.
unsafe fn gemm(a: MatRef<'_, f32>, right: Right, mut c: MatMut<'_, f32>, accumulate: bool) {
    let (m, n, k) = (c.rows(), c.cols(), a.cols());
    if k == 0 && !accumulate {
        (0..m).for_each(|i| c.row_mut(i).fill(0.0));
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let (c_stride, c_ptr) = (c.row_stride(), c.as_mut_ptr());
    // SAFETY: the views and the caller guarantee that every element of the three operands is
    // accessible, and `c`, being exclusive, overlaps neither input. A slice's length fits isize.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c_ptr,
            1,
            c_stride as isize,
            accumulate,
            a.as_ptr(),
            1,
            a.row_stride() as isize,
            right.ptr,
            right.col_stride as isize,
            right.depth_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
