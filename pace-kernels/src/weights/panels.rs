//! Weights in panels, the order that the tiles of [`Kernels::gemm`](crate::Kernels::gemm) read.
//!
//! A panel holds `width` outputs. Its inputs come in steps of 4 bytes an output: `[steps][width]`, where
//! a step is one f32, two bf16 (the pairs of `vdpbf16ps`) or four int8 (the quads of `vpdpbusd`). An f16
//! step is one f16 of 2 bytes: it is widened before use. Int8 weights are stored as q + 128, because
//! `vpdpbusd` multiplies unsigned by signed. Outputs and inputs that do not exist are zero.
//!
//! Packing goes through blocks of 32 steps: for each, all outputs of the panel are written while the
//! block's few cache lines stay in L1. Going through the inputs of one output at a time instead misses
//! the cache at every store; rounding element by element instead of by vectors took three times as long.

use std::ops::Range;

use half::{bf16, f16};

use super::WeightFormat;
use crate::Kernels;

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
    /// Steps along the inputs, the last one padded.
    pub(crate) const fn steps(&self) -> usize {
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
        let Some(steps) = self.steps().checked_mul(self.format.step_bytes()) else { return None };
        steps.checked_mul(self.width)
    }

    /// Scales of a panel.
    pub(crate) const fn scales(&self) -> usize {
        match self.format {
            WeightFormat::Int8 => self.width,
            WeightFormat::Int8Group(group) => self.k.div_ceil(group) * self.width,
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16 => 0,
        }
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
            WeightFormat::Int8 | WeightFormat::Int8Group(_) => {
                self.store_int8(kernels, column, rows, panel, scales);
            }
        }
    }

    fn store_int8(
        &self,
        kernels: &Kernels,
        column: usize,
        rows: &[f32],
        panel: &mut [u8],
        scales: &mut [f32],
    ) {
        let groups = self.k.div_ceil(self.group());
        let (mut row_scales, mut sums) = (vec![0.0; groups], vec![0; groups]);
        let mut values = vec![0; rows.len()];
        for (j, (row, values)) in rows.chunks_exact(self.k).zip(values.chunks_exact_mut(self.k)).enumerate() {
            kernels.quantize_groups(row, self.group(), values, &mut row_scales, &mut sums);
            for (g, &scale) in row_scales.iter().enumerate() {
                scales[g * self.width + column + j] = scale;
            }
        }
        self.store_steps(column, &values, 4, bytemuck::cast_slice_mut::<_, u32>(panel), |row, out| {
            let out: &mut [u8] = bytemuck::cast_slice_mut(out);
            out[row.len()..].fill(0x80);
            for (out, &q) in out.iter_mut().zip(row) {
                *out = q as u8 ^ 0x80;
            }
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
        /// 32 steps of 64 columns, and the lines of 64 rows that they come from, stay in L1.
        const BLOCK: usize = 32;
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
        match self.format {
            WeightFormat::Int8Group(group) => group,
            _ => {
                if self.k == 0 {
                    1
                } else {
                    self.k
                }
            }
        }
    }

    /// Reads a column of a panel back.
    pub(crate) fn load(&self, column: usize, panel: &[u8], scales: &[f32], out: &mut [f32]) {
        let stride = self.width * self.format.step_bytes();
        let group = self.group();
        let step_bytes = self.format.step_bytes();
        let inputs = self.format.step_inputs();
        for (step, out) in out.chunks_mut(inputs).enumerate() {
            let at = step * stride + column * step_bytes;
            let bytes = &panel[at..at + step_bytes];
            for (i, w) in out.iter_mut().enumerate() {
                *w = match self.format {
                    WeightFormat::F32 => f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
                    WeightFormat::F16 => f16::from_ne_bytes([bytes[0], bytes[1]]).to_f32(),
                    WeightFormat::Bf16 => bf16::from_ne_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
                    WeightFormat::Int8 | WeightFormat::Int8Group(_) => {
                        let scale = scales[(step * inputs + i) / group * self.width + column];
                        f32::from((bytes[i] ^ 0x80) as i8) * scale
                    }
                };
            }
        }
    }
}
