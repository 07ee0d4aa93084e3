//! Weight matrices, packed once at load.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use half::bf16;

use crate::par::FirstError;
use crate::{Buffer, Element, Kernels, MatMut, MatRef, OutOfMemory, Par, Placement};

/// Rows that are filled and rounded at a time, unless they would be more than [`PANEL_BYTES`].
const PANEL_ROWS: usize = 64;

/// The most f32 scratch that one thread uses for packing, unless a single row needs more.
const PANEL_BYTES: usize = 4 << 20;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight, rounded to nearest, ties to even.
    Bf16,
}

impl WeightFormat {
    /// Every format.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Bytes that `weights` weights take.
    pub const fn bytes(self, weights: usize) -> usize {
        match self {
            Self::F32 => weights * size_of::<f32>(),
            Self::Bf16 => weights * size_of::<bf16>(),
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// No weight format has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown weight format `{0}`; known: f32, bf16")]
pub struct UnknownWeightFormat(pub String);

impl FromStr for WeightFormat {
    type Err = UnknownWeightFormat;

    fn from_str(name: &str) -> Result<Self, UnknownWeightFormat> {
        Self::ALL
            .into_iter()
            .find(|format| format.to_string().eq_ignore_ascii_case(name))
            .ok_or_else(|| UnknownWeightFormat(name.to_owned()))
    }
}

/// A weight matrix `[n, k]`: n outputs, k inputs. Opaque: it remembers how it is laid out.
#[derive(Debug)]
pub struct PackedWeights {
    n: usize,
    k: usize,
    format: WeightFormat,
    layout: Layout,
    data: Buffer,
}

/// Why a matrix was not packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError<E> {
    /// There is no memory for the packed matrix or for the panels on the way to it.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The source of the weights failed.
    #[error("{0}")]
    Fill(E),
}

impl PackedWeights {
    /// Packs an `[n, k]` matrix.
    ///
    /// `fill(rows, panel)` writes the f32 weights of some consecutive rows, row after row, into
    /// `panel`, which has `rows.len() * k` elements of unspecified contents. It is called on the
    /// threads of `par`, once for every panel, and the thread that fills a panel is the first to
    /// touch the memory it is stored in. The whole matrix never exists in f32 unless that is the format.
    ///
    /// # Errors
    /// There is too little memory, or `fill` failed: then its first error, and panels that were not
    /// started are left out.
    pub fn pack<E: Send, F>(
        format: WeightFormat,
        n: usize,
        k: usize,
        par: &Par<'_>,
        fill: F,
    ) -> Result<Self, PackError<E>>
    where
        F: Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync,
    {
        let element = match format {
            WeightFormat::F32 => size_of::<f32>(),
            WeightFormat::Bf16 => size_of::<bf16>(),
        };
        let mut data = Buffer::zeroed(product(&[n, k, element])?, Placement::default())?;
        if n > 0 && k > 0 {
            match format {
                WeightFormat::F32 => pack_rows(data.as_mut_slice::<f32>(), n, k, par, &fill)?,
                WeightFormat::Bf16 => pack_rows(data.as_mut_slice::<bf16>(), n, k, par, &fill)?,
            }
        }
        Ok(Self { n, k, format, layout: Layout::RowMajor, data })
    }

    /// Outputs, the rows of the matrix.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs, the columns of the matrix.
    pub fn k(&self) -> usize {
        self.k
    }

    /// How the weights are stored.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Row `i` as f32: one embedding, for instance.
    ///
    /// # Panics
    /// If `i >= n`, or `out` does not have k elements.
    pub fn row(&self, i: usize, kernels: &Kernels, out: &mut [f32]) {
        assert!(i < self.n, "row {i} of {} rows", self.n);
        let Layout::RowMajor = self.layout;
        match self.format {
            WeightFormat::F32 => kernels.widen(self.matrix::<f32>().row(i), out),
            WeightFormat::Bf16 => kernels.widen(self.matrix::<bf16>().row(i), out),
        }
    }

    /// Some rows as f32, `[rows.len(), k]`: borrowed if that is how they are stored, else widened into
    /// `scratch`.
    ///
    /// # Panics
    /// If the range does not lie in `0..n`, or `scratch` has fewer than `rows.len() * k` elements
    /// and they are needed.
    pub fn rows_f32<'s>(
        &'s self,
        kernels: &Kernels,
        rows: Range<usize>,
        scratch: &'s mut [f32],
    ) -> MatRef<'s, f32> {
        let Layout::RowMajor = self.layout;
        match self.format {
            WeightFormat::F32 => self.matrix().rows_range(rows),
            WeightFormat::Bf16 => {
                let stored = self.matrix::<bf16>().rows_range(rows);
                let mut wide = MatMut::new(scratch, stored.rows(), self.k);
                for i in 0..stored.rows() {
                    kernels.widen(stored.row(i), wide.row_mut(i));
                }
                MatRef::new(scratch, stored.rows(), self.k)
            }
        }
    }

    /// out = x W^T for some of the outputs: x is `[m, k]`, out `[m, rows.len()]`, on the calling
    /// thread. One row of x reads the weights as they are stored; more widen them first into
    /// `scratch`, if need be, so that a few dozen outputs at a time are best.
    ///
    /// # Panics
    /// If the shapes do not match, or as [`rows_f32`](Self::rows_f32).
    pub fn matmul(
        &self,
        kernels: &Kernels,
        rows: Range<usize>,
        x: MatRef<'_, f32>,
        mut out: MatMut<'_, f32>,
        scratch: &mut [f32],
    ) {
        assert!(
            x.cols() == self.k && out.rows() == x.rows() && out.cols() == rows.len(),
            "{x:?} times {} rows of {} does not fit {out:?}",
            rows.len(),
            self.k
        );
        if x.rows() == 1 && self.format == WeightFormat::Bf16 {
            kernels.gemv_nt_bf16(x.row(0), self.matrix().rows_range(rows), out.row_mut(0));
        } else if x.rows() > 0 {
            kernels.matmul_nt(x, self.rows_f32(kernels, rows, scratch), out, false);
        }
    }

    fn matrix<E: Element>(&self) -> MatRef<'_, E> {
        MatRef::new(self.data.as_slice(), self.n, self.k)
    }
}

/// The order of the weights in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Row after row, as in a checkpoint.
    RowMajor,
}

/// Fills `out` panel by panel. f32 panels are filled in place, others by way of f32 scratch.
fn pack_rows<W: Element, E: Send, F>(
    out: &mut [W],
    n: usize,
    k: usize,
    par: &Par<'_>,
    fill: &F,
) -> Result<(), PackError<E>>
where
    F: Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync,
{
    let panel_rows = (PANEL_BYTES / size_of::<f32>() / k).clamp(1, PANEL_ROWS).min(n);
    let cuts: Vec<usize> = (0..n).step_by(panel_rows).chain([n]).collect();
    let in_place = W::DTYPE == crate::DType::F32;
    let panel_bytes = if in_place { 0 } else { product(&[panel_rows, k, size_of::<f32>(), par.threads()])? };
    let mut panels = Buffer::zeroed(panel_bytes, Placement::default())?;
    let kernels = Kernels::detect();
    let first = FirstError::new();
    let out = MatMut::new(out, n, k);
    par.grid(out, &cuts, k, panels.as_mut_slice(), |panel, i, _, mut tile| {
        let rows = cuts[i]..cuts[i + 1];
        first.unless_failed(|| {
            let stored = tile.as_mut_slice().expect("tiles as wide as the matrix are dense");
            if let Ok(stored) = bytemuck::try_cast_slice_mut::<W, f32>(stored)
                && in_place
            {
                return fill(rows, stored);
            }
            let panel = &mut panel[..stored.len()];
            fill(rows, panel)?;
            kernels.narrow(panel, stored);
            Ok(())
        });
    });
    first.into_result().map_err(PackError::Fill)
}

/// The product as a size in bytes, or the error that says that there is no such amount of memory.
fn product(factors: &[usize]) -> Result<usize, OutOfMemory> {
    factors
        .iter()
        .try_fold(1usize, |product, &factor| product.checked_mul(factor))
        .ok_or(OutOfMemory { bytes: usize::MAX })
}
