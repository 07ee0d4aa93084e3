//! The blocked matrix product over packed weights.
//!
//! Loop nest: tasks (row block, panel) { blocks of steps { tiles of 6 rows { steps } } ; epilogue }. Each
//! weight line is read once for up to 504 rows; a panel's block of steps stays in L2 while all row tiles
//! use it. Sums of a tile go through a small buffer to the epilogue, which costs 0.5 % at K = 2048 and
//! keeps every combination of epilogues out of the tiles.
//!
//! One row, a few and many differ in blocking only, never in the order of a sum: a row's result is
//! the same bits at any number of rows, threads and any batch.

mod blocking;
pub(crate) mod epilogue;
mod generated;
mod input;
pub(crate) mod tile;

use std::ops::Range;

use self::blocking::{Blocking, row_tiles};
pub use self::epilogue::Epilogue;
use self::epilogue::{RowEpilogue, RowMut};
use self::generated::Generated;
use self::input::{Form, Input};
use self::tile::{MAX_ROWS, PREFETCH_STEPS, TileArgs, TileKind};
use crate::weights::Panels;
use crate::{ActMut, ActRef, Kernels, PackedWeights, Par, Scratch, WeightFormat};

/// How activations are rounded for int8 weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActQuant {
    /// One scale for each group of inputs: 64, or the weights' own groups.
    #[default]
    Groups,
    /// One scale for each row: faster and, on small models, ten times as lossy. Weights with groups
    /// keep theirs.
    Token,
}

/// What a product needs besides its operands.
#[derive(Clone, Copy, Debug)]
pub struct GemmCx<'a> {
    /// The threads.
    pub par: Par<'a>,
    /// Memory for converted activations and for sums; a steady state allocates nothing.
    pub scratch: &'a Scratch,
    /// How activations are rounded for int8 weights.
    pub act_quant: ActQuant,
}

impl Kernels {
    /// c = epilogue(a w^T): a is `[m, k]`, w `[n, k]` in [panels](crate::WeightLayout::Panels), c
    /// `[m, n]` (`[m, n / 2]` if w is paired).
    ///
    /// bf16 weights multiply bf16 activations and sum in f32; f32 activations are rounded first. f32 and f16
    /// weights multiply f32 activations. Int8 weights multiply activations that are rounded to int8, sum
    /// each group exactly in i32, and groups in f32. Products are summed front to back for any m, so
    /// that a row's result does not depend on the rows beside it, nor on the number of threads.
    ///
    /// # Panics
    /// If the weights are not in panels, or the shapes do not match.
    pub fn gemm(
        &self,
        cx: &GemmCx<'_>,
        a: ActRef<'_>,
        w: &PackedWeights,
        c: ActMut<'_>,
        epilogue: &Epilogue<'_>,
    ) {
        with_product(*self, cx, a, w, c, epilogue, |product, c| product.run(cx, c));
    }
}

/// Checks the shapes, prepares the activations, and calls `f` with the product, if there is one.
fn with_product<R>(
    kernels: Kernels,
    cx: &GemmCx<'_>,
    a: ActRef<'_>,
    w: &PackedWeights,
    c: ActMut<'_>,
    epilogue: &Epilogue<'_>,
    f: impl FnOnce(Product<'_>, ActMut<'_>) -> R,
) -> Option<R> {
    let panels = w.panels().expect("the weights of `gemm` are packed in panels");
    assert!(
        a.cols() == w.k() && c.rows() == a.rows() && c.cols() == w.result_cols(),
        "{a:?} times [{}, {}]^T does not fit {c:?}",
        w.n(),
        w.k()
    );
    epilogue.check(w, a.rows());
    if c.rows() == 0 || c.cols() == 0 {
        return None;
    }
    let form = Form::new(&panels, cx.act_quant);
    let mut converted = cx.scratch.take(form.scratch_len(a));
    let input = Input::prepare(kernels, &cx.par, &form, a, &mut converted);
    let blocking = Blocking::new(a.rows(), &panels);
    let product = Product { kernels, generated: None, w, panels, form, input, blocking, epilogue };
    Some(f(product, c))
}

/// One product.
struct Product<'a> {
    kernels: Kernels,
    /// Tiles to use instead of the table's.
    generated: Option<Generated>,
    w: &'a PackedWeights,
    panels: Panels,
    form: Form,
    input: Input,
    blocking: Blocking,
    epilogue: &'a Epilogue<'a>,
}

impl Product<'_> {
    fn run(&self, cx: &GemmCx<'_>, c: ActMut<'_>) {
        let mut slots = cx.scratch.take(cx.par.threads() * self.slot_len());
        cx.par.runs(self.blocking.tasks(), &mut slots, |slot, task| {
            // SAFETY: tasks are disjoint parts of the output, and each is handed out once.
            self.task(task, slot, unsafe { c.alias() });
        });
    }

    /// f32 elements that a task needs: sums, and for f16 a widened block of the panel.
    fn slot_len(&self) -> usize {
        (self.blocking.live_rows() + self.widened_steps()) * self.panels.width
    }

    fn widened_steps(&self) -> usize {
        if self.panels.format == WeightFormat::F16 { self.blocking.live_steps() } else { 0 }
    }

    /// Computes the rows and the panel of a task into their part of the output.
    fn task(&self, task: usize, slot: &mut [f32], c: ActMut<'_>) {
        let (rows, panel) = self.blocking.task(task);
        let result_width = self.panels.result_width();
        let cols = panel * result_width..c.cols().min((panel + 1) * result_width);
        let mut c = c.into_rows(rows.clone()).into_cols(cols.clone());
        let (weights, scales) = self.w.panel(&self.panels, panel);
        let (sums, widened) = slot.split_at_mut(self.blocking.live_rows() * self.panels.width);
        for steps in self.blocking.step_blocks() {
            let last = steps.end == self.panels.steps();
            let block = self.block(weights, &steps, widened);
            for tile in row_tiles(rows.len()) {
                // Without blocks of steps, one tile's sums are alive at a time.
                let at = if self.panels.steps() > steps.len() { tile.start } else { 0 };
                let sums = &mut sums[at * self.panels.width..][..tile.len() * self.panels.width];
                let first = rows.start + tile.start;
                let Some(args) = self.tile_args(&steps, block, scales, first, tile.len(), rows.len(), sums)
                else {
                    sums.fill(0.0);
                    self.finish(scales, rows.start, tile, &cols, sums, &mut c);
                    continue;
                };
                if let Some(generated) = &self.generated {
                    self.generated_tile(generated, &args, last, scales, rows.start, &tile, &cols, &mut c);
                    continue;
                }
                // SAFETY: the CPU has this table's tier, and `tile_args` describes memory that is there.
                unsafe { (self.kernels.table().gemm_tile)(self.form.kind, &args) }
                if last {
                    self.finish(scales, rows.start, tile, &cols, sums, &mut c);
                }
            }
        }
    }

    /// The panel at a block of steps, widened if need be.
    fn block<'s>(&self, weights: &'s [u8], steps: &Range<usize>, widened: &'s mut [f32]) -> &'s [u8] {
        let step_bytes = self.panels.width * self.panels.format.step_bytes();
        let block = &weights[steps.start * step_bytes..steps.end * step_bytes];
        if self.panels.format != WeightFormat::F16 || block.is_empty() {
            return block;
        }
        let widened = &mut widened[..steps.len() * self.panels.width];
        self.kernels.widen_f16(bytemuck::cast_slice(block), widened);
        bytemuck::cast_slice(widened)
    }

    /// The tile that adds the products of a block of steps to the sums of `count` rows from `first` on;
    /// none if there are no steps. `a` has these rows over all steps, because `Input` covers the product;
    /// block and sums are as checked here; scales and offsets exist for every row and group.
    fn tile_args(
        &self,
        steps: &Range<usize>,
        block: &[u8],
        scales: &[f32],
        first: usize,
        count: usize,
        block_rows: usize,
        sums: &mut [f32],
    ) -> Option<TileArgs> {
        let width = self.panels.width;
        assert!(
            count <= MAX_ROWS && block.len() == steps.len() * width * 4 && sums.len() == count * width,
            "a tile of {count} rows over {} bytes of weights with {} sums",
            block.len(),
            sums.len()
        );
        if steps.is_empty() {
            return None;
        }
        let (mut t, int8) = (self.empty_tile(steps), self.form.kind == TileKind::Int8);
        t.a = self.input.row(first, steps.start);
        t.w = block.as_ptr();
        t.sums = sums.as_mut_ptr();
        t.rows = count;
        if int8 {
            let group = 4 * steps.start / self.form.group;
            (t.a_scales, t.a_offsets) = self.input.scale(first, group);
            if let WeightFormat::Int8Group(_) = self.panels.format {
                t.w_scales = scales[group * width..].as_ptr();
            }
        }
        let (share, lines) = self.prefetch(steps, block_rows);
        // Tiles start at multiples of 6, but for the last one, which may start one or two rows before.
        t.prefetch = t.w.wrapping_add(block.len() + first.div_ceil(MAX_ROWS) * share);
        t.prefetch_lines = lines;
        Some(t)
    }

    /// Bytes of the next block of steps, which lies behind this one, that a tile prefetches, and lines of
    /// them for each round: the tiles share it. F16 blocks are copied before use, which reads ahead.
    fn prefetch(&self, steps: &Range<usize>, block_rows: usize) -> (usize, usize) {
        if !self.blocking.prefetch || self.panels.format == WeightFormat::F16 {
            return (0, 0);
        }
        let tiles = block_rows.div_ceil(MAX_ROWS);
        let share = steps.len() * self.panels.width * 4 / tiles / 64 * 64;
        (share, (share / 64).div_ceil(steps.len().div_ceil(PREFETCH_STEPS)))
    }

    /// What all tiles of a block of steps have in common.
    fn empty_tile(&self, steps: &Range<usize>) -> TileArgs {
        TileArgs {
            a: std::ptr::null(),
            a_stride: self.input.stride,
            w: std::ptr::null(),
            steps: steps.len(),
            sums: std::ptr::null_mut(),
            sums_stride: self.panels.width,
            resume: steps.start > 0,
            rows: 0,
            width: self.panels.width,
            prefetch: std::ptr::null(),
            prefetch_lines: 0,
            a_scales: std::ptr::null(),
            a_offsets: std::ptr::null(),
            a_groups: self.input.stride / size_of::<f32>(),
            group_steps: self.form.group / 4,
            w_scales: std::ptr::null(),
        }
    }

    /// Stores the sums of a tile of rows, counted from `first`.
    fn finish(
        &self,
        scales: &[f32],
        first: usize,
        tile: Range<usize>,
        cols: &Range<usize>,
        sums: &mut [f32],
        c: &mut ActMut<'_>,
    ) {
        let bias = self.epilogue.bias.unwrap_or_default();
        let paired = self.panels.result_width() < self.panels.width;
        let up = if paired && !bias.is_empty() {
            self.panels.n / 2 + cols.start..self.panels.n / 2 + cols.end
        } else {
            0..0
        };
        let mut row = RowEpilogue {
            scales: if self.panels.format == WeightFormat::Int8 { scales } else { &[] },
            half: self.panels.result_width(),
            paired,
            bias: if bias.is_empty() { bias } else { &bias[cols.clone()] },
            up_bias: &bias[up],
            activation: self.epilogue.activation,
            multiply: epilogue::RowRef::None,
            accumulate: self.epilogue.accumulate,
        };
        for (i, sums) in tile.zip(sums.chunks_exact_mut(self.panels.width)) {
            row.multiply = self.epilogue.multiplier(first + i, cols.clone());
            let out = match c {
                ActMut::F32(c) => RowMut::F32(c.row_mut(i)),
                ActMut::Bf16(c) => RowMut::Bf16(c.row_mut(i)),
            };
            // SAFETY: the CPU has this table's tier.
            unsafe { (self.kernels.table().finish_row)(sums, &row, out) }
        }
    }
}
