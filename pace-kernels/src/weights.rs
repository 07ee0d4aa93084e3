//! Weight matrices, packed once at load.

mod codes;
mod format;
mod four_bits;
mod input_order;
mod panels;
mod quantize;
mod slice;
mod stored;

use std::ops::Range;

use half::{bf16, f16};

pub use self::codes::CodeRows;
pub use self::format::{PackSpec, UnknownWeightFormat, WeightFormat, WeightLayout};
pub use self::input_order::InputOrder;
pub(crate) use self::panels::Panels;
pub use self::quantize::Rounding;
pub use self::slice::WeightSlice;
use crate::par::FirstError;
use crate::{Arena, Buffer, Element, Kernels, MatMut, MatRef, OutOfMemory, Par, Placement};

/// Rows that are filled and rounded at a time, unless they would be more than [`PANEL_BYTES`].
const PANEL_ROWS: usize = 64;

/// The most f32 scratch that one thread uses for packing, unless a single row needs more.
const PANEL_BYTES: usize = 4 << 20;

/// A weight matrix `[n, k]`: n outputs, k inputs. Opaque: it remembers how it is laid out.
#[derive(Debug)]
pub struct PackedWeights {
    n: usize,
    k: usize,
    spec: PackSpec,
    data: Buffer,
    /// The order in which the inputs are stored, if it is another than the model's.
    input_order: Option<InputOrder>,
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
    /// Packs an `[n, k]` matrix. A format alone means rows, in the order of a checkpoint; [`Kernels::gemm`]
    /// wants [`PackSpec::panels`].
    ///
    /// `fill(rows, panel)` writes the f32 weights of some consecutive rows, row after row, into
    /// `panel`, which has `rows.len() * k` elements of unspecified contents. It is called on the
    /// threads of `par`, once for every row, and the thread that fills a panel is the first to
    /// touch the memory it is stored in. The whole matrix never exists in f32 unless that is the format.
    /// Conversions run on the best tier of the CPU: their bits are the same on all.
    ///
    /// # Errors
    /// There is too little memory, or `fill` failed: then its first error, and panels that were not
    /// started are left out.
    ///
    /// # Panics
    /// If the spec does not exist: integers in rows, groups or panel widths that are not listed, or a
    /// paired matrix with an odd number of rows.
    pub fn pack<E: Send, F>(
        spec: impl Into<PackSpec>,
        n: usize,
        k: usize,
        par: &Par<'_>,
        fill: F,
    ) -> Result<Self, PackError<E>>
    where
        F: Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync,
    {
        let memory = |bytes| Buffer::zeroed(bytes, Placement::default());
        Self::pack_into(spec.into(), n, k, par, fill, memory, false)
    }

    /// As [`pack`](Self::pack), with memory from an arena, where matrices share huge pages. From an arena that
    /// another process has filled nothing is packed, and `fill` is not called.
    ///
    /// # Errors
    /// As [`pack`](Self::pack).
    ///
    /// # Panics
    /// As [`pack`](Self::pack).
    pub fn pack_in<E: Send, F>(
        arena: &Arena,
        spec: impl Into<PackSpec>,
        n: usize,
        k: usize,
        par: &Par<'_>,
        fill: F,
    ) -> Result<Self, PackError<E>>
    where
        F: Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync,
    {
        Self::pack_into(spec.into(), n, k, par, fill, |bytes| arena.zeroed(bytes), arena.is_filled())
    }

    fn pack_into<E: Send, F>(
        spec: PackSpec,
        n: usize,
        k: usize,
        par: &Par<'_>,
        fill: F,
        memory: impl Fn(usize) -> Result<Buffer, OutOfMemory>,
        filled: bool,
    ) -> Result<Self, PackError<E>>
    where
        F: Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync,
    {
        let mut packed = Self::allocate(spec, n, k, memory)?;
        if filled || packed.data.is_empty() {
            return Ok(packed);
        }
        match (packed.panels(), spec.format) {
            (Some(panels), _) => {
                let kernels = Kernels::detect();
                let scratch = product(&[panels.width.min(n), k])?;
                packed.pack_panels(&panels, par, scratch, |column, rows, wide, steps, scales| {
                    let wide = &mut wide[..rows.len() * k];
                    fill(rows, wide)?;
                    panels.store(&kernels, column, wide, steps, scales);
                    Ok(())
                })?;
            }
            (None, WeightFormat::F16) => pack_rows(packed.data.as_mut_slice::<f16>(), n, k, par, &fill)?,
            (None, WeightFormat::Bf16) => pack_rows(packed.data.as_mut_slice::<bf16>(), n, k, par, &fill)?,
            (None, _) => pack_rows(packed.data.as_mut_slice::<f32>(), n, k, par, &fill)?,
        }
        Ok(packed)
    }

    /// A matrix without memory.
    fn unpacked(spec: PackSpec, n: usize, k: usize) -> Result<Self, OutOfMemory> {
        check_spec(spec, n);
        Ok(Self { n, k, spec, data: Buffer::zeroed(0, Placement::default())?, input_order: None })
    }

    /// Memory for a matrix, without its weights.
    fn allocate(
        spec: PackSpec,
        n: usize,
        k: usize,
        memory: impl Fn(usize) -> Result<Buffer, OutOfMemory>,
    ) -> Result<Self, OutOfMemory> {
        let mut packed = Self::unpacked(spec, n, k)?;
        let bytes = packed.needed()?;
        if bytes == 0 {
            return Ok(packed);
        }
        packed.data = memory(bytes)?;
        Ok(packed)
    }

    /// Fills panel by panel. `store(column, rows, scratch, steps, scales)` stores consecutive rows as the columns from
    /// `column` on of a panel; `scratch` is `scratch` f32 numbers of its thread. Panels are handed out as `gemm` hands them
    /// out, so that a thread first touches what it will read.
    fn pack_panels<E: Send>(
        &mut self,
        panels: &Panels,
        par: &Par<'_>,
        scratch: usize,
        store: impl Fn(usize, Range<usize>, &mut [f32], &mut [u8], &mut [f32]) -> Result<(), E> + Sync,
    ) -> Result<(), PackError<E>> {
        let out = self.data.as_mut_slice::<f32>();
        let bytes = product(&[scratch, size_of::<f32>(), par.threads()])?;
        let mut scratch = Buffer::zeroed(bytes, Placement::default())?;
        let cuts: Vec<usize> = (0..=panels.count()).collect();
        let words = out.len() / panels.count();
        let weights = words - panels.scales();
        let first = FirstError::new();
        let out = MatMut::new(out, panels.count(), words);
        par.grid(out, &cuts, words, scratch.as_mut_slice(), |scratch, panel, _, mut record| {
            first.unless_failed(|| {
                let (steps, scales) = record.row_mut(0).split_at_mut(weights);
                let steps = bytemuck::cast_slice_mut(steps);
                panels.rows(panel).try_for_each(|(column, rows)| store(column, rows, scratch, steps, scales))
            });
        });
        first.into_result().map_err(PackError::Fill)
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
        self.spec.format
    }

    /// The order in which they are stored.
    pub fn layout(&self) -> WeightLayout {
        self.spec.layout
    }

    /// The matrix whose inputs were packed in `order`: the weights of input `order[0]`, then those of `order[1]`, and so on.
    /// Products and rows have them in the model's order.
    ///
    /// # Panics
    /// If the order is not one of k inputs, or the weights are not integers in panels: no others need one.
    #[must_use]
    pub fn with_input_order(mut self, order: InputOrder) -> Self {
        assert_eq!(order.as_slice().len(), self.k, "inputs in order");
        assert!(self.spec.format.is_quantised(), "{} weights have no groups to sort", self.spec.format);
        self.input_order = Some(order);
        self
    }

    /// The order in which the inputs are stored, if it is another than the model's.
    pub const fn input_order(&self) -> Option<&InputOrder> {
        self.input_order.as_ref()
    }

    /// Columns of a product with this matrix: n, or n / 2 if it is paired.
    pub fn result_cols(&self) -> usize {
        if matches!(self.spec.layout, WeightLayout::Panels { paired: true, .. }) {
            self.n / 2
        } else {
            self.n
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// The part of the memory that lies in huge pages, see [`Buffer::huge_share`].
    pub fn huge_share(&self) -> Option<f64> {
        self.data.huge_share()
    }

    /// Row `i` as f32: one embedding, for instance.
    ///
    /// # Panics
    /// If `i >= n`, or `out` does not have k elements.
    pub fn row(&self, i: usize, kernels: &Kernels, out: &mut [f32]) {
        assert!(i < self.n, "row {i} of {} rows", self.n);
        assert_eq!(out.len(), self.k, "elements of a row");
        if let Some(panels) = self.panels() {
            let (panel, column) = panels.place(i);
            let (weights, scales) = self.panel(&panels, panel);
            panels.load(kernels, column, weights, scales, out);
        } else {
            match self.spec.format {
                WeightFormat::F16 => kernels.widen(self.matrix::<f16>().row(i), out),
                WeightFormat::Bf16 => kernels.widen(self.matrix::<bf16>().row(i), out),
                _ => kernels.widen(self.matrix::<f32>().row(i), out),
            }
        }
        if let Some(order) = &self.input_order {
            order.restore(out);
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
        if self.spec == WeightFormat::F32.into() {
            return self.matrix().rows_range(rows);
        }
        assert!(rows.end <= self.n, "rows {rows:?} of {} rows", self.n);
        let mut wide = MatMut::new(scratch, rows.len(), self.k);
        if let Some(panels) = self.panels() {
            for (panel, column, run) in panels.runs(rows.clone()) {
                let (weights, scales) = self.panel(&panels, panel);
                let out = &mut scratch[(run.start - rows.start) * self.k..][..run.len() * self.k];
                panels.load(kernels, column, weights, scales, out);
                if let Some(order) = &self.input_order {
                    order.restore(out);
                }
            }
        } else {
            for (at, i) in rows.clone().enumerate() {
                self.row(i, kernels, wide.row_mut(at));
            }
        }
        MatRef::new(scratch, rows.len(), self.k)
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
        if x.rows() == 1 && self.spec == WeightFormat::Bf16.into() {
            kernels.gemv_nt_bf16(x.row(0), self.matrix().rows_range(rows), out.row_mut(0));
        } else if x.rows() > 0 {
            kernels.matmul_nt(x, self.rows_f32(kernels, rows, scratch), out, false);
        }
    }

    /// Where things lie, if the weights are in panels.
    pub(crate) fn panels(&self) -> Option<Panels> {
        let WeightLayout::Panels { width, paired } = self.spec.layout else { return None };
        Some(Panels { format: self.spec.format, n: self.n, k: self.k, width, paired })
    }

    /// The steps and the scales of a panel.
    ///
    /// # Panics
    /// If there is no such panel.
    pub(crate) fn panel(&self, panels: &Panels, panel: usize) -> (&[u8], &[f32]) {
        if self.data.is_empty() {
            return (&[], &[]);
        }
        let weights = panels.bytes().expect("a packed panel has a size");
        let words = weights / size_of::<f32>() + panels.scales();
        let record = &self.data.as_slice::<f32>()[panel * words..(panel + 1) * words];
        let (steps, scales) = record.split_at(weights / size_of::<f32>());
        (bytemuck::cast_slice(steps), scales)
    }

    fn matrix<E: Element>(&self) -> MatRef<'_, E> {
        MatRef::new(self.data.as_slice(), self.n, self.k)
    }
}

fn check_spec(spec: PackSpec, n: usize) {
    assert!(
        spec.format.is_known(),
        "{}: int8 has groups of 16 to 256 inputs, int4 of 32 to 128",
        spec.format
    );
    match spec.layout {
        WeightLayout::Rows => {
            assert!(!spec.format.is_quantised(), "{} weights are packed in panels", spec.format);
        }
        WeightLayout::Panels { width, paired } => {
            assert!(matches!(width, 32 | 64), "panels of 32 or 64 outputs, not {width}");
            assert!(!paired || n.is_multiple_of(2), "{n} rows are not a pair of matrices");
        }
    }
}

/// Bytes of a panel with its scales.
fn panel_bytes(panels: &Panels) -> Result<usize, OutOfMemory> {
    let weights = panels.bytes().ok_or(OutOfMemory { bytes: usize::MAX })?;
    let scales = product(&[panels.scales(), size_of::<f32>()])?;
    weights.checked_add(scales).ok_or(OutOfMemory { bytes: usize::MAX })
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
    let cuts = row_cuts(n, k);
    let panel_rows = cuts[1];
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

/// Where `n` rows, of which there is one or more, are cut to be stored by a thread at a time.
fn row_cuts(n: usize, k: usize) -> Vec<usize> {
    let panel_rows = (PANEL_BYTES / size_of::<f32>() / k).clamp(1, PANEL_ROWS).min(n);
    (0..n).step_by(panel_rows).chain([n]).collect()
}

/// The product as a size in bytes, or the error that says that there is no such amount of memory.
fn product(factors: &[usize]) -> Result<usize, OutOfMemory> {
    factors
        .iter()
        .try_fold(1usize, |product, &factor| product.checked_mul(factor))
        .ok_or(OutOfMemory { bytes: usize::MAX })
}
