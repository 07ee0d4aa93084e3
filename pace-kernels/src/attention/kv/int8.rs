//! Int8 blocks: rows of keys and values, rotated, to integers and a scale each, and back.
//!
//! Rotation spreads what a few dimensions have in excess, of which keys have much, over the others, so that the largest element, which
//! the error is in proportion to, is smaller: see `generic/rotate.rs`. A head row is rotated by itself.

use pulp::Scalar;

use super::{KV_BLOCK, KvLayout, TILE, append_keys, append_value_pairs};
use crate::generic::quantize::{self, Scale};
use crate::generic::rotate;
use crate::{Element, MatRef};

/// The scales of a block's keys, and those of its values.
pub(crate) type Scales = [[f32; KV_BLOCK]; 2];

/// Bytes of the scales, before the keys: whole cache lines.
pub(super) const SCALE_BYTES: usize = size_of::<Scales>();

/// The scales and the elements of a block. Its bytes may lie anywhere, so the scales are copied.
#[inline(always)]
pub(crate) fn split_scales(block: &[i8]) -> (Scales, &[i8]) {
    let (bytes, elements) = block.split_at(SCALE_BYTES);
    let mut scales = [[0.0; KV_BLOCK]; 2];
    bytemuck::cast_slice_mut(scales.as_flattened_mut()).copy_from_slice(bytes);
    (scales, elements)
}

/// See [`KvLayout::append_rows`].
pub(super) fn append<E: Element>(
    layout: &KvLayout,
    block: &mut [i8],
    first: usize,
    k: MatRef<'_, E>,
    v: MatRef<'_, E>,
) {
    let (scales, elements) = block.split_at_mut(SCALE_BYTES);
    let (k_scales, v_scales) = scales.split_at_mut(SCALE_BYTES / 2);
    let (keys, values) = elements.split_at_mut(layout.k_len());
    let inverses = append_scales(k_scales, first, k);
    for (piece, keys) in keys.chunks_mut(rotate::BLOCK * KV_BLOCK).enumerate() {
        let start = piece * rotate::BLOCK;
        let dims = start..k.cols().min(start + rotate::BLOCK);
        for start in (0..k.rows()).step_by(TILE) {
            let tokens = TILE.min(k.rows() - start);
            let mut tile = [[0.0; rotate::BLOCK]; TILE];
            for (i, row) in tile[..tokens].iter_mut().enumerate() {
                rotated(&k.row(start + i)[dims.clone()], row);
            }
            let tile = MatRef::with_stride(tile.as_flattened(), tokens, dims.len(), rotate::BLOCK);
            append_keys::<2, i8, f32>(keys, first + start, tile, |row, src, dst| {
                quantize(src, inverses[start + row], dst);
            });
        }
    }
    let inverses = append_scales(v_scales, first, v);
    layout.v_groups().for_each(|group| {
        append_value_pairs(values, &group, first, v, |row, src, dst| {
            // A group of values is a block of the rotation.
            quantize(rotated(src, &mut [0.0; rotate::BLOCK]), inverses[row], dst);
        });
    });
    let end = first + v.rows();
    if !end.is_multiple_of(2) {
        // The partner's value is zero whatever its scale was before: NaN would not be.
        set_scale(v_scales, end, 0.0);
    }
}

/// A block of a row, or what follows its last whole one, rotated.
fn rotated<'a, E: Element>(src: &[E], out: &'a mut [f32; rotate::BLOCK]) -> &'a [f32] {
    let out = &mut out[..src.len()];
    out.iter_mut().zip(src).for_each(|(out, x)| *out = x.to_f32());
    rotate::rotate(Scalar, out);
    out
}

/// Stores the scales of rows in the slots from `first` on. Gives what each row is multiplied by; nothing for a row of
/// zeros, and for one that is not finite, whose scale says so.
fn append_scales<E: Element>(
    scales: &mut [i8],
    first: usize,
    rows: MatRef<'_, E>,
) -> [Option<f32>; KV_BLOCK] {
    let mut inverses = [None; KV_BLOCK];
    for (i, row_inverse) in inverses.iter_mut().enumerate().take(rows.rows()) {
        let largest = rows.row(i).chunks(rotate::BLOCK).fold(0, |largest, src| {
            let mut block = [0.0; rotate::BLOCK];
            rotated(src, &mut block).iter().fold(largest, |largest, &x| largest.max(quantize::magnitude(x)))
        });
        let scale = match Scale::of(largest) {
            Scale::Factor { scale, inverse } => {
                *row_inverse = Some(inverse);
                scale
            }
            Scale::Degenerate(scale) => scale,
        };
        set_scale(scales, first + i, scale);
    }
    inverses
}

fn set_scale(scales: &mut [i8], slot: usize, scale: f32) {
    scales.as_chunks_mut::<{ size_of::<f32>() }>().0[slot] = bytemuck::cast(scale);
}

fn quantize(src: &[f32], inverse: Option<f32>, dst: &mut [i8]) {
    match inverse {
        Some(inverse) => dst.iter_mut().zip(src).for_each(|(q, &x)| *q = quantize::value(x, inverse)),
        None => dst.fill(0),
    }
}

/// See [`KvLayout::unpack_k`].
pub(super) fn unpack_k(layout: &KvLayout, block: &[i8], tokens: usize, out: &mut [f32]) {
    let ([scales, _], elements) = split_scales(block);
    let pairs = elements[..layout.k_len()].chunks_exact(2 * KV_BLOCK);
    for (pair, out) in pairs.zip(out.chunks_mut(2 * KV_BLOCK)) {
        for (half, out) in out.chunks_exact_mut(KV_BLOCK).enumerate() {
            let words = pair.as_chunks::<2>().0;
            for ((x, word), scale) in out[..tokens].iter_mut().zip(words).zip(&scales) {
                *x = f32::from(word[half]) * scale;
            }
        }
    }
    for block in out.chunks_mut(rotate::BLOCK * KV_BLOCK) {
        for token in 0..tokens {
            let mut key = [0.0; rotate::BLOCK];
            let key = &mut key[..block.len() / KV_BLOCK];
            key.iter_mut().zip(block.chunks_exact(KV_BLOCK)).for_each(|(x, row)| *x = row[token]);
            rotate::rotate(Scalar, key);
            key.iter().zip(block.chunks_exact_mut(KV_BLOCK)).for_each(|(x, row)| row[token] = *x);
        }
    }
}

/// See [`KvLayout::unpack_v`].
pub(super) fn unpack_v(layout: &KvLayout, block: &[i8], out: &mut [f32]) {
    let ([_, scales], elements) = split_scales(block);
    let values = &elements[layout.k_len()..];
    for group in layout.v_groups() {
        for (slot, out) in out.chunks_exact_mut(layout.head_dim).enumerate() {
            let pair = &values[group.start + slot / 2 * 2 * group.width..][..2 * group.width];
            for (x, word) in out[group.dims.clone()].iter_mut().zip(pair.as_chunks::<2>().0) {
                *x = f32::from(word[slot % 2]) * scales[slot];
            }
            rotate::rotate(Scalar, &mut out[group.dims.clone()]);
        }
    }
}
