//! Blocks of 256 numbers ("K-quants"), as integers: an f16 scale over all of them, and small integer scales over groups
//! of 16 or 32.
//!
//! Where numbers are spread over bits, 32 neighbours of them are the same bits of 32 neighbouring bytes.

use std::array::from_fn;

use super::{ScaleAndMin, f16_at};

/// `{u4 scale and minimum[16], u2 q[256], f16 d, f16 m}`: d * scale * q - m * minimum, in groups of 16.
pub(super) fn q2_k(block: &[u8; 84], codes: &mut [u8; 256]) -> [ScaleAndMin; 16] {
    let (scales, q) = block[..80].split_at(16);
    let (d, m) = (f16_at(block, 80), f16_at(block, 82));
    for (group, codes) in codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (q, shift) = crumbs(q, group);
        for (code, q) in codes.iter_mut().zip(q) {
            *code = q >> shift & 3;
        }
    }
    from_fn(|group| (d * f32::from(scales[group] & 15), -(m * f32::from(scales[group] >> 4))))
}

/// `{u1 high[256], u2 q[256], u6 scale[16], f16 d}`: d * (scale - 32) * (q - 4), in groups of 16, where `high` is
/// the third bit of q.
pub(super) fn q3_k(block: &[u8; 110], codes: &mut [u8; 256]) -> [f32; 16] {
    let (thirds, rest) = block.split_at(32);
    let (q, rest) = rest.split_at(64);
    let (d, scales) = (f16_at(block, 108), &rest[..12]);
    for (group, codes) in codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (q, shift) = crumbs(q, group);
        let thirds = &thirds[group % 2 * 16..][..16];
        for ((code, q), third) in codes.iter_mut().zip(q).zip(thirds) {
            *code = (q >> shift & 3 | (third >> (group / 2) & 1) << 2) + (128 - 4);
        }
    }
    from_fn(|group| {
        // The low four bits of the scales fill 8 bytes like the nibbles of a small block; four more bytes hold
        // the high two bits of the scales 0 to 3, 4 to 7, and so on.
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        d * (f32::from(low | high << 4) - 32.0)
    })
}

/// `{f16 d, f16 m, u6 scale and minimum[8], u4 q[256]}`: d * scale * q - m * minimum, in groups of 32.
pub(super) fn q4_k(block: &[u8; 144], codes: &mut [u8; 256]) -> [ScaleAndMin; 8] {
    let (scales, q) = block[4..].split_at(12);
    for (group, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let shift = group % 2 * 4;
        for (code, q) in codes.iter_mut().zip(&q[group / 2 * 32..]) {
            *code = q >> shift & 15;
        }
    }
    from_fn(|group| scale_and_minimum(block, scales, group))
}

/// `{f16 d, f16 m, u6 scale and minimum[8], u1 high[256], u4 q[256]}`: as Q4_K, where `high` is the fifth bit of q.
pub(super) fn q5_k(block: &[u8; 176], codes: &mut [u8; 256]) -> [ScaleAndMin; 8] {
    let (scales, rest) = block[4..].split_at(12);
    let (fifths, q) = rest.split_at(32);
    for (group, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let shift = group % 2 * 4;
        for ((code, q), fifth) in codes.iter_mut().zip(&q[group / 2 * 32..]).zip(fifths) {
            *code = q >> shift & 15 | (fifth >> group & 1) << 4;
        }
    }
    from_fn(|group| scale_and_minimum(block, scales, group))
}

/// `{u4 low[256], u2 high[256], i8 scale[16], f16 d}`: d * scale * (q - 32), in groups of 16.
pub(super) fn q6_k(block: &[u8; 210], codes: &mut [u8; 256]) -> [f32; 16] {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (d, scales) = (f16_at(block, 208), &rest[..16]);
    for (group, codes) in codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // 64 bytes hold 128 numbers: their low nibbles the first 64 of them.
        let low = &low[group / 8 * 64 + group % 4 * 16..];
        let low_shift = group / 4 % 2 * 4;
        let (high, high_shift) = crumbs(high, group);
        for ((code, low), high) in codes.iter_mut().zip(low).zip(high) {
            *code = (low >> low_shift & 15 | (high >> high_shift & 3) << 4) + (128 - 32);
        }
    }
    from_fn(|group| d * f32::from(scales[group].cast_signed()))
}

/// `{f32 d, i8 q[256], i16 sum[16]}`: d * q. The sums of the groups of 16 serve ggml's dot products.
pub(super) fn q8_k(block: &[u8; 292], codes: &mut [u8; 256]) -> [f32; 1] {
    for (code, q) in codes.iter_mut().zip(&block[4..]) {
        *code = q ^ 0x80;
    }
    [f32::from_le_bytes([block[0], block[1], block[2], block[3]])]
}

/// Where the two-bit numbers of a group of 16 are: in which bytes, and from which bit on. 32 bytes hold 128
/// numbers, the first 32 of them in the lowest bits.
fn crumbs(bytes: &[u8], group: usize) -> (&[u8], usize) {
    (&bytes[group / 8 * 32 + group % 2 * 16..][..16], group / 2 % 4 * 2)
}

/// Scale and minimum of a group of 32, times those of the whole block, which starts with them. The minimum is stored
/// as what is subtracted.
///
/// Of the twelve bytes, bytes 0 to 3 hold the scales 0 to 3 and bytes 4 to 7 the minima 0 to 3 in their low six
/// bits; bytes 8 to 11 hold the low nibbles of the scales and minima 4 to 7, whose high two bits are those of
/// bytes 0 to 7.
fn scale_and_minimum(block: &[u8], scales: &[u8], group: usize) -> ScaleAndMin {
    let (scale, minimum) = if group < 4 {
        (scales[group] & 63, scales[group + 4] & 63)
    } else {
        let low = scales[group + 4];
        (low & 15 | scales[group - 4] >> 6 << 4, low >> 4 | scales[group] >> 6 << 4)
    };
    (f16_at(block, 0) * f32::from(scale), -(f16_at(block, 2) * f32::from(minimum)))
}
