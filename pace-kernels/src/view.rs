//! Borrowed matrices: rows of contiguous elements at a fixed distance.
//!
//! [`MatRef`] and [`MatMut`] are two-dimensional, row-major and strided; that is all a decoder
//! needs. They hold a pointer instead of a slice, so that a mutable matrix can be cut into
//! disjoint column ranges, whose rows interleave in memory.

mod act;

use std::marker::PhantomData;
use std::ops::Range;

pub use self::act::{ActBuf, ActMut, ActRef};

/// A shared view of a `rows x cols` matrix. Element (i, j) lies at `i * row_stride + j`.
pub struct MatRef<'a, E> {
    ptr: *const E,
    shape: Shape,
    marker: PhantomData<&'a [E]>,
}

impl<'a, E> MatRef<'a, E> {
    /// The first `rows * cols` elements of `data`, row after row.
    ///
    /// # Panics
    /// If `data` is too short.
    pub fn new(data: &'a [E], rows: usize, cols: usize) -> Self {
        Self::with_stride(data, rows, cols, cols)
    }

    /// A matrix whose rows start `row_stride` elements apart.
    ///
    /// # Panics
    /// If `data` is too short, or `row_stride < cols`.
    pub fn with_stride(data: &'a [E], rows: usize, cols: usize, row_stride: usize) -> Self {
        let shape = Shape::checked(data.len(), rows, cols, row_stride);
        Self { ptr: data.as_ptr(), shape, marker: PhantomData }
    }

    /// Number of rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Number of columns.
    #[inline]
    pub fn cols(&self) -> usize {
        self.shape.cols
    }

    /// Elements from one row's start to the next one's.
    #[inline]
    pub fn row_stride(&self) -> usize {
        self.shape.row_stride
    }

    /// Row `i`, `cols` elements.
    ///
    /// # Panics
    /// If `i >= rows`.
    #[inline]
    pub fn row(&self, i: usize) -> &'a [E] {
        let offset = self.shape.row_offset(i);
        // SAFETY: row i < rows lies inside the borrowed data, which the constructors checked and
        // the sub-views keep; it stays borrowed for 'a, and only shared.
        unsafe { std::slice::from_raw_parts(self.ptr.wrapping_add(offset), self.shape.cols) }
    }

    /// The rows of `range`.
    ///
    /// # Panics
    /// If the range does not lie in `0..rows`.
    pub fn rows_range(self, range: Range<usize>) -> Self {
        let (offset, shape) = self.shape.rows_range(range);
        Self { ptr: self.ptr.wrapping_add(offset), shape, ..self }
    }

    /// The columns of `range`.
    ///
    /// # Panics
    /// If the range does not lie in `0..cols`.
    pub fn cols_range(self, range: Range<usize>) -> Self {
        let (offset, shape) = self.shape.cols_range(range);
        Self { ptr: self.ptr.wrapping_add(offset), shape, ..self }
    }

    /// Whether the rows lie back to back.
    pub fn is_dense(&self) -> bool {
        self.shape.is_dense()
    }

    /// All elements, if the rows lie back to back.
    pub fn as_slice(&self) -> Option<&'a [E]> {
        // SAFETY: a dense view covers rows * cols consecutive elements of the borrowed data.
        self.is_dense().then(|| unsafe { std::slice::from_raw_parts(self.ptr, self.shape.len()) })
    }

    /// The address of element (0, 0).
    pub(crate) fn as_ptr(&self) -> *const E {
        self.ptr
    }
}

impl<E> Clone for MatRef<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for MatRef<'_, E> {}

impl<E> std::fmt::Debug for MatRef<'_, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.shape.describe(f, "MatRef")
    }
}

// SAFETY: a MatRef is a shared slice with a shape, so it may cross threads where a slice may.
unsafe impl<E: Sync> Send for MatRef<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for MatRef<'_, E> {}

/// An exclusive view of a `rows x cols` matrix. Element (i, j) lies at `i * row_stride + j`.
///
/// The elements between the rows do not belong to the view: another view may own them.
pub struct MatMut<'a, E> {
    ptr: *mut E,
    shape: Shape,
    marker: PhantomData<&'a mut [E]>,
}

impl<'a, E> MatMut<'a, E> {
    /// The first `rows * cols` elements of `data`, row after row.
    ///
    /// # Panics
    /// If `data` is too short.
    pub fn new(data: &'a mut [E], rows: usize, cols: usize) -> Self {
        Self::with_stride(data, rows, cols, cols)
    }

    /// A matrix whose rows start `row_stride` elements apart.
    ///
    /// # Panics
    /// If `data` is too short, or `row_stride < cols`.
    pub fn with_stride(data: &'a mut [E], rows: usize, cols: usize, row_stride: usize) -> Self {
        let shape = Shape::checked(data.len(), rows, cols, row_stride);
        Self { ptr: data.as_mut_ptr(), shape, marker: PhantomData }
    }

    /// Number of rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Number of columns.
    #[inline]
    pub fn cols(&self) -> usize {
        self.shape.cols
    }

    /// Elements from one row's start to the next one's.
    #[inline]
    pub fn row_stride(&self) -> usize {
        self.shape.row_stride
    }

    /// Row `i`, `cols` elements.
    ///
    /// # Panics
    /// If `i >= rows`.
    #[inline]
    pub fn row(&self, i: usize) -> &[E] {
        self.as_ref().row(i)
    }

    /// Row `i`, `cols` elements.
    ///
    /// # Panics
    /// If `i >= rows`.
    #[inline]
    pub fn row_mut(&mut self, i: usize) -> &mut [E] {
        let offset = self.shape.row_offset(i);
        // SAFETY: row i < rows lies inside the borrowed data; this view alone owns these columns
        // of it, and `&mut self` keeps it from handing out the row twice.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.wrapping_add(offset), self.shape.cols) }
    }

    /// A shorter-lived view of the same matrix.
    pub fn rb_mut(&mut self) -> MatMut<'_, E> {
        MatMut { ptr: self.ptr, shape: self.shape, marker: PhantomData }
    }

    /// A shared view of the same matrix.
    #[allow(clippy::should_implement_trait)]
    pub fn as_ref(&self) -> MatRef<'_, E> {
        MatRef { ptr: self.ptr, shape: self.shape, marker: PhantomData }
    }

    /// The rows of `range`.
    ///
    /// # Panics
    /// If the range does not lie in `0..rows`.
    pub fn into_rows(self, range: Range<usize>) -> Self {
        let (offset, shape) = self.shape.rows_range(range);
        Self { ptr: self.ptr.wrapping_add(offset), shape, ..self }
    }

    /// The columns of `range`.
    ///
    /// # Panics
    /// If the range does not lie in `0..cols`.
    pub fn into_cols(self, range: Range<usize>) -> Self {
        let (offset, shape) = self.shape.cols_range(range);
        Self { ptr: self.ptr.wrapping_add(offset), shape, ..self }
    }

    /// The rows before `i` and the rows from `i` on.
    ///
    /// # Panics
    /// If `i > rows`.
    pub fn split_rows_at(self, i: usize) -> (Self, Self) {
        let rows = self.rows();
        // SAFETY: the two views own disjoint rows.
        let upper: Self = unsafe { self.alias() };
        (upper.into_rows(0..i), self.into_rows(i..rows))
    }

    /// The columns before `j` and the columns from `j` on.
    ///
    /// # Panics
    /// If `j > cols`.
    pub fn split_cols_at(self, j: usize) -> (Self, Self) {
        let cols = self.cols();
        // SAFETY: the two views own disjoint columns.
        let left: Self = unsafe { self.alias() };
        (left.into_cols(0..j), self.into_cols(j..cols))
    }

    /// Whether the rows lie back to back.
    pub fn is_dense(&self) -> bool {
        self.shape.is_dense()
    }

    /// All elements, if the rows lie back to back.
    pub fn as_slice(&self) -> Option<&[E]> {
        self.as_ref().as_slice()
    }

    /// All elements, if the rows lie back to back.
    pub fn as_mut_slice(&mut self) -> Option<&mut [E]> {
        // SAFETY: a dense view owns rows * cols consecutive elements, exclusively through `self`.
        self.is_dense().then(|| unsafe { std::slice::from_raw_parts_mut(self.ptr, self.shape.len()) })
    }

    /// The address of element (0, 0).
    pub(crate) fn as_mut_ptr(&mut self) -> *mut E {
        self.ptr
    }

    /// A second view of the same elements.
    ///
    /// # Safety
    /// While two views live, the caller uses disjoint parts of them.
    pub(crate) unsafe fn alias<'b>(&self) -> MatMut<'b, E>
    where
        'a: 'b,
    {
        MatMut { ptr: self.ptr, shape: self.shape, marker: PhantomData }
    }
}

impl<E> std::fmt::Debug for MatMut<'_, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.shape.describe(f, "MatMut")
    }
}

// SAFETY: a MatMut is an exclusive slice with a shape, so it may cross threads where that may.
unsafe impl<E: Send> Send for MatMut<'_, E> {}
// SAFETY: as above; through a shared MatMut elements can only be read.
unsafe impl<E: Sync> Sync for MatMut<'_, E> {}

#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl Shape {
    fn checked(len: usize, rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(row_stride >= cols, "row stride {row_stride} is smaller than {cols} columns");
        let last_row = if cols == 0 { Some(0) } else { rows.saturating_sub(1).checked_mul(row_stride) };
        let needed = last_row.and_then(|start| start.checked_add(if rows == 0 { 0 } else { cols }));
        assert!(
            needed.is_some_and(|needed| needed <= len),
            "{len} elements are too few for {rows} rows of {cols} at stride {row_stride}"
        );
        // A stride that leads nowhere may be any number; nobody shall calculate with it.
        let row_stride = if rows <= 1 || cols == 0 { cols } else { row_stride };
        Self { rows, cols, row_stride }
    }

    #[inline]
    fn row_offset(&self, i: usize) -> usize {
        assert!(i < self.rows, "row {i} of {} rows", self.rows);
        // With no columns the stride was not checked against the data.
        if self.cols == 0 { 0 } else { i * self.row_stride }
    }

    fn rows_range(self, range: Range<usize>) -> (usize, Self) {
        check_range(&range, self.rows, "rows");
        let offset = if range.is_empty() { 0 } else { self.row_offset(range.start) };
        (offset, Self { rows: range.len(), ..self })
    }

    fn cols_range(self, range: Range<usize>) -> (usize, Self) {
        check_range(&range, self.cols, "columns");
        let offset = if self.rows == 0 || range.is_empty() { 0 } else { range.start };
        (offset, Self { cols: range.len(), ..self })
    }

    fn is_dense(&self) -> bool {
        self.rows <= 1 || self.row_stride == self.cols || self.cols == 0
    }

    fn len(&self) -> usize {
        self.rows * self.cols
    }

    fn describe(&self, f: &mut std::fmt::Formatter<'_>, name: &str) -> std::fmt::Result {
        write!(f, "{name}({} x {}, stride {})", self.rows, self.cols, self.row_stride)
    }
}

fn check_range(range: &Range<usize>, limit: usize, what: &str) {
    assert!(
        range.start <= range.end && range.end <= limit,
        "range {}..{} of {limit} {what}",
        range.start,
        range.end
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize) -> Vec<f32> {
        (0..len).map(|i| i as f32).collect()
    }

    #[test]
    fn sub_views_address_the_right_elements() {
        let data = numbers(40);
        let mat = MatRef::with_stride(&data, 4, 8, 10);
        assert_eq!(mat.row(3), &data[30..38]);
        let inner = mat.rows_range(1..3).cols_range(2..5);
        assert_eq!((inner.rows(), inner.cols(), inner.row_stride()), (2, 3, 10));
        assert_eq!(inner.row(1), &data[22..25]);
        assert!(!inner.is_dense() && inner.as_slice().is_none());
        assert_eq!(MatRef::new(&data, 5, 8).as_slice(), Some(&data[..]));
        assert_eq!(mat.rows_range(2..3).as_slice(), Some(&data[20..28]));
    }

    #[test]
    fn the_last_row_needs_no_padding() {
        let data = numbers(38);
        assert_eq!(MatRef::with_stride(&data, 4, 8, 10).rows_range(4..4).rows(), 0);
    }

    #[test]
    fn column_halves_are_disjoint_and_complete() {
        let mut data = vec![0.0f32; 5 * 7];
        let mat = MatMut::new(&mut data, 5, 7);
        let (mut left, mut right) = mat.split_cols_at(3);
        for i in 0..5 {
            // Both rows are alive at once: they share no element.
            let (a, b) = (left.row_mut(i), right.row_mut(i));
            a.fill(1.0);
            b.fill(2.0);
        }
        for row in data.chunks(7) {
            assert_eq!(row, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
        }
    }

    #[test]
    fn row_halves_can_be_written_from_two_threads() {
        let mut data = vec![0.0f32; 6 * 4];
        let (mut upper, mut lower) = MatMut::new(&mut data, 6, 4).split_rows_at(2);
        std::thread::scope(|scope| {
            scope.spawn(move || (0..2).for_each(|i| upper.row_mut(i).fill(1.0)));
            scope.spawn(move || (0..4).for_each(|i| lower.row_mut(i).fill(2.0)));
        });
        assert!(data[..8].iter().all(|&x| x == 1.0) && data[8..].iter().all(|&x| x == 2.0));
    }

    #[test]
    fn reborrow_and_dense_slices() {
        let mut data = numbers(12);
        let mut mat = MatMut::new(&mut data, 3, 4);
        mat.rb_mut().into_rows(1..2).row_mut(0).fill(-1.0);
        assert_eq!(mat.row(1), [-1.0; 4]);
        mat.as_mut_slice().unwrap()[0] = 9.0;
        assert_eq!(mat.as_slice().unwrap()[..5], [9.0, 1.0, 2.0, 3.0, -1.0]);
        assert!(mat.into_cols(0..3).as_mut_slice().is_none());
    }

    #[test]
    fn empty_matrices_are_fine() {
        let none: [f32; 0] = [];
        assert_eq!(MatRef::new(&none, 3, 0).row(2), &none);
        assert_eq!(MatRef::new(&none, 0, 5).rows(), 0);
        assert_eq!(MatRef::with_stride(&none, 3, 0, 8).rows_range(1..3).row(1), &none);
        assert_eq!(MatRef::new(&none, 0, 5).cols_range(2..4).cols(), 2);
    }

    #[test]
    #[should_panic(expected = "too few")]
    fn short_data_is_refused() {
        MatRef::with_stride(&[0.0f32; 37], 4, 8, 10);
    }

    #[test]
    #[should_panic(expected = "too few")]
    fn an_overflowing_shape_is_refused() {
        MatRef::new(&[0.0f32; 4], usize::MAX, 2);
    }

    #[test]
    #[should_panic(expected = "range 2..9 of 8 columns")]
    fn a_range_outside_is_refused() {
        MatRef::new(&numbers(16), 2, 8).cols_range(2..9);
    }
}
