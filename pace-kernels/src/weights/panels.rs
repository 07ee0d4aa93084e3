//! Weights in panels, the order that the tiles of [`Kernels::gemm`](crate::Kernels::gemm) read.
//!
//! A panel holds `width` outputs. Its inputs come in steps of 4 bytes an output: `[steps][width]`, where
//! a step is one f32, two bf16 (the pairs of `vdpbf16ps`) or four int8 (the quads of `vpdpbusd`). An f16
//! step is one f16 of 2 bytes: it is widened before use. Int8 weights are stored as q + 128, because
//! `vpdpbusd` multiplies unsigned by signed. Outputs and inputs that do not exist are zero.
//!
//! Packing goes through blocks of 64 bytes of inputs: for each, all outputs of the panel are written
//! while the block's few cache lines stay in L1. Going through the inputs of one output at a time
//! instead misses the cache at every store.

use std::ops::Range;

use half::{bf16, f16};

use super::WeightFormat;

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
    pub(crate) fn store(&self, column: usize, rows: &[f32], panel: &mut [u8], scales: &mut [f32]) {
        match self.format {
            WeightFormat::F32 => self.store_steps(column, rows, panel, |_, w: [f32; 1]| w[0].to_ne_bytes()),
            WeightFormat::F16 => {
                self.store_steps(column, rows, panel, |_, w: [f32; 1]| f16::from_f32(w[0]).to_ne_bytes());
            }
            WeightFormat::Bf16 => self.store_steps(column, rows, panel, |_, w: [f32; 2]| {
                bytemuck::cast::<[u16; 2], [u8; 4]>(w.map(|w| bf16::from_f32(w).to_bits()))
            }),
            WeightFormat::Int8 | WeightFormat::Int8Group(_) => {
                self.store_int8(column, rows, panel, scales);
            }
        }
    }

    fn store_int8(&self, column: usize, rows: &[f32], panel: &mut [u8], scales: &mut [f32]) {
        let group = self.group();
        for (j, row) in rows.chunks_exact(self.k).enumerate() {
            for (g, weights) in row.chunks(group).enumerate() {
                scales[g * self.width + column + j] = int8_scale(weights);
            }
        }
        let scale_of = |j: usize, input: usize| scales[input / group * self.width + column + j];
        self.store_steps(column, rows, panel, |(j, input), w: [f32; 4]| {
            w.map(|w| (int8(w, scale_of(j, input)) as u8) ^ 0x80)
        });
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

    /// `encode((row, input), weights)` gives the bytes of a step that starts at `input`.
    fn store_steps<const INPUTS: usize, const BYTES: usize>(
        &self,
        column: usize,
        rows: &[f32],
        panel: &mut [u8],
        encode: impl Fn((usize, usize), [f32; INPUTS]) -> [u8; BYTES],
    ) {
        /// Steps in a block: 16 lines of 64 columns stay in L1.
        const BLOCK: usize = 16;
        let stride = self.width * BYTES;
        for first in (0..self.steps()).step_by(BLOCK) {
            let steps = first..self.steps().min(first + BLOCK);
            for (j, row) in rows.chunks_exact(self.k).enumerate() {
                for step in steps.clone() {
                    let inputs = &row[step * INPUTS..self.k.min((step + 1) * INPUTS)];
                    let mut weights = [0.0; INPUTS];
                    weights[..inputs.len()].copy_from_slice(inputs);
                    let at = step * stride + (column + j) * BYTES;
                    panel[at..at + BYTES].copy_from_slice(&encode((j, step * INPUTS), weights));
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

/// The scale that maps the largest magnitude to 127; 0 if all weights are 0.
fn int8_scale(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0f32, |max, w| max.max(w.abs())) / 127.0
}

/// The nearest integer to w / scale, ties to even.
fn int8(w: f32, scale: f32) -> i8 {
    if scale == 0.0 { 0 } else { (w / scale).round_ties_even() as i8 }
}
