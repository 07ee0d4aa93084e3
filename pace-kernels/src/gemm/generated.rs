//! The tiles of a product as generated code: one for each number of rows, for the blocks of steps before
//! the last and for the last one, for whole panels and for a partial last one. The last block's tile
//! includes the epilogue, so its sums never leave the registers.

use std::ops::Range;

use half::bf16;

use super::blocking::Blocking;
use super::sums::Ends;
use super::tile::{MAX_ROWS, TileArgs, TileKind};
use super::{Product, Task};
use crate::jit::{EpilogueArgs, Operands, Tile, TileEpilogue, TileKey};
use crate::{ActMut, ActRef, DType, Epilogue, GemmCx, Jit, JitError, WeightFormat, WeightSlice};

impl Jit {
    /// As [`Kernels::gemm`](crate::Kernels::gemm), bit for bit, by tiles that are generated for the
    /// product's shape and epilogue when they are first needed.
    ///
    /// # Errors
    /// The weights are neither bf16 nor int8, the tier lacks the instructions, or the system refuses
    /// executable memory. Nothing has been computed then.
    ///
    /// # Panics
    /// As `Kernels::gemm`.
    pub fn gemm<'w>(
        &self,
        cx: &GemmCx<'_>,
        a: ActRef<'_>,
        w: impl Into<WeightSlice<'w>>,
        c: ActMut<'_>,
        epilogue: &Epilogue<'_>,
    ) -> Result<(), JitError> {
        let (out, ends) = (c.dtype(), Ends::Result { start: None, c });
        super::with_product(self.kernels(), cx, a, w.into(), ends, epilogue, |mut product, ends| {
            product.blocking = Blocking::new(a.rows(), &product.panels, [MAX_ROWS; 2], 1);
            product.generated = Generated::new(self, &product, out)?;
            product.run(cx, &ends);
            Ok(())
        })
        .unwrap_or(Ok(()))
    }
}

/// The tiles that a product needs.
pub(super) struct Generated {
    /// By rows - 1, last block of steps, last panel.
    tiles: [[[Option<Tile>; 2]; 2]; MAX_ROWS],
}

impl Generated {
    /// None if there is nothing to multiply, or activations have smaller groups than the weights, which the table's tiles
    /// multiply. `out` is what the epilogue stores.
    fn new(jit: &Jit, product: &Product<'_>, out: DType) -> Result<Option<Self>, JitError> {
        let mut this = Self { tiles: Default::default() };
        if product.panels.steps() == 0 || product.form.weight_shift(&product.panels) > 0 {
            return Ok(None);
        }
        for rows in product.blocking.row_blocks() {
            for steps in product.blocking.step_blocks() {
                let last = steps.end == product.panels.steps();
                for count in product.blocking.row_tiles(rows.len()).map(|tile| tile.len()) {
                    this.add(jit, product, out, last, &steps, count, rows.len())?;
                }
            }
        }
        Ok(Some(this))
    }

    fn add(
        &mut self,
        jit: &Jit,
        product: &Product<'_>,
        out: DType,
        last: bool,
        steps: &Range<usize>,
        rows: usize,
        block_rows: usize,
    ) -> Result<(), JitError> {
        let key = TileKey {
            operands: product.operands()?,
            rows,
            width: product.panels.width,
            steps: steps.len(),
            prefetch: product.prefetch(steps, block_rows).1,
            epilogue: None,
        };
        for (partial, tile) in self.tiles[rows - 1][usize::from(last)].iter_mut().enumerate() {
            if tile.is_none() && (partial == 0 || last) {
                let cols = if partial == 1 { product.last_cols() } else { product.panels.result_width() };
                let epilogue = last.then(|| product.tile_epilogue(cols, out));
                *tile = Some(jit.tile(&TileKey { epilogue, ..key })?);
            }
        }
        Ok(())
    }

    fn tile(&self, rows: usize, last: bool, partial: bool) -> &Tile {
        self.tiles[rows - 1][usize::from(last)][usize::from(last && partial)]
            .as_ref()
            .expect("`new` made a tile for every part of the product")
    }
}

impl Product<'_> {
    /// What the weights are, for generated tiles.
    fn operands(&self) -> Result<Operands, JitError> {
        match (self.form.kind, self.panels.format) {
            (_, WeightFormat::Bf16) => Ok(Operands::Bf16),
            (TileKind::Int8, format) if !format.has_min() && !format.is_4_bit() => Ok(Operands::Int8 {
                group_steps: self.form.group / 4,
                weight_scales: !format.is_per_output(),
                streamed: self.blocking.is_skinny(),
            }),
            (_, format) => Err(JitError::Format(format)),
        }
    }

    /// Columns of the output in the last panel.
    fn last_cols(&self) -> usize {
        self.w.result_cols() - (self.panels.count() - 1) * self.panels.result_width()
    }

    fn tile_epilogue(&self, cols: usize, out: DType) -> TileEpilogue {
        let e = self.epilogue;
        TileEpilogue {
            cols,
            scaled: self.panels.format.is_per_output(),
            bias: e.bias.is_some(),
            activation: e.activation,
            paired: self.panels.paired,
            multiply: e.multiply.map(|other| other.dtype()),
            accumulate: e.accumulate,
            out,
        }
    }

    /// Computes some rows of a task; returns whether that included their epilogue.
    pub(super) fn generated_tile(
        &self,
        generated: &Generated,
        args: &TileArgs,
        last: bool,
        task: &mut Task<'_>,
        tile: &Range<usize>,
    ) -> bool {
        let code = generated.tile(args.rows, last, task.cols.len() < self.panels.result_width());
        let (true, Ends::Result { c, .. }) = (last, &mut task.ends) else {
            // SAFETY: as for a tile of the table; the code was generated for this shape.
            unsafe { code.run(args, None) };
            return false;
        };
        let epilogue =
            self.epilogue_args(task.scales, task.rows.start + tile.start, &task.cols, tile.start, c);
        // SAFETY: as above. Bias, multiplier and output have these rows and columns, because `gemm`
        // compared their shapes; the output is a task's own, and no operand shares its memory.
        unsafe { code.run(args, Some(&epilogue)) }
        true
    }

    /// Where the epilogue of a tile finds its operands: row `row` of the product, row `out_row` of `c`.
    fn epilogue_args(
        &self,
        scales: &[f32],
        row: usize,
        cols: &Range<usize>,
        out_row: usize,
        c: &mut ActMut<'_>,
    ) -> EpilogueArgs {
        let bias = self.epilogue.bias.unwrap_or_default();
        let at = |start: usize| bias.get(start..).map_or(std::ptr::null(), <[f32]>::as_ptr);
        let (multiply, multiply_stride) = match self.epilogue.multiply {
            None => (std::ptr::null(), 0),
            Some(ActRef::F32(m)) => {
                let at = row * m.row_stride() + cols.start;
                (m.as_ptr().wrapping_add(at).cast(), m.row_stride() * size_of::<f32>())
            }
            Some(ActRef::Bf16(m)) => {
                let at = row * m.row_stride() + cols.start;
                (m.as_ptr().wrapping_add(at).cast(), m.row_stride() * size_of::<bf16>())
            }
        };
        let (out, out_stride) = match c {
            ActMut::F32(c) => {
                let at = out_row * c.row_stride();
                (c.as_mut_ptr().wrapping_add(at).cast(), c.row_stride() * size_of::<f32>())
            }
            ActMut::Bf16(c) => {
                let at = out_row * c.row_stride();
                (c.as_mut_ptr().wrapping_add(at).cast(), c.row_stride() * size_of::<bf16>())
            }
        };
        EpilogueArgs {
            bias: at(cols.start),
            up_bias: at(self.panels.n / 2 + cols.start),
            scales: scales.as_ptr(),
            multiply,
            multiply_stride,
            out,
            out_stride,
        }
    }
}
