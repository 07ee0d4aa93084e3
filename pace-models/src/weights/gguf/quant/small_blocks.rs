//! Blocks of 32 numbers with a scale each.
//!
//! The low nibbles of 16 bytes are the first half of the block, the high nibbles the second.

use super::f16_at;

/// `{f16 d, u8 q[16]}`: d * (q - 8).
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    nibbles(&block[2..], out, |q| d * (f32::from(q) - 8.0));
}

/// `{f16 d, f16 m, u8 q[16]}`: d * q + m, each step rounded.
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    nibbles(&block[4..], out, |q| d * f32::from(q) + m);
}

/// `{f16 d, u32 high, u8 q[16]}`: d * (q - 16); bit j of `high` is the fifth bit of number j.
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    five_bits(&block[2..], out, |q| d * (f32::from(q) - 16.0));
}

/// `{f16 d, f16 m, u32 high, u8 q[16]}`: d * q + m, each step rounded; `high` as in Q5_0.
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    five_bits(&block[4..], out, |q| d * f32::from(q) + m);
}

/// `{f16 d, i8 q[32]}`: d * q.
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (&q, out) in block[2..].iter().zip(out) {
        *out = d * f32::from(q.cast_signed());
    }
}

/// `{f16 d, u8 q[16]}`: d * LEVELS\[q\].
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    /// Denser around zero, where most weights are.
    const LEVELS: [f32; 16] = [
        -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0,
        113.0,
    ];
    let d = f16_at(block, 0);
    nibbles(&block[2..], out, |q| d * LEVELS[usize::from(q & 15)]);
}

/// `value` of every nibble of the 16 bytes `q`.
fn nibbles(q: &[u8], out: &mut [f32; 32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for ((&q, low), high) in q.iter().zip(low).zip(high) {
        *low = value(q & 15);
        *high = value(q >> 4);
    }
}

/// `value` of every number of `{u32 high, u8 q[16]}`.
fn five_bits(block: &[u8], out: &mut [f32; 32], value: impl Fn(u8) -> f32) {
    let fifths = u32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    let fifth = |j: usize| ((fifths >> j & 1) as u8) << 4;
    let (low, high) = out.split_at_mut(16);
    for (j, ((&q, low), high)) in block[4..].iter().zip(low).zip(high).enumerate() {
        *low = value(q & 15 | fifth(j));
        *high = value(q >> 4 | fifth(j + 16));
    }
}
