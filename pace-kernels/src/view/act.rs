//! Activations whose element type is chosen at run time: f32 or bf16.

use std::ops::Range;

use half::bf16;

use super::{MatMut, MatRef};
use crate::DType;

/// A shared view of activations, one row a token.
#[derive(Clone, Copy, Debug)]
pub enum ActRef<'a> {
    /// Stored as f32.
    F32(MatRef<'a, f32>),
    /// Stored as bf16.
    Bf16(MatRef<'a, bf16>),
}

impl ActRef<'_> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::F32(mat) => mat.rows(),
            Self::Bf16(mat) => mat.rows(),
        }
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        match self {
            Self::F32(mat) => mat.cols(),
            Self::Bf16(mat) => mat.cols(),
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::Bf16(_) => DType::Bf16,
        }
    }

    /// The rows of `range`.
    ///
    /// # Panics
    /// If the range does not lie in `0..rows`.
    pub fn rows_range(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(mat) => Self::F32(mat.rows_range(range)),
            Self::Bf16(mat) => Self::Bf16(mat.rows_range(range)),
        }
    }

    /// The columns of `range`.
    ///
    /// # Panics
    /// If the range does not lie in `0..cols`.
    pub fn cols_range(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(mat) => Self::F32(mat.cols_range(range)),
            Self::Bf16(mat) => Self::Bf16(mat.cols_range(range)),
        }
    }
}

/// An exclusive view of activations, one row a token.
#[derive(Debug)]
pub enum ActMut<'a> {
    /// Stored as f32.
    F32(MatMut<'a, f32>),
    /// Stored as bf16.
    Bf16(MatMut<'a, bf16>),
}

impl ActMut<'_> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.as_ref().rows()
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.as_ref().cols()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.as_ref().dtype()
    }

    /// A shorter-lived view of the same matrix.
    pub fn rb_mut(&mut self) -> ActMut<'_> {
        match self {
            Self::F32(mat) => ActMut::F32(mat.rb_mut()),
            Self::Bf16(mat) => ActMut::Bf16(mat.rb_mut()),
        }
    }

    /// A shared view of the same matrix.
    #[allow(clippy::should_implement_trait)]
    pub fn as_ref(&self) -> ActRef<'_> {
        match self {
            Self::F32(mat) => ActRef::F32(mat.as_ref()),
            Self::Bf16(mat) => ActRef::Bf16(mat.as_ref()),
        }
    }

    /// The rows of `range`.
    ///
    /// # Panics
    /// If the range does not lie in `0..rows`.
    pub fn into_rows(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(mat) => Self::F32(mat.into_rows(range)),
            Self::Bf16(mat) => Self::Bf16(mat.into_rows(range)),
        }
    }

    /// The columns of `range`.
    ///
    /// # Panics
    /// If the range does not lie in `0..cols`.
    pub fn into_cols(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(mat) => Self::F32(mat.into_cols(range)),
            Self::Bf16(mat) => Self::Bf16(mat.into_cols(range)),
        }
    }

    /// A second view of the same elements.
    ///
    /// # Safety
    /// While two views live, the caller uses disjoint parts of them.
    pub(crate) unsafe fn alias(&self) -> ActMut<'_> {
        match self {
            // SAFETY: passed on to the caller.
            Self::F32(mat) => ActMut::F32(unsafe { mat.alias() }),
            // SAFETY: passed on to the caller.
            Self::Bf16(mat) => ActMut::Bf16(unsafe { mat.alias() }),
        }
    }
}

/// An owned activation buffer with a fixed number of columns. It grows on demand and never shrinks,
/// so that a steady state allocates nothing.
#[derive(Debug)]
pub struct ActBuf {
    cols: usize,
    data: Data,
}

#[derive(Debug)]
enum Data {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl ActBuf {
    /// An empty buffer for rows of `cols` elements.
    ///
    /// # Panics
    /// If `dtype` is f16: activations are f32 or bf16.
    pub fn new(dtype: DType, cols: usize) -> Self {
        let data = match dtype {
            DType::F32 => Data::F32(Vec::new()),
            DType::Bf16 => Data::Bf16(Vec::new()),
            DType::F16 => panic!("activations are f32 or bf16, not f16"),
        };
        Self { cols, data }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            Data::F32(_) => DType::F32,
            Data::Bf16(_) => DType::Bf16,
        }
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The first `n` rows.
    ///
    /// # Panics
    /// If the buffer never held that many.
    pub fn rows(&self, n: usize) -> ActRef<'_> {
        match &self.data {
            Data::F32(data) => ActRef::F32(MatRef::new(data, n, self.cols)),
            Data::Bf16(data) => ActRef::Bf16(MatRef::new(data, n, self.cols)),
        }
    }

    /// The first `n` rows, to write. What they hold is unspecified.
    ///
    /// # Panics
    /// If `n * cols` overflows.
    pub fn rows_mut(&mut self, n: usize) -> ActMut<'_> {
        let len = n.checked_mul(self.cols).expect("the size of an activation buffer fits usize");
        match &mut self.data {
            Data::F32(data) => {
                grow(data, len);
                ActMut::F32(MatMut::new(data, n, self.cols))
            }
            Data::Bf16(data) => {
                grow(data, len);
                ActMut::Bf16(MatMut::new(data, n, self.cols))
            }
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(data) => data.capacity() * DType::F32.size(),
            Data::Bf16(data) => data.capacity() * DType::Bf16.size(),
        }
    }
}

fn grow<E: bytemuck::Pod>(data: &mut Vec<E>, len: usize) {
    if len > data.len() {
        // A fresh vector, because the old contents need not be copied.
        *data = vec![E::zeroed(); len];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_grows_and_never_shrinks() {
        for dtype in [DType::F32, DType::Bf16] {
            let mut buf = ActBuf::new(dtype, 5);
            assert_eq!((buf.bytes(), buf.dtype(), buf.cols()), (0, dtype, 5));
            assert_eq!(buf.rows_mut(7).rows(), 7);
            let bytes = buf.bytes();
            assert!(bytes >= 7 * 5 * dtype.size());
            assert_eq!(buf.rows_mut(3).cols(), 5);
            assert_eq!(buf.bytes(), bytes);
            assert_eq!((buf.rows(7).rows(), buf.rows(2).dtype()), (7, dtype));
        }
    }

    #[test]
    fn tiles_of_both_types() {
        let mut buf = ActBuf::new(DType::Bf16, 4);
        let mut act = buf.rows_mut(3);
        if let ActMut::Bf16(mat) = act.rb_mut() {
            mat.into_rows(1..2).row_mut(0).fill(bf16::ONE);
        }
        let tile = act.into_rows(1..3).into_cols(1..3);
        let ActRef::Bf16(tile) = tile.as_ref().rows_range(0..1).cols_range(0..2) else { unreachable!() };
        assert_eq!(tile.row(0), [bf16::ONE; 2]);
    }

    #[test]
    #[should_panic(expected = "too few")]
    fn rows_that_were_never_written_are_refused() {
        ActBuf::new(DType::F32, 4).rows(1);
    }
}
