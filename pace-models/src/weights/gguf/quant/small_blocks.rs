//! Blocks of 32 numbers with a scale each, as integers.
//!
//! The low nibbles of 16 bytes are the first half of the block, the high nibbles the second.

use super::{ScaleAndMin, f16_at};

/// `{f16 d, u8 q[16]}`: d * (q - 8).
pub(super) fn q4_0(block: &[u8; 18], codes: &mut [u8; 32]) -> [f32; 1] {
    nibbles(&block[2..], codes, |q| q);
    [f16_at(block, 0)]
}

/// `{f16 d, f16 m, u8 q[16]}`: d * q + m.
pub(super) fn q4_1(block: &[u8; 20], codes: &mut [u8; 32]) -> [ScaleAndMin; 1] {
    nibbles(&block[4..], codes, |q| q);
    [(f16_at(block, 0), f16_at(block, 2))]
}

/// `{f16 d, u32 high, u8 q[16]}`: d * (q - 16); bit j of `high` is the fifth bit of number j.
pub(super) fn q5_0(block: &[u8; 22], codes: &mut [u8; 32]) -> [f32; 1] {
    five_bits(&block[2..], codes, |q| q + (128 - 16));
    [f16_at(block, 0)]
}

/// `{f16 d, f16 m, u32 high, u8 q[16]}`: d * q + m; `high` as in Q5_0.
pub(super) fn q5_1(block: &[u8; 24], codes: &mut [u8; 32]) -> [ScaleAndMin; 1] {
    five_bits(&block[4..], codes, |q| q);
    [(f16_at(block, 0), f16_at(block, 2))]
}

/// `{f16 d, i8 q[32]}`: d * q.
pub(super) fn q8_0(block: &[u8; 34], codes: &mut [u8; 32]) -> [f32; 1] {
    for (code, q) in codes.iter_mut().zip(&block[2..]) {
        *code = q ^ 0x80;
    }
    [f16_at(block, 0)]
}

/// `{f16 d, u8 q[16]}`: d * LEVELS\[q\].
pub(super) fn iq4_nl(block: &[u8; 18], codes: &mut [u8; 32]) -> [f32; 1] {
    /// Denser around zero, where most weights are.
    const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    nibbles(&block[2..], codes, |q| LEVELS[usize::from(q & 15)].cast_unsigned() ^ 0x80);
    [f16_at(block, 0)]
}

/// `{u8 e, u8 q[16]}`: 2^(e - 127) times the number E2M1 of q. An exponent of 255 is not a number.
pub(super) fn mxfp4(block: &[u8; 17], codes: &mut [u8; 32]) -> [f32; 1] {
    /// 2^-127, which is too small for an exponent of its own in f32.
    const SMALLEST: u32 = 1 << 22;
    nibbles(&block[1..], codes, |q| q);
    [match block[0] {
        0 => f32::from_bits(SMALLEST),
        255 => f32::NAN,
        e => f32::from_bits(u32::from(e) << 23),
    }]
}

/// `code` of every nibble of the 16 bytes `q`.
fn nibbles(q: &[u8], codes: &mut [u8; 32], code: impl Fn(u8) -> u8) {
    let (low, high) = codes.split_at_mut(16);
    for ((&q, low), high) in q.iter().zip(low).zip(high) {
        *low = code(q & 15);
        *high = code(q >> 4);
    }
}

/// `code` of every number of `{u32 high, u8 q[16]}`.
fn five_bits(block: &[u8], codes: &mut [u8; 32], code: impl Fn(u8) -> u8) {
    let fifths = u32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    let fifth = |j: usize| ((fifths >> j & 1) as u8) << 4;
    let (low, high) = codes.split_at_mut(16);
    for (j, ((&q, low), high)) in block[4..].iter().zip(low).zip(high).enumerate() {
        *low = code(q & 15 | fifth(j));
        *high = code(q >> 4 | fifth(j + 16));
    }
}
