//! Int8 KV blocks to bf16 blocks.
//!
//! Loop nest: for each pair of dimensions, for 16 tokens: keys, with the scales of all tokens held throughout; then for
//! 64 dimensions, for each pair of tokens that is seen, for 16 dimensions: values. Both blocks are gone through front
//! to back, 32 elements at a time, as they lie in both in the same order.

use half::bf16;

use super::convert::nearest_bf16;
use crate::KV_BLOCK;
use crate::attention::{Unpack, split_scales};

/// Elements of a step.
const STEP: usize = 32;

/// Dimensions in a group of values.
const V_GROUP: usize = 64;

/// How a tier multiplies by scales.
pub(crate) trait Scaling: Copy {
    /// A factor for each element of a step.
    type Scales: Copy;

    /// The factors of the pairs of 16 tokens.
    fn each_twice(self, scales: &[f32; STEP / 2]) -> Self::Scales;

    /// Two factors in turns.
    fn in_turns(self, scales: [f32; 2]) -> Self::Scales;

    /// `out` is the bf16 nearest to `src * scales`, ties to even; NaN stays NaN.
    fn scale(self, src: &[i8; STEP], scales: Self::Scales, out: &mut [bf16; STEP]);
}

/// Plain loops, which the compiler turns into a tier's vectors.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Scaling for Plain {
    type Scales = [f32; STEP];

    #[inline(always)]
    fn each_twice(self, scales: &[f32; STEP / 2]) -> [f32; STEP] {
        let mut out = [0.0; STEP];
        for (out, &scale) in out.as_chunks_mut::<2>().0.iter_mut().zip(scales) {
            *out = [scale; 2];
        }
        out
    }

    #[inline(always)]
    fn in_turns(self, scales: [f32; 2]) -> [f32; STEP] {
        let mut out = [0.0; STEP];
        out.as_chunks_mut::<2>().0.fill(scales);
        out
    }

    #[inline(always)]
    fn scale(self, src: &[i8; STEP], scales: [f32; STEP], out: &mut [bf16; STEP]) {
        for ((out, &q), scale) in out.iter_mut().zip(src).zip(&scales) {
            *out = nearest_bf16(f32::from(q) * scale);
        }
    }
}

/// See [`Unpack`].
#[inline(always)]
pub(crate) fn unpack<T: Scaling>(tier: T, unpack: Unpack<'_>) {
    let Unpack { head_dim, tokens, block, out } = unpack;
    let ([k_scales, v_scales], elements) = split_scales(block);
    let (keys, values) = elements.split_at(head_dim * KV_BLOCK);
    let (out_keys, out_values) = out.split_at_mut(head_dim * KV_BLOCK);
    unpack_keys(tier, &k_scales, keys, out_keys);
    let pairs = tokens.start / 2..tokens.end.div_ceil(2);
    let scales = &v_scales.as_chunks::<2>().0[pairs.clone()];
    for start in (0..values.len()).step_by(V_GROUP * KV_BLOCK) {
        let group = start..values.len().min(start + V_GROUP * KV_BLOCK);
        // Elements of a pair of tokens.
        let line = group.len() / (KV_BLOCK / 2);
        let lines = pairs.start * line..pairs.end * line;
        let src = &values[group.clone()][lines.clone()];
        let out = &mut out_values[group][lines];
        let lines = src.chunks_exact(line).zip(out.chunks_exact_mut(line));
        for ((src, out), &scales) in lines.zip(scales) {
            let scales = tier.in_turns(scales);
            for (src, out) in src.as_chunks::<STEP>().0.iter().zip(out.as_chunks_mut::<STEP>().0) {
                tier.scale(src, scales, out);
            }
        }
    }
}

/// The keys of all tokens: a step masks what it does not see, whatever that is.
#[inline(always)]
fn unpack_keys<T: Scaling>(tier: T, scales: &[f32; KV_BLOCK], keys: &[i8], out: &mut [bf16]) {
    let (sixteens, _) = scales.as_chunks::<{ STEP / 2 }>();
    let mut scales = [tier.each_twice(&sixteens[0]); KV_BLOCK * 2 / STEP];
    for (scales, sixteen) in scales.iter_mut().zip(sixteens) {
        *scales = tier.each_twice(sixteen);
    }
    let rows = keys.as_chunks::<{ 2 * KV_BLOCK }>().0.iter();
    for (src, out) in rows.zip(out.as_chunks_mut::<{ 2 * KV_BLOCK }>().0) {
        let steps = src.as_chunks::<STEP>().0.iter().zip(out.as_chunks_mut::<STEP>().0);
        for ((src, out), &scales) in steps.zip(&scales) {
            tier.scale(src, scales, out);
        }
    }
}
