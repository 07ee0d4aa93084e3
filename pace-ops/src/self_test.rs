//! The self-test: every chosen backend runs once for each distinct shape and must agree with the reference.
//!
//! A generated kernel on a CPU that nobody tried, or a backend with a defect in one shape, would otherwise give wrong
//! answers in silence.

use std::fmt;

use pace_kernels::{ActBuf, ActMut, ActRef, DType, bf16};

use crate::choice::{ByClass, MOST_ROWS};
use crate::{Backend, OpCx, OpDType, OpShape};

/// An operator that can compare its backends with the reference.
pub trait SelfTest {
    /// What was built: each shape is tested once.
    fn shape(&self) -> OpShape;

    /// Runs every backend on random input, for a row count of each class that it serves.
    ///
    /// # Errors
    /// A backend disagrees with the reference.
    fn self_test(&self, cx: &OpCx<'_>) -> Result<(), Mismatch>;

    /// Leaves the operator to the reference path, with the weights that it has.
    fn set_native(&mut self);
}

/// A backend that does not agree with the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    /// The backend.
    pub backend: Backend,
    /// The largest difference, relative to the largest number of the result.
    pub difference: f64,
    /// What would be tolerated: what rounding to the type explains, several times over.
    pub tolerance: f64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backend, difference, tolerance } = self;
        write!(
            f,
            "`{backend}` is off by {difference:.2e} of the largest result, {tolerance:.0e} is tolerated"
        )
    }
}

/// Random input for a type, and what the results may differ by.
pub(crate) struct Sample {
    dtype: OpDType,
}

impl Sample {
    pub(crate) const fn new(dtype: OpDType) -> Self {
        Self { dtype }
    }

    /// Random rows in the type of the activations that go with these weights, the same at every call.
    pub(crate) fn rows(&self, rows: usize, cols: usize) -> ActBuf {
        let mut buf = ActBuf::new(self.dtype.activations(), cols);
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        match buf.rows_mut(rows) {
            ActMut::F32(mut m) => (0..rows).for_each(|i| m.row_mut(i).fill_with(|| random.next())),
            ActMut::Bf16(mut m) => {
                (0..rows).for_each(|i| m.row_mut(i).fill_with(|| bf16::from_f32(random.next())));
            }
        }
        buf
    }

    /// Rows of zeros: nothing that is added to them hides behind what was there.
    pub(crate) fn zeros(dtype: DType, rows: usize, cols: usize) -> ActBuf {
        let mut buf = ActBuf::new(dtype, cols);
        match buf.rows_mut(rows) {
            ActMut::F32(mut m) => (0..rows).for_each(|i| m.row_mut(i).fill(0.0)),
            ActMut::Bf16(mut m) => (0..rows).for_each(|i| m.row_mut(i).fill(bf16::ZERO)),
        }
        buf
    }

    /// Runs the backend of every class and compares the first and the last `edge` columns of its result with those of
    /// `native`, which runs once: but for rounding, a row's result does not depend on the rows beside it. `run` takes so
    /// many of the sample's rows.
    pub(crate) fn test<B: ?Sized>(
        &self,
        backends: &ByClass<B>,
        native: &B,
        edge: usize,
        run: impl Fn(&B, usize) -> ActBuf,
    ) -> Result<(), Mismatch> {
        let mut want = None;
        for (backend, rows, built) in backends.each().filter(|(b, ..)| *b != Backend::Native) {
            let want = want.get_or_insert_with(|| run(native, MOST_ROWS));
            self.compare_edges(backend, &run(built, rows), want, rows, edge)?;
        }
        Ok(())
    }

    /// Compares a backend's first `rows` rows with the reference's.
    pub(crate) fn compare(
        &self,
        backend: Backend,
        got: &ActBuf,
        want: &ActBuf,
        rows: usize,
    ) -> Result<(), Mismatch> {
        let (got, want) = (numbers(got.rows(rows)), numbers(want.rows(rows)));
        self.compare_numbers(backend, &got, &want)
    }

    /// As [`compare`](Self::compare), of the first and the last `edge` columns.
    fn compare_edges(
        &self,
        backend: Backend,
        got: &ActBuf,
        want: &ActBuf,
        rows: usize,
        edge: usize,
    ) -> Result<(), Mismatch> {
        let cut = |buf: &ActBuf| {
            let (rows, cols) = (buf.rows(rows), buf.rows(rows).cols());
            let all = numbers(rows);
            let ends = |row: &[f32]| [&row[..edge.min(cols)], &row[cols.saturating_sub(edge)..]].concat();
            all.chunks(cols.max(1)).flat_map(ends).collect::<Vec<_>>()
        };
        self.compare_numbers(backend, &cut(got), &cut(want))
    }

    fn compare_numbers(&self, backend: Backend, got: &[f32], want: &[f32]) -> Result<(), Mismatch> {
        // f32 differs by the order of sums. A bf16 result is rounded once or twice, each by 2^-9 at most; int8 rounds
        // every activation by half of 1/127 of its group's largest, which sums of many products average out.
        let tolerance = match self.dtype {
            OpDType::F32 => 1e-4,
            OpDType::Bf16 => 2e-2,
            OpDType::Int8 | OpDType::Int4 => 6e-2,
        };
        let largest = want.iter().filter(|x| x.is_finite()).fold(1e-6, |m: f32, x| m.max(x.abs()));
        let off = |(g, w): (&f32, &f32)| match (g.is_finite(), w.is_finite()) {
            (true, true) => f64::from((g - w).abs() / largest),
            // Weights that are not finite were asked for: then both are not.
            (false, false) => 0.0,
            _ => f64::INFINITY,
        };
        let difference = got.iter().zip(want).map(off).fold(0.0, f64::max);
        if difference <= tolerance { Ok(()) } else { Err(Mismatch { backend, difference, tolerance }) }
    }
}

pub(crate) fn numbers(rows: ActRef<'_>) -> Vec<f32> {
    match rows {
        ActRef::F32(m) => (0..m.rows()).flat_map(|i| m.row(i).to_vec()).collect(),
        ActRef::Bf16(m) => (0..m.rows()).flat_map(|i| m.row(i).iter().map(|x| x.to_f32())).collect(),
    }
}

/// xorshift64: numbers in [-1, 1).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rounding_explains_is_tolerated_and_nothing_else() {
        let sample = Sample::new(OpDType::Bf16);
        let compare = |got: &[f32]| sample.compare_numbers(Backend::Tpp, got, &[2.0, -1.0, 0.5]);
        assert_eq!(compare(&[2.004, -1.01, 0.5]), Ok(()));
        let error = compare(&[2.0, -1.0, 0.6]).unwrap_err();
        assert!((error.difference - 0.05).abs() < 1e-6, "{error}");
        assert!(error.to_string().contains("`tpp`"), "{error}");
        assert_eq!(compare(&[2.0, f32::NAN, 0.5]).unwrap_err().difference, f64::INFINITY);
        let sample = Sample::new(OpDType::F32);
        assert_eq!(sample.compare_numbers(Backend::Tpp, &[f32::NAN, 1.0], &[f32::INFINITY, 1.0]), Ok(()));
    }
}
