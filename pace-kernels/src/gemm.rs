//! The blocked matrix product over packed weights.
//!
//! Loop nest: tasks (row block, panel) { blocks of steps { tiles of some rows { steps } } ; epilogue }. Each
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
mod sums;
pub(crate) mod tile;

use std::ops::Range;

use half::bf16;

use self::blocking::Blocking;
pub(crate) use self::blocking::SKINNY_ROWS;
pub use self::epilogue::Epilogue;
use self::epilogue::{RowEpilogue, RowMut};
use self::generated::Generated;
use self::input::{Form, Input};
use self::sums::Ends;
use self::tile::{FourBits, MAX_ROWS, PREFETCH_STEPS, TileArgs, TileKind};
use crate::weights::Panels;
use crate::{ActMut, ActRef, InputOrder, Kernels, MatMut, MatRef, Par, Scratch, WeightFormat, WeightSlice};

/// How activations are rounded for int8 weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActQuant {
    /// One scale for each group of inputs: 64, the weights' own groups, or 32 for weights of 4 bits.
    #[default]
    Groups,
    /// As `Groups`, but 16 where the weights have groups and are not rotated: about half the error, and a quarter slower
    /// where arithmetic bounds.
    Fine,
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
    /// c = epilogue(a w^T): a is `[m, k]`, w `[n, k]` in [panels](crate::WeightLayout::Panels) or a
    /// [slice](crate::PackedWeights::slice) of such a matrix, c `[m, n]` (`[m, n / 2]` if w is paired).
    ///
    /// bf16 weights multiply bf16 activations and sum in f32; f32 activations are rounded first. f32 and f16
    /// weights multiply f32 activations. Int8 weights multiply activations that are rounded to int8, sum
    /// each group exactly in i32, and groups in f32. Products are summed front to back for any m, so
    /// that a row's result does not depend on the rows beside it, nor on the number of threads.
    ///
    /// # Panics
    /// If the weights are not in panels, the shapes do not match, or [`ActQuant::Token`] meets int8
    /// weights of which a slice lacks some inputs: the scale is the whole row's.
    pub fn gemm<'w>(
        &self,
        cx: &GemmCx<'_>,
        a: ActRef<'_>,
        w: impl Into<WeightSlice<'w>>,
        c: ActMut<'_>,
        epilogue: &Epilogue<'_>,
    ) {
        let ends = Ends::Result { start: None, c };
        with_product(*self, cx, a, w.into(), ends, epilogue, |product, ends| product.run(cx, &ends));
    }

    /// Sums over some inputs only, to go on from: `sums` `[m, n]` becomes a w^T, or that added to what it
    /// holds if `resume`, where `w` is a [slice](crate::PackedWeights::slice) of a matrix.
    ///
    /// Parts of the inputs that follow each other, this function for all of them but the last and
    /// [`gemm_resume`](Self::gemm_resume) for that one, give the bits of [`gemm`](Self::gemm)
    /// over all inputs. Until then the sums of `Int8` weights lack the scales of their outputs.
    ///
    /// # Panics
    /// As [`gemm`](Self::gemm), or if the weights are paired.
    pub fn gemm_partial<'w>(
        &self,
        cx: &GemmCx<'_>,
        a: ActRef<'_>,
        w: impl Into<WeightSlice<'w>>,
        sums: MatMut<'_, f32>,
        resume: bool,
    ) {
        let (ends, epilogue) = (Ends::Sums { sums, resume }, Epilogue::default());
        with_product(*self, cx, a, w.into(), ends, &epilogue, |product, ends| product.run(cx, &ends));
    }

    /// c = epilogue(sums + a w^T): the last part of a product that [`gemm_partial`](Self::gemm_partial)
    /// began. `sums` has the shape of c.
    ///
    /// # Panics
    /// As [`gemm_partial`](Self::gemm_partial).
    pub fn gemm_resume<'w>(
        &self,
        cx: &GemmCx<'_>,
        a: ActRef<'_>,
        w: impl Into<WeightSlice<'w>>,
        sums: MatRef<'_, f32>,
        c: ActMut<'_>,
        epilogue: &Epilogue<'_>,
    ) {
        let ends = Ends::Result { start: Some(sums), c };
        with_product(*self, cx, a, w.into(), ends, epilogue, |product, ends| product.run(cx, &ends));
    }
}

/// Checks the shapes, prepares the activations, and calls `f` with the product, if there is one.
fn with_product<'c, R>(
    kernels: Kernels,
    cx: &GemmCx<'_>,
    a: ActRef<'_>,
    w: WeightSlice<'_>,
    ends: Ends<'c>,
    epilogue: &Epilogue<'_>,
    f: impl FnOnce(Product<'_>, Ends<'c>) -> R,
) -> Option<R> {
    let panels = w.panels().expect("the weights of `gemm` are packed in panels");
    let (rows, cols) = ends.shape();
    assert!(
        a.cols() == w.k() && rows == a.rows() && cols == w.result_cols(),
        "{a:?} times [{}, {}]^T does not fit [{rows}, {cols}]",
        w.n(),
        w.k()
    );
    assert!(!(panels.paired && ends.are_partial()), "paired weights are multiplied in one go");
    epilogue.check(&w, rows);
    let table = kernels.table();
    let records = panels.format.is_4_bit() && rows <= table.tile_4_bit_products;
    let widened = match panels.format {
        WeightFormat::F32 | WeightFormat::F16 => false,
        WeightFormat::Bf16 => rows > table.tile_bf16_products,
        _ => table.quad > size_of::<[i8; 4]>() && !records,
    };
    let form = Form::new(&panels, cx.act_quant, widened, table.tile_many_rows > MAX_ROWS);
    assert!(
        form.kind != TileKind::Int8 || cx.act_quant != ActQuant::Token || w.has_whole_rows(),
        "a scale for each row needs all inputs of the row"
    );
    if rows == 0 || cols == 0 {
        return None;
    }
    let mut sorted = w.input_order().map(|_| cx.scratch.take(InputOrder::scratch_len(a)));
    let a = match (w.input_order(), &mut sorted) {
        (Some(order), Some(sorted)) => order.sort_act(&cx.par, a, sorted),
        _ => a,
    };
    let mut converted = cx.scratch.take(form.scratch_len(a));
    let input = Input::prepare(kernels, &cx.par, &form, a, &mut converted);
    let tile_rows = if records {
        [table.tile_4_bit_rows, table.tile_4_bit_rows.min(MAX_ROWS)]
    } else {
        [table.tile_rows(form.kind), table.tile_rows_of_many(form.kind)]
    };
    let blocking = Blocking::new(rows, &panels, tile_rows, form.tile_steps);
    let product = Product { kernels, generated: None, w, panels, form, input, blocking, records, epilogue };
    Some(f(product, ends))
}

/// One product.
struct Product<'a> {
    kernels: Kernels,
    /// Tiles to use instead of the table's.
    generated: Option<Generated>,
    w: WeightSlice<'a>,
    panels: Panels,
    form: Form,
    input: Input,
    blocking: Blocking,
    /// Whether tiles read weights of 4 bits as they are stored.
    records: bool,
    epilogue: &'a Epilogue<'a>,
}

/// The rows and the panel that one thread computes.
struct Task<'t> {
    rows: Range<usize>,
    /// Of the output.
    cols: Range<usize>,
    weights: &'t [u8],
    scales: &'t [f32],
    /// Of these rows and columns.
    ends: Ends<'t>,
}

/// A block of steps of a panel, as tiles read it.
#[derive(Clone, Copy)]
struct Block<'t> {
    steps: &'t [u8],
    /// From the block's first group on; all of them for formats without groups.
    scales: &'t [f32],
}

impl Product<'_> {
    fn run(&self, cx: &GemmCx<'_>, ends: &Ends<'_>) {
        let mut slots = cx.scratch.take(cx.par.threads() * self.slot_len());
        cx.par.runs(self.blocking.tasks(), &mut slots, |slot, task| {
            let (rows, panel) = self.blocking.task(task);
            let width = self.panels.result_width();
            let cols = panel * width..self.w.result_cols().min((panel + 1) * width);
            let (weights, scales) = self.w.panel(panel);
            // SAFETY: tasks are disjoint parts of the output, and each is handed out once.
            let ends = unsafe { ends.part(rows.clone(), cols.clone()) };
            self.task(Task { rows, cols, weights, scales, ends }, slot);
        });
    }

    /// f32 elements that a task needs: sums, and for weights that are unpacked a block of the panel with its scales.
    fn slot_len(&self) -> usize {
        (self.blocking.live_rows() + self.unpacked_steps()) * self.panels.width + self.unpacked_scales()
    }

    /// Steps of a tile that a block is unpacked to.
    fn unpacked_steps(&self) -> usize {
        let unpacked = self.panels.format == WeightFormat::F16 || self.widens_bf16() || self.unpacks_4_bits();
        if unpacked { self.blocking.live_steps() * self.form.tile_steps } else { 0 }
    }

    fn widens_bf16(&self) -> bool {
        self.panels.format == WeightFormat::Bf16 && self.form.kind == TileKind::F32
    }

    fn unpacks_4_bits(&self) -> bool {
        self.panels.format.is_4_bit() && !self.records
    }

    fn unpacked_scales(&self) -> usize {
        if !self.unpacks_4_bits() {
            return 0;
        }
        (self.blocking.live_steps() * 4).div_ceil(self.panels.group()) * self.panels.group_scales()
    }

    /// Computes a task. Its sums are in the slot from their start to their end.
    fn task(&self, mut task: Task<'_>, slot: &mut [f32]) {
        let width = self.panels.width;
        let (sums, unpacked) = slot.split_at_mut(self.blocking.live_rows() * width);
        for steps in self.blocking.step_blocks() {
            let block = self.block(task.weights, task.scales, &steps, unpacked);
            for tile in self.blocking.row_tiles(task.rows.len()) {
                // Without blocks of steps, one tile's sums are alive at a time.
                let at = if self.panels.steps() > steps.len() { tile.start } else { 0 };
                let sums = &mut sums[at * width..][..tile.len() * width];
                self.tile(&mut task, &steps, block, &tile, sums);
            }
        }
    }

    /// Goes on with the sums of some rows of a task, and after the last step brings them to their end.
    fn tile(
        &self,
        task: &mut Task<'_>,
        steps: &Range<usize>,
        block: Block<'_>,
        tile: &Range<usize>,
        sums: &mut [f32],
    ) {
        let last = steps.end == self.panels.steps();
        if steps.start == 0 {
            task.ends.load(tile, sums, self.panels.width);
        }
        match (self.tile_args(task, steps, block, tile, sums), &self.generated) {
            (None, _) if task.ends.resumes() => {}
            (None, _) => sums.fill(0.0),
            (Some(args), Some(generated)) => {
                if self.generated_tile(generated, &args, last, task, tile) {
                    return;
                }
            }
            // SAFETY: the CPU has this table's tier, and `tile_args` describes memory that is there.
            (Some(args), None) => unsafe { self.run_tile(&args) },
        }
        if last {
            self.finish(task, tile, sums);
        }
    }

    fn table_tile(&self) -> unsafe fn(&TileArgs) {
        let table = self.kernels.table();
        if self.records { table.tile_4_bit } else { table.tile(self.form.kind) }
    }

    /// The panel at a block of steps, unpacked if need be, and the scales of its groups.
    fn block<'s>(
        &self,
        weights: &'s [u8],
        scales: &'s [f32],
        steps: &Range<usize>,
        unpacked: &'s mut [f32],
    ) -> Block<'s> {
        let stored = &weights[self.panels.stored(steps)];
        let format = self.panels.format;
        let (wide, wide_scales) = unpacked.split_at_mut(self.unpacked_steps() * self.panels.width);
        if format == WeightFormat::F16 && !stored.is_empty() {
            let wide = &mut wide[..steps.len() * self.panels.width];
            self.kernels.widen_f16(bytemuck::cast_slice(stored), wide);
            return Block { steps: bytemuck::cast_slice(wide), scales };
        }
        if self.widens_bf16() && !stored.is_empty() {
            let wide = &mut wide[..steps.len() * 2 * self.panels.width];
            self.widen_strips(bytemuck::cast_slice(stored), wide);
            return Block { steps: bytemuck::cast_slice(wide), scales };
        }
        if self.unpacks_4_bits() {
            let wide = bytemuck::cast_slice_mut(&mut wide[..steps.len() * self.panels.width]);
            self.panels.unpack_records(&self.kernels, stored, wide, wide_scales);
            return Block { steps: wide, scales: wide_scales };
        }
        let scales = if format.group().is_some() && !self.records {
            &scales[steps.start * 4 / self.panels.group() * self.panels.group_scales()..]
        } else {
            scales
        };
        Block { steps: stored, scales }
    }

    /// Widens a block of bf16 to steps of f32, strip after strip.
    fn widen_strips(&self, block: &[bf16], wide: &mut [f32]) {
        let (line, strip) = (2 * self.panels.width, 2 * self.strip());
        let strips = self.panels.width / self.strip();
        for (i, wide) in wide.chunks_exact_mut(wide.len() / strips).enumerate() {
            for (pairs, wide) in block.chunks_exact(line).zip(wide.chunks_exact_mut(strip)) {
                let (first, second) = wide.split_at_mut(strip / 2);
                self.kernels.deinterleave_bf16(&pairs[i * strip..][..strip], first, second);
            }
        }
    }

    /// Columns of a widened block that lie together.
    fn strip(&self) -> usize {
        self.kernels.table().tile_f32_strip.min(self.panels.width)
    }

    /// Adds to the sums of a tile, all columns at once or strip after strip.
    ///
    /// # Safety
    /// The CPU has this table's tier; what `args` describes is there, a widened block in strips.
    unsafe fn run_tile(&self, args: &TileArgs) {
        let width = if self.widens_bf16() { self.strip() } else { args.width };
        for column in (0..args.width).step_by(width) {
            let w = args.w.wrapping_add(column * args.steps * 4);
            let sums = args.sums.wrapping_add(column);
            // SAFETY: the caller's promises; a strip is as many steps of so many columns.
            unsafe { (self.table_tile())(&TileArgs { w, sums, width, ..*args }) }
        }
    }

    /// The tile that adds the products of a block of steps to the sums of some rows of a task; none if
    /// there are no steps. `a` has these rows over all steps, because `Input` covers the product;
    /// block and sums are as checked here; scales and offsets exist for every row and group.
    fn tile_args(
        &self,
        task: &Task<'_>,
        steps: &Range<usize>,
        block: Block<'_>,
        tile: &Range<usize>,
        sums: &mut [f32],
    ) -> Option<TileArgs> {
        let (width, count, first) = (self.panels.width, tile.len(), task.rows.start + tile.start);
        let most = if self.records {
            self.kernels.table().tile_4_bit_rows
        } else {
            self.kernels.table().tile_rows(self.form.kind)
        };
        assert!(count <= most, "a tile of {count} rows");
        assert!(
            block.steps.len() == self.block_bytes(steps) && sums.len() == count * width,
            "a tile of {count} rows over {} bytes of weights with {} sums",
            block.steps.len(),
            sums.len()
        );
        if steps.is_empty() {
            return None;
        }
        let (mut t, int8) = (self.empty_tile(steps), self.form.kind == TileKind::Int8);
        t.a = self.input.row(first, steps.start * self.form.step_words);
        t.w = block.steps.as_ptr();
        t.sums = sums.as_mut_ptr();
        t.resume = steps.start > 0 || task.ends.resumes();
        t.rows = count;
        if int8 {
            let group = 4 * steps.start / self.form.group;
            (t.a_scales, t.a_offsets) = self.input.scale(first, group);
            if let (Some(weight_group), false) = (self.panels.format.group(), self.records) {
                let groups = (4 * steps.len()).div_ceil(weight_group);
                t.w_scales = block.scales[..groups * t.w_stride].as_ptr();
            }
        }
        let (share, lines) = self.prefetch(steps, task.rows.len());
        // Tiles start at multiples of their rows, but for the last one, which may start some rows before.
        let before = first.div_ceil(self.blocking.tile_rows);
        t.prefetch = self.next_block(task, steps, block).wrapping_add(before * share);
        t.prefetch_lines = lines;
        Some(t)
    }

    /// What is read after a block of steps; after the last one, the first one of the next panel.
    fn next_block(&self, task: &Task<'_>, steps: &Range<usize>, block: Block<'_>) -> *const u8 {
        if steps.end < self.panels.steps() {
            block.steps.as_ptr().wrapping_add(block.steps.len())
        } else {
            task.weights.as_ptr().wrapping_add(self.w.panel_stride())
        }
    }

    /// Bytes of the next block of steps that a tile prefetches, and lines of them for each round: the tiles
    /// share it. Blocks that are unpacked are copied before use, which reads ahead.
    fn prefetch(&self, steps: &Range<usize>, block_rows: usize) -> (usize, usize) {
        if !self.blocking.prefetch || self.unpacked_steps() > 0 {
            return (0, 0);
        }
        let tiles = block_rows.div_ceil(self.blocking.tile_rows);
        let share = self.block_bytes(steps) / tiles / 64 * 64;
        (share, (share / 64).div_ceil(steps.len().div_ceil(PREFETCH_STEPS)))
    }

    /// Bytes of a block of steps as tiles read it.
    fn block_bytes(&self, steps: &Range<usize>) -> usize {
        if self.records {
            self.panels.stored(steps).len()
        } else {
            steps.len() * self.form.tile_steps * self.panels.width * 4
        }
    }

    /// What all tiles of a block of steps have in common.
    fn empty_tile(&self, steps: &Range<usize>) -> TileArgs {
        TileArgs {
            a: std::ptr::null(),
            a_stride: self.input.stride,
            w: std::ptr::null(),
            steps: steps.len() * self.form.tile_steps,
            sums: std::ptr::null_mut(),
            sums_stride: self.panels.width,
            resume: false,
            rows: 0,
            width: self.panels.width,
            prefetch: std::ptr::null(),
            prefetch_lines: 0,
            a_scales: std::ptr::null(),
            a_offsets: std::ptr::null(),
            a_groups: self.input.stride / size_of::<f32>(),
            group_steps: self.form.group / 4,
            w_scales: std::ptr::null(),
            w_stride: self.panels.group_scales(),
            w_shift: self.form.weight_shift(&self.panels),
            has_min: self.panels.format.has_min(),
            four_bits: if self.records { self.panels.format.four_bits() } else { FourBits::default() },
        }
    }

    /// Brings the sums of some rows of a task to their end.
    fn finish(&self, task: &mut Task<'_>, tile: &Range<usize>, sums: &mut [f32]) {
        let rows = tile.clone().zip(sums.chunks_exact_mut(self.panels.width));
        match &mut task.ends {
            Ends::Sums { sums: out, .. } => {
                let cols = out.cols();
                rows.for_each(|(i, sums)| out.row_mut(i).copy_from_slice(&sums[..cols]));
            }
            Ends::Result { c, .. } => {
                let mut epilogue = self.row_epilogue(task.scales, &task.cols);
                for (i, sums) in rows {
                    epilogue.multiply = self.epilogue.multiplier(task.rows.start + i, task.cols.clone());
                    let out = match c {
                        ActMut::F32(c) => RowMut::F32(c.row_mut(i)),
                        ActMut::Bf16(c) => RowMut::Bf16(c.row_mut(i)),
                    };
                    // SAFETY: the CPU has this table's tier.
                    unsafe { (self.kernels.table().finish_row)(sums, &epilogue, out) }
                }
            }
        }
    }

    /// What the rows of a panel, with these columns of the output, have in common.
    fn row_epilogue<'r>(&'r self, scales: &'r [f32], cols: &Range<usize>) -> RowEpilogue<'r> {
        let (bias, half) = (self.epilogue.bias.unwrap_or_default(), self.panels.n / 2);
        let part = |start: usize| if bias.is_empty() { bias } else { &bias[start..][..cols.len()] };
        let paired = self.panels.paired;
        RowEpilogue {
            scales: if self.panels.format.is_per_output() { scales } else { &[] },
            half: self.panels.result_width(),
            paired,
            bias: part(cols.start),
            up_bias: if paired { part(half + cols.start) } else { &[] },
            activation: self.epilogue.activation,
            multiply: epilogue::RowRef::None,
            accumulate: self.epilogue.accumulate,
        }
    }
}
