//! Weights in panels, the order that the tiles of [`Kernels::gemm`](crate::Kernels::gemm) read.
//!
//! A panel holds `width` outputs. Its inputs come in steps of 4 bytes an output: `[steps][width]`, where
//! a step is one f32, two bf16 (the pairs of `vdpbf16ps`) or four int8 (the quads of `vpdpbusd`). An f16
//! step is one f16 of 2 bytes: it is widened before use. Int8 weights are stored as q + 128, because
//! `vpdpbusd` multiplies unsigned by signed. Outputs and inputs that do not exist are zero. Scales of int8 lie behind the
//! panel's steps, `[groups][width]` (with minima `[groups][2][width]`); weights of 4 bits lie in records of a group each, see
//! `four_bits`.
//!
//! Packing, and reading back, goes through blocks of 32 steps: for each, all outputs of the panel are written while the
//! block's few cache lines stay in L1. Going through the inputs of one output at a time instead misses
//! the cache at every store; rounding element by element instead of by vectors took three times as long.

use std::ops::Range;

use half::f16;

use super::{CodeRows, Rounding, WeightFormat};
use crate::Kernels;

/// Steps that are stored or read back at a time: 32 steps of 64 columns, and the lines of 64 rows that they
/// come from or go to, stay in L1.
const BLOCK: usize = 32;

/// Where things lie in a matrix that is stored in panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Panels {
    pub(crate) format: WeightFormat,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) width: usize,
    pub(crate) paired: bool,
}

impl Panels {
    /// Steps along the inputs, the last one padded; with 4 bits, the last group.
    pub(crate) const fn steps(&self) -> usize {
        if self.format.is_4_bit() {
            return self.k.div_ceil(self.group()) * (self.group() / self.format.step_inputs());
        }
        self.k.div_ceil(self.format.step_inputs())
    }

    /// Number of panels.
    pub(crate) const fn count(&self) -> usize {
        if self.paired { (self.n / 2).div_ceil(self.width / 2) } else { self.n.div_ceil(self.width) }
    }

    /// Columns of a result that a panel gives, the last one's excepted.
    pub(crate) const fn result_width(&self) -> usize {
        if self.paired { self.width / 2 } else { self.width }
    }

    /// Bytes of a panel.
    pub(crate) const fn bytes(&self) -> Option<usize> {
        if self.format.is_4_bit() {
            return self.k.div_ceil(self.group()).checked_mul(self.record_bytes());
        }
        let Some(steps) = self.steps().checked_mul(self.format.step_bytes()) else { return None };
        steps.checked_mul(self.width)
    }

    /// Where some steps lie in a panel; with 4 bits, the records that they lie in.
    pub(crate) const fn stored(&self, steps: &Range<usize>) -> Range<usize> {
        if self.format.is_4_bit() {
            let record_steps = self.group() / self.format.step_inputs();
            let (first, last) = (steps.start / record_steps, steps.end.div_ceil(record_steps));
            return first * self.record_bytes()..last * self.record_bytes();
        }
        let step_bytes = self.width * self.format.step_bytes();
        steps.start * step_bytes..steps.end * step_bytes
    }

    /// Scales of a panel that lie behind its steps, minima included.
    pub(crate) const fn scales(&self) -> usize {
        match self.format {
            WeightFormat::Int8 | WeightFormat::Int8Rotated => self.width,
            WeightFormat::Int8RotatedGroup | WeightFormat::Int8Group(_) | WeightFormat::Int8Min(_) => {
                self.k.div_ceil(self.group()) * self.group_scales()
            }
            _ => 0,
        }
    }

    /// Numbers of a group of all outputs of a panel: scales, and minima.
    pub(crate) const fn group_scales(&self) -> usize {
        if self.format.has_min() { 2 * self.width } else { self.width }
    }

    /// The rows of the matrix in a panel: for each run of rows, the panel's column that the first one has.
    pub(crate) fn rows(&self, panel: usize) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let (half, width) = (self.n / 2, self.result_width());
        let run = move |start: usize, end: usize| {
            start + (panel * width).min(end - start)..end.min(start + (panel + 1) * width)
        };
        let runs = if self.paired {
            [(0, run(0, half)), (width, run(half, self.n))]
        } else {
            [(0, run(0, self.n)), (0, 0..0)]
        };
        runs.into_iter().filter(|(_, rows)| !rows.is_empty())
    }

    /// The panel of a row, and its column there.
    pub(crate) const fn place(&self, row: usize) -> (usize, usize) {
        let (width, half) = (self.result_width(), self.n / 2);
        if self.paired && row >= half {
            ((row - half) / width, width + (row - half) % width)
        } else {
            (row / width, row % width)
        }
    }

    /// Stores `rows` (each of k weights, in f32) as the columns from `column` on of a panel, which is
    /// zeroed memory. `scales` are the panel's.
    pub(crate) fn store(
        &self,
        kernels: &Kernels,
        column: usize,
        rows: &[f32],
        panel: &mut [u8],
        scales: &mut [f32],
    ) {
        match self.format {
            WeightFormat::F32 => {
                self.store_steps(column, rows, 1, bytemuck::cast_slice_mut::<_, u32>(panel), |row, out| {
                    bytemuck::cast_slice_mut(out).copy_from_slice(row);
                });
            }
            WeightFormat::F16 => {
                self.store_steps(column, rows, 1, bytemuck::cast_slice_mut::<_, u16>(panel), |row, out| {
                    kernels.narrow::<f16>(row, bytemuck::cast_slice_mut(out));
                });
            }
            WeightFormat::Bf16 => {
                self.store_steps(column, rows, 2, bytemuck::cast_slice_mut::<_, u32>(panel), |row, out| {
                    kernels.narrow_bf16(row, &mut bytemuck::cast_slice_mut(out)[..row.len()]);
                });
            }
            _ => {
                let groups = self.groups() * (rows.len() / self.k);
                let (mut codes, mut own_scales) = (vec![0; rows.len()], vec![0.0; groups]);
                let mut mins = vec![0.0; if self.format.has_min() { groups } else { 0 }];
                let mut out = CodeRows { codes: &mut codes, scales: &mut own_scales, mins: &mut mins };
                kernels.quantize_weights(self.format, self.k, rows, Rounding::Nearest, &mut out);
                self.store_codes(column, &out, panel, scales);
            }
        }
    }

    /// Stores rows of integers as the columns from `column` on of a panel, which is zeroed memory.
    pub(crate) fn store_codes(
        &self,
        column: usize,
        rows: &CodeRows<'_>,
        panel: &mut [u8],
        scales: &mut [f32],
    ) {
        if self.format.is_4_bit() {
            return self.store_records(column, rows, panel);
        }
        let groups = self.groups();
        for (j, row_scales) in rows.scales.chunks_exact(groups).enumerate() {
            for (g, &scale) in row_scales.iter().enumerate() {
                scales[g * self.group_scales() + column + j] = scale;
            }
        }
        for (j, row_mins) in rows.mins.chunks_exact(groups).enumerate() {
            for (g, &min) in row_mins.iter().enumerate() {
                scales[g * self.group_scales() + self.width + column + j] = min;
            }
        }
        let steps = bytemuck::cast_slice_mut::<_, u32>(panel);
        self.store_steps(column, rows.codes, 4, steps, |row, out| {
            let out: &mut [u8] = bytemuck::cast_slice_mut(out);
            out[row.len()..].fill(self.format.zero());
            out[..row.len()].copy_from_slice(row);
        });
    }

    /// Stores steps, each a `T` of some `inputs` of a row. `encode(inputs, steps)` fills steps that are 0.
    fn store_steps<W, T: bytemuck::Pod>(
        &self,
        column: usize,
        rows: &[W],
        inputs: usize,
        panel: &mut [T],
        encode: impl Fn(&[W], &mut [T]),
    ) {
        for (block, panel) in panel.chunks_mut(BLOCK * self.width).enumerate() {
            for (j, row) in rows.chunks_exact(self.k).enumerate() {
                let row = &row[block * BLOCK * inputs..self.k.min((block + 1) * BLOCK * inputs)];
                let mut steps = [T::zeroed(); BLOCK];
                let steps = &mut steps[..row.len().div_ceil(inputs)];
                encode(row, steps);
                for (line, &step) in panel.chunks_exact_mut(self.width).zip(&*steps) {
                    line[column + j] = step;
                }
            }
        }
    }

    /// Inputs that share a scale.
    pub(crate) const fn group(&self) -> usize {
        match self.format.group() {
            Some(group) => group,
            None if self.k == 0 => 1,
            None => self.k,
        }
    }

    /// Groups of a row.
    pub(crate) const fn groups(&self) -> usize {
        self.k.div_ceil(self.group())
    }

    /// The panels of some rows: for each run of rows that lie side by side in one, the panel, the column
    /// there that the first one has, and the rows.
    pub(crate) fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, usize, Range<usize>)> {
        let (width, half) = (self.result_width(), self.n / 2);
        let mut next = rows.start;
        std::iter::from_fn(move || {
            let start = next;
            let (panel, column) = self.place(start);
            let matrix_end = if self.paired && start < half { half } else { self.n };
            next = rows.end.min(matrix_end).min(start + width - column % width);
            (start < rows.end).then_some((panel, column, start..next))
        })
    }

    /// Reads the columns from `column` on of a panel back: `out` has k elements for each.
    pub(crate) fn load(
        &self,
        kernels: &Kernels,
        column: usize,
        panel: &[u8],
        scales: &[f32],
        out: &mut [f32],
    ) {
        if panel.is_empty() {
            return;
        }
        match self.format {
            WeightFormat::F32 => {
                self.load_steps(column, bytemuck::cast_slice::<_, f32>(panel), out, |steps, _, _, row| {
                    row.copy_from_slice(steps);
                });
            }
            WeightFormat::F16 => {
                self.load_steps(column, bytemuck::cast_slice::<_, f16>(panel), out, |steps, _, _, row| {
                    kernels.widen_f16(steps, row);
                });
            }
            WeightFormat::Bf16 => {
                self.load_steps(column, bytemuck::cast_slice::<_, u32>(panel), out, |steps, _, _, row| {
                    kernels.widen_bf16(&bytemuck::cast_slice(steps)[..row.len()], row);
                });
            }
            _ if self.format.is_4_bit() => self.load_records(column, panel, out),
            _ => {
                self.load_int8(column, panel, scales, out);
                if self.format.is_rotated() {
                    out.chunks_exact_mut(self.k).for_each(|row| kernels.rotate(row));
                }
            }
        }
    }

    fn load_int8(&self, column: usize, panel: &[u8], scales: &[f32], out: &mut [f32]) {
        // A block of inputs has several whole groups, or lies in one.
        let (group, zero) = (self.group(), f32::from(self.format.zero()));
        let part = group.min(BLOCK * self.format.step_inputs());
        self.load_steps(column, bytemuck::cast_slice::<_, u32>(panel), out, |steps, j, first, row| {
            let steps: &[u8] = bytemuck::cast_slice(steps);
            for (i, (row, q)) in row.chunks_mut(part).zip(steps.chunks(part)).enumerate() {
                let at = (first + i * part) / group * self.group_scales() + column + j;
                let (scale, min) =
                    (scales[at], if self.format.has_min() { scales[at + self.width] } else { 0.0 });
                for (w, &q) in row.iter_mut().zip(q) {
                    *w = (f32::from(q) - zero) * scale + min;
                }
            }
        });
    }

    /// Reads steps, each a `T` of some inputs of a row. `decode(steps, j, first, weights)` turns those of
    /// the `j`th column into weights, from input `first` on.
    fn load_steps<T: bytemuck::Pod>(
        &self,
        column: usize,
        panel: &[T],
        out: &mut [f32],
        decode: impl Fn(&[T], usize, usize, &mut [f32]),
    ) {
        let inputs = self.format.step_inputs();
        for (block, panel) in panel.chunks(BLOCK * self.width).enumerate() {
            let first = block * BLOCK * inputs;
            for (j, row) in out.chunks_exact_mut(self.k).enumerate() {
                let mut steps = [T::zeroed(); BLOCK];
                let lines = panel.chunks_exact(self.width);
                let steps = &mut steps[..lines.len()];
                for (step, line) in steps.iter_mut().zip(lines) {
                    *step = line[column + j];
                }
                decode(steps, j, first, &mut row[first..self.k.min(first + BLOCK * inputs)]);
            }
        }
    }
}
