//! ggml's tensor types: ids, block sizes, and what a block holds.
//!
//! A row of a tensor is a sequence of blocks, each `block_len` numbers in `block_bytes` bytes. To read another
//! type, write the function of its block and name it in its row of [`TYPES`]; nothing else knows the types.
//! A block of integers is unpacked into codes and scales, from which the numbers are made in ggml's order of
//! operations, so that they are the same bit for bit.
//! Source: the format's public specification and ggml's block layouts.

mod small_blocks;
mod super_blocks;

use half::f16;
use half::slice::HalfFloatSliceExt;
use pace_kernels::{CodeRows, WeightFormat};

use self::Contents::{Codes, Floats, Unread};
use self::small_blocks::{iq4_nl, mxfp4, q4_0, q4_1, q5_0, q5_1, q8_0};
use self::super_blocks::{q2_k, q3_k, q4_k, q5_k, q6_k, q8_k};
use crate::weights::codes;

/// One way of storing a tensor.
#[derive(Debug)]
pub(super) struct GgmlType {
    /// The id in the file.
    pub(super) id: u32,
    /// ggml's name.
    pub(super) name: &'static str,
    /// Numbers in a block.
    pub(super) block_len: usize,
    /// Bytes of a block.
    pub(super) block_bytes: usize,
    contents: Contents,
}

/// What the blocks of a type hold, with the function that reads whole blocks.
#[derive(Debug)]
enum Contents {
    /// Floating-point numbers.
    Floats(fn(bytes: &[u8], out: &mut [f32])),
    /// Integers with scales, which this format holds as they are.
    Codes(WeightFormat, fn(bytes: &[u8], rows: &mut CodeRows<'_>)),
    /// The type is known, so that a file that holds it can be listed, but it cannot be read.
    Unread,
}

impl GgmlType {
    /// The type with this id; ids that ggml has withdrawn (4, 5, 31 to 33, 36 to 38) are unknown.
    pub(super) fn from_id(id: u32) -> Option<&'static Self> {
        TYPES.iter().find(|kind| kind.id == id)
    }

    /// The names of the types that can be read, for messages.
    pub(super) fn readable() -> String {
        let names: Vec<_> = TYPES.iter().filter(|kind| kind.is_readable()).map(|kind| kind.name).collect();
        names.join(", ")
    }

    pub(super) const fn is_readable(&self) -> bool {
        !matches!(self.contents, Unread)
    }

    /// The format that holds the type's integers, if it has integers.
    pub(super) const fn format(&self) -> Option<WeightFormat> {
        match self.contents {
            Codes(format, _) => Some(format),
            Floats(_) | Unread => None,
        }
    }

    /// Turns whole blocks into f32: `bytes.len() / block_bytes * block_len` numbers. Of a type that cannot be read,
    /// nothing.
    pub(super) fn dequantise(&self, bytes: &[u8], out: &mut [f32]) {
        match self.contents {
            Floats(read) => read(bytes, out),
            Codes(format, unpack) => {
                let step = STEP / self.block_len;
                for (bytes, out) in
                    bytes.chunks(step * self.block_bytes).zip(out.chunks_mut(step * self.block_len))
                {
                    unpacked(format, unpack, bytes, out);
                }
            }
            Unread => {}
        }
    }

    /// Unpacks whole blocks into `rows` of the type's own format; of a type without integers, nothing.
    pub(super) fn unpack(&self, bytes: &[u8], rows: &mut CodeRows<'_>) {
        if let Codes(_, unpack) = self.contents {
            unpack(bytes, rows);
        }
    }

    const fn new(
        id: u32,
        name: &'static str,
        block_len: usize,
        block_bytes: usize,
        contents: Contents,
    ) -> Self {
        Self { id, name, block_len, block_bytes, contents }
    }
}

/// Most numbers that are unpacked on their way to f32: a few kilobytes of stack, and a multiple of every block.
const STEP: usize = 2048;
/// No group of integers with a scale is smaller.
const SMALLEST_GROUP: usize = 16;

/// A group's scale and what is added.
type ScaleAndMin = (f32, f32);

static TYPES: [GgmlType; 34] = [
    GgmlType::new(0, "F32", 1, 4, Floats(f32_le)),
    GgmlType::new(1, "F16", 1, 2, Floats(f16_le)),
    GgmlType::new(
        2,
        "Q4_0",
        32,
        18,
        Codes(WeightFormat::Int4(32), |bytes, rows| symmetric(bytes, rows, q4_0)),
    ),
    GgmlType::new(
        3,
        "Q4_1",
        32,
        20,
        Codes(WeightFormat::Int4Min(32), |bytes, rows| with_min(bytes, rows, q4_1)),
    ),
    GgmlType::new(
        6,
        "Q5_0",
        32,
        22,
        Codes(WeightFormat::Int8Group(32), |bytes, rows| symmetric(bytes, rows, q5_0)),
    ),
    GgmlType::new(
        7,
        "Q5_1",
        32,
        24,
        Codes(WeightFormat::Int8Min(32), |bytes, rows| with_min(bytes, rows, q5_1)),
    ),
    GgmlType::new(
        8,
        "Q8_0",
        32,
        34,
        Codes(WeightFormat::Int8Group(32), |bytes, rows| symmetric(bytes, rows, q8_0)),
    ),
    GgmlType::new(9, "Q8_1", 32, 36, Unread),
    GgmlType::new(
        10,
        "Q2_K",
        256,
        84,
        Codes(WeightFormat::Int8Min(16), |bytes, rows| with_min(bytes, rows, q2_k)),
    ),
    GgmlType::new(
        11,
        "Q3_K",
        256,
        110,
        Codes(WeightFormat::Int8Group(16), |bytes, rows| symmetric(bytes, rows, q3_k)),
    ),
    GgmlType::new(
        12,
        "Q4_K",
        256,
        144,
        Codes(WeightFormat::Int4Min(32), |bytes, rows| with_min(bytes, rows, q4_k)),
    ),
    GgmlType::new(
        13,
        "Q5_K",
        256,
        176,
        Codes(WeightFormat::Int8Min(32), |bytes, rows| with_min(bytes, rows, q5_k)),
    ),
    GgmlType::new(
        14,
        "Q6_K",
        256,
        210,
        Codes(WeightFormat::Int8Group(16), |bytes, rows| symmetric(bytes, rows, q6_k)),
    ),
    GgmlType::new(
        15,
        "Q8_K",
        256,
        292,
        Codes(WeightFormat::Int8Group(256), |bytes, rows| symmetric(bytes, rows, q8_k)),
    ),
    GgmlType::new(16, "IQ2_XXS", 256, 66, Unread),
    GgmlType::new(17, "IQ2_XS", 256, 74, Unread),
    GgmlType::new(18, "IQ3_XXS", 256, 98, Unread),
    GgmlType::new(19, "IQ1_S", 256, 50, Unread),
    GgmlType::new(
        20,
        "IQ4_NL",
        32,
        18,
        Codes(WeightFormat::Int8Group(32), |bytes, rows| symmetric(bytes, rows, iq4_nl)),
    ),
    GgmlType::new(21, "IQ3_S", 256, 110, Unread),
    GgmlType::new(22, "IQ2_S", 256, 82, Unread),
    GgmlType::new(23, "IQ4_XS", 256, 136, Unread),
    GgmlType::new(24, "I8", 1, 1, Unread),
    GgmlType::new(25, "I16", 1, 2, Unread),
    GgmlType::new(26, "I32", 1, 4, Unread),
    GgmlType::new(27, "I64", 1, 8, Unread),
    GgmlType::new(28, "F64", 1, 8, Unread),
    GgmlType::new(29, "IQ1_M", 256, 56, Unread),
    GgmlType::new(30, "BF16", 1, 2, Floats(bf16_le)),
    GgmlType::new(34, "TQ1_0", 256, 54, Unread),
    GgmlType::new(35, "TQ2_0", 256, 66, Unread),
    GgmlType::new(
        39,
        "MXFP4",
        32,
        17,
        Codes(WeightFormat::Mxfp4, |bytes, rows| symmetric(bytes, rows, mxfp4)),
    ),
    GgmlType::new(40, "NVFP4", 64, 36, Unread),
    GgmlType::new(41, "Q1_0", 128, 18, Unread),
];

/// Numbers of a few blocks by way of their integers.
fn unpacked(
    format: WeightFormat,
    unpack: fn(bytes: &[u8], rows: &mut CodeRows<'_>),
    bytes: &[u8],
    out: &mut [f32],
) {
    let (mut codes, mut scales) = ([0; STEP], [0.0; STEP / SMALLEST_GROUP]);
    let mut mins = scales;
    let k = out.len();
    let groups = codes::groups(format, k);
    let mut row =
        CodeRows { codes: &mut codes[..k], scales: &mut scales[..groups], mins: &mut mins[..groups] };
    unpack(bytes, &mut row);
    codes::dequantise(format, k, &row, out);
}

/// Unpacks blocks that have scales.
fn symmetric<const BYTES: usize, const LEN: usize, const GROUPS: usize>(
    bytes: &[u8],
    rows: &mut CodeRows<'_>,
    unpack: impl Fn(&[u8; BYTES], &mut [u8; LEN]) -> [f32; GROUPS],
) {
    let (codes, scales) = (rows.codes.as_chunks_mut().0, rows.scales.as_chunks_mut().0);
    for ((block, codes), scales) in bytes.as_chunks().0.iter().zip(codes).zip(scales) {
        *scales = unpack(block, codes);
    }
}

/// Unpacks blocks that have scales and minima.
fn with_min<const BYTES: usize, const LEN: usize, const GROUPS: usize>(
    bytes: &[u8],
    rows: &mut CodeRows<'_>,
    unpack: impl Fn(&[u8; BYTES], &mut [u8; LEN]) -> [ScaleAndMin; GROUPS],
) {
    let codes = rows.codes.as_chunks_mut().0;
    let groups =
        rows.scales.as_chunks_mut::<GROUPS>().0.iter_mut().zip(rows.mins.as_chunks_mut::<GROUPS>().0);
    for ((block, codes), (scales, mins)) in bytes.as_chunks().0.iter().zip(codes).zip(groups) {
        for ((scale, min), group) in scales.iter_mut().zip(mins).zip(unpack(block, codes)) {
            (*scale, *min) = group;
        }
    }
}

fn f32_le(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = f32::from_le_bytes(*bytes);
    }
}

fn f16_le(bytes: &[u8], out: &mut [f32]) {
    // In slices, because the conversion asks what the CPU can do once per call.
    const STEP: usize = 128;
    let mut halves = [f16::ZERO; STEP];
    for (out, bytes) in out.chunks_mut(STEP).zip(bytes.chunks(2 * STEP)) {
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        halves[..out.len()].convert_to_f32_slice(out);
    }
}

fn bf16_le(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

/// The scale stored at a byte of a block.
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}
