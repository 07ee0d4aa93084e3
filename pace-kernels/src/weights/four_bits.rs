//! Weights of 4 bits in panels.
//!
//! A group of inputs of a panel's outputs is one record, `{scales [width]; minima [width], if any; [group / 8][width][4]}`,
//! so that a thread reads one stream: with scales in a second one, a single row reads at 0.81 to 0.90 of the memory's speed.
//! Scales and minima are 16 bits (f16; bf16 for the powers of two of MXFP4). Of the four bytes of an output, the low nibbles
//! are the inputs 8 i to 8 i + 3 and the high ones 8 i + 4 to 8 i + 7, two steps of int8 activations: unpacking needs no
//! shuffles. A group that the inputs do not fill is padded with zeros.

use half::{bf16, f16};

use super::{CodeRows, Panels, WeightFormat};
use crate::Kernels;
use crate::gemm::tile::FourBits;

/// Doubled values of the E2M1 numbers.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Inputs that share four bytes of an output.
const STEP: usize = 8;

impl Panels {
    /// Bytes of a group's record.
    pub(crate) const fn record_bytes(&self) -> usize {
        self.group_scales() * 2 + self.group() / 2 * self.width
    }

    /// [`store_codes`](Self::store_codes) for 4 bits: record by record, so that one stays in L1 while all columns are written.
    pub(super) fn store_records(&self, column: usize, rows: &CodeRows<'_>, panel: &mut [u8]) {
        let (group, groups, head) = (self.group(), self.groups(), self.group_scales() * 2);
        for (g, record) in panel.chunks_exact_mut(self.record_bytes()).enumerate() {
            let (scales, nibbles) = record.split_at_mut(head);
            let scales: &mut [u16] = bytemuck::cast_slice_mut(scales);
            let lines: &mut [[u8; 4]] = bytemuck::cast_slice_mut(nibbles);
            for (j, codes) in rows.codes.chunks_exact(self.k).enumerate() {
                let at = column + j;
                scales[at] = self.narrow(rows.scales[j * groups + g]);
                if self.format.has_min() {
                    scales[self.width + at] = self.narrow(rows.mins[j * groups + g]);
                }
                let (whole, tail) = codes[g * group..self.k.min((g + 1) * group)].as_chunks::<STEP>();
                let mut last = [self.format.zero(); STEP];
                last[..tail.len()].copy_from_slice(tail);
                let steps = whole.iter().chain((!tail.is_empty()).then_some(&last));
                let padding = std::iter::repeat([self.format.zero() * 0x11; 4]);
                let steps = steps.map(pack).chain(padding);
                for (line, step) in lines.chunks_exact_mut(self.width).zip(steps) {
                    line[at] = step;
                }
            }
        }
    }

    /// The columns from `column` on of a panel as f32: `out` has k elements for each.
    pub(super) fn load_records(&self, column: usize, panel: &[u8], out: &mut [f32]) {
        let head = self.group_scales() * 2;
        for (j, row) in out.chunks_exact_mut(self.k).enumerate() {
            let at = column + j;
            for (row, record) in row.chunks_mut(self.group()).zip(panel.chunks_exact(self.record_bytes())) {
                let (scales, nibbles) = record.split_at(head);
                let scales: &[u16] = bytemuck::cast_slice(scales);
                let scale = self.widen(scales[at]);
                let min = if self.format.has_min() { self.widen(scales[self.width + at]) } else { 0.0 };
                for (row, line) in row.chunks_mut(STEP).zip(nibbles.chunks_exact(self.width * 4)) {
                    for (i, w) in row.iter_mut().enumerate() {
                        let nibble = line[at * 4 + i % 4] >> (i / 4 * 4) & 15;
                        *w = self.format.of_nibble(nibble) * scale + min;
                    }
                }
            }
        }
    }

    /// Whole records as steps of int8 (`[steps][width][4]`, weights as [`unpacked`](WeightFormat::unpacked)) and f32 scales (`[groups][group_scales]`).
    pub(crate) fn unpack_records(
        &self,
        kernels: &Kernels,
        records: &[u8],
        steps: &mut [u8],
        scales: &mut [f32],
    ) {
        let (head, line) = (self.group_scales() * 2, self.width * 4);
        let table = self.format.four_bits().int8;
        let steps = steps.chunks_exact_mut(self.group() / 4 * line);
        let scales = scales.chunks_exact_mut(self.group_scales());
        for ((record, steps), scales) in records.chunks_exact(self.record_bytes()).zip(steps).zip(scales) {
            let (stored, nibbles) = record.split_at(head);
            match self.format {
                WeightFormat::Mxfp4 => kernels.widen_bf16(bytemuck::cast_slice(stored), scales),
                _ => kernels.widen_f16(bytemuck::cast_slice(stored), scales),
            }
            // SAFETY: the CPU has this table's tier.
            unsafe { (kernels.table().unpack_4_bit)(nibbles, line, &table, steps) }
        }
    }

    /// A scale or a minimum as it is stored.
    fn narrow(&self, x: f32) -> u16 {
        match self.format {
            // The values of the codes are doubled.
            WeightFormat::Mxfp4 => bf16::from_f32(x * 0.5).to_bits(),
            _ => f16::from_f32(x).to_bits(),
        }
    }

    fn widen(&self, bits: u16) -> f32 {
        match self.format {
            WeightFormat::Mxfp4 => bf16::from_bits(bits).to_f32(),
            _ => f16::from_bits(bits).to_f32(),
        }
    }
}

/// Codes below 16: the first four in the low nibbles, the others in the high ones.
fn pack(codes: &[u8; STEP]) -> [u8; 4] {
    let both = u64::from_le_bytes(*codes) & 0x0f0f_0f0f_0f0f_0f0f;
    ((both | both >> 28) as u32).to_le_bytes()
}

impl WeightFormat {
    /// What a nibble means, in units of the stored scale.
    fn of_nibble(self, nibble: u8) -> f32 {
        match self {
            Self::Mxfp4 => f32::from(E2M1[usize::from(nibble)]),
            _ => f32::from(nibble) - f32::from(self.zero()),
        }
    }

    /// What nibbles mean, for a tile.
    pub(crate) fn four_bits(self) -> FourBits {
        FourBits {
            is_e2m1: self == Self::Mxfp4,
            int8: std::array::from_fn(|nibble| self.unpacked(nibble as u8)),
        }
    }

    /// A nibble as an int8 weight: with zero 128, or 0 where there is a minimum.
    fn unpacked(self, nibble: u8) -> u8 {
        match self {
            Self::Mxfp4 => E2M1[usize::from(nibble)] as u8 ^ 0x80,
            Self::Int4(_) => nibble + (128 - 8),
            _ => nibble,
        }
    }
}
