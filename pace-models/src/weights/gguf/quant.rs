//! ggml's tensor types: ids, block sizes, and how a block becomes f32.
//!
//! A row of a tensor is a sequence of blocks, each `block_len` numbers in `block_bytes` bytes. To read another
//! type, write the function of its block and name it in its row of [`TYPES`]; nothing else knows the types.
//! The order of the operations is ggml's, so that the numbers are the same bit for bit.
//! Source: the format's public specification and ggml's block layouts.

mod small_blocks;
mod super_blocks;

use half::f16;
use half::slice::HalfFloatSliceExt;

use self::small_blocks::{iq4_nl, q4_0, q4_1, q5_0, q5_1, q8_0};
use self::super_blocks::{q2_k, q3_k, q4_k, q5_k, q6_k, q8_k};

/// Turns whole blocks into f32: `bytes.len() / block_bytes * block_len` numbers.
pub(super) type Dequantise = fn(bytes: &[u8], out: &mut [f32]);

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
    /// Absent: the type is known, so that a file that holds it can be listed, but it cannot be read.
    pub(super) dequantise: Option<Dequantise>,
}

impl GgmlType {
    /// The type with this id; ids that ggml has withdrawn (4, 5, 31 to 33, 36 to 38) are unknown.
    pub(super) fn from_id(id: u32) -> Option<&'static Self> {
        TYPES.iter().find(|kind| kind.id == id)
    }

    /// The names of the types that can be read, for messages.
    pub(super) fn readable() -> String {
        let names: Vec<_> =
            TYPES.iter().filter(|kind| kind.dequantise.is_some()).map(|kind| kind.name).collect();
        names.join(", ")
    }

    const fn new(
        id: u32,
        name: &'static str,
        block_len: usize,
        block_bytes: usize,
        dequantise: Option<Dequantise>,
    ) -> Self {
        Self { id, name, block_len, block_bytes, dequantise }
    }
}

static TYPES: [GgmlType; 34] = [
    GgmlType::new(0, "F32", 1, 4, Some(f32_le)),
    GgmlType::new(1, "F16", 1, 2, Some(f16_le)),
    GgmlType::new(2, "Q4_0", 32, 18, Some(|bytes, out| each_block(bytes, out, q4_0))),
    GgmlType::new(3, "Q4_1", 32, 20, Some(|bytes, out| each_block(bytes, out, q4_1))),
    GgmlType::new(6, "Q5_0", 32, 22, Some(|bytes, out| each_block(bytes, out, q5_0))),
    GgmlType::new(7, "Q5_1", 32, 24, Some(|bytes, out| each_block(bytes, out, q5_1))),
    GgmlType::new(8, "Q8_0", 32, 34, Some(|bytes, out| each_block(bytes, out, q8_0))),
    GgmlType::new(9, "Q8_1", 32, 36, None),
    GgmlType::new(10, "Q2_K", 256, 84, Some(|bytes, out| each_block(bytes, out, q2_k))),
    GgmlType::new(11, "Q3_K", 256, 110, Some(|bytes, out| each_block(bytes, out, q3_k))),
    GgmlType::new(12, "Q4_K", 256, 144, Some(|bytes, out| each_block(bytes, out, q4_k))),
    GgmlType::new(13, "Q5_K", 256, 176, Some(|bytes, out| each_block(bytes, out, q5_k))),
    GgmlType::new(14, "Q6_K", 256, 210, Some(|bytes, out| each_block(bytes, out, q6_k))),
    GgmlType::new(15, "Q8_K", 256, 292, Some(|bytes, out| each_block(bytes, out, q8_k))),
    GgmlType::new(16, "IQ2_XXS", 256, 66, None),
    GgmlType::new(17, "IQ2_XS", 256, 74, None),
    GgmlType::new(18, "IQ3_XXS", 256, 98, None),
    GgmlType::new(19, "IQ1_S", 256, 50, None),
    GgmlType::new(20, "IQ4_NL", 32, 18, Some(|bytes, out| each_block(bytes, out, iq4_nl))),
    GgmlType::new(21, "IQ3_S", 256, 110, None),
    GgmlType::new(22, "IQ2_S", 256, 82, None),
    GgmlType::new(23, "IQ4_XS", 256, 136, None),
    GgmlType::new(24, "I8", 1, 1, None),
    GgmlType::new(25, "I16", 1, 2, None),
    GgmlType::new(26, "I32", 1, 4, None),
    GgmlType::new(27, "I64", 1, 8, None),
    GgmlType::new(28, "F64", 1, 8, None),
    GgmlType::new(29, "IQ1_M", 256, 56, None),
    GgmlType::new(30, "BF16", 1, 2, Some(bf16_le)),
    GgmlType::new(34, "TQ1_0", 256, 54, None),
    GgmlType::new(35, "TQ2_0", 256, 66, None),
    GgmlType::new(39, "MXFP4", 32, 17, None),
    GgmlType::new(40, "NVFP4", 64, 36, None),
    GgmlType::new(41, "Q1_0", 128, 18, None),
];

/// Applies the function of one block to each.
fn each_block<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    dequantise: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        dequantise(block, out);
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
