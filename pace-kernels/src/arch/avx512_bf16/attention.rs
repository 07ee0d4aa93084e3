//! The attention step by `vdpbf16ps`.
//!
//! Loop nest:
//!
//! ```text
//! for 4 rows:   scores   4 rows x 64 tokens in 16 accumulators, 4 keys, 1 broadcast; front to back over pairs
//!                        of dimensions; vectors of tokens behind the last visible one are left out
//! for 4 rows:   maxima   reduced together; the factors that the rows' old states shrink by
//! for 1 row:    exponentials   4 vectors; the row's sum; P stored as bf16
//! for 64 dimensions, for 4 rows:
//!               values   4 rows x 64 dimensions in 16 accumulators, 4 values, 1 broadcast; front to back over
//!                        the pairs of tokens that the 4 rows see
//! ```
//!
//! A block is read front to back: its keys once for every 4 rows from L1 or L2, then its values. An accumulator
//! sums front to back whatever its tile-mates, so a row's bits do not depend on them.
//!
//! Fraction of the `vdpbf16ps` peak for causal prefill (half counted, one Zen 4 core, 32 query and 8 KV heads, head
//! dimension 64 / 128): 0.66 / 0.72 at 512 tokens, 0.73 / 0.80 at 2048; without the exponentials 0.83 / 0.87.
//!
//! Tried and lost: the softmax on the accumulators themselves, without a way through memory (2 % lower, three
//! times the code, and 8 % lower unless every rare case has its own instance, because one that spills makes all
//! spill); maxima and exponentials of 4 rows together (2 % lower: the latency of the reduction shows); 2^x with the
//! rounding by an addition and the power by integers (the same); the difference to the maximum as one fused
//! multiply-add (large scores leave a rounding residue above 0).

// A tile's loops index all of its arrays by row and vector.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use half::bf16;

use crate::KV_BLOCK;
use crate::attention::{Logits, SUM_LANES, Step};
use crate::generic::exp2::C_FAST as C;

/// Dimensions in a group of values.
const V_GROUP: usize = 64;

/// Vectors of a row of scores.
const NT: usize = KV_BLOCK / 16;

/// See [`Step`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn step(mut step: Step<'_, bf16>) {
    step.check();
    scores(&mut step);
    let factor = match step.logits {
        // Above 0, the largest score is the factor times the largest product.
        Logits::Scaled { factor } if factor > 0.0 => factor,
        logits => {
            transform(step.p, logits);
            1.0
        }
    };
    let rows = step.rows();
    for row in (0..rows).step_by(4) {
        match rows - row {
            1 => maxima::<1>(&mut step, row, factor),
            2 => maxima::<2>(&mut step, row, factor),
            3 => maxima::<3>(&mut step, row, factor),
            _ => maxima::<4>(&mut step, row, factor),
        }
    }
    for row in 0..rows {
        exponentials(&mut step, row, factor);
    }
    for start in (0..step.width()).step_by(V_GROUP) {
        match (step.width() - start).min(V_GROUP) {
            64 => values::<4>(&mut step, start),
            48 => values::<3>(&mut step, start),
            32 => values::<2>(&mut step, start),
            _ => values::<1>(&mut step, start),
        }
    }
}

/// p = q K^T, except for whole vectors of tokens behind the last one that the rows see.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn scores(step: &mut Step<'_, bf16>) {
    let rows = step.rows();
    for row in (0..rows).step_by(4) {
        match rows - row {
            1 => dots_seen::<1>(step, row),
            2 => dots_seen::<2>(step, row),
            3 => dots_seen::<3>(step, row),
            _ => dots_seen::<4>(step, row),
        }
    }
}

/// MR rows of that.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn dots_seen<const MR: usize>(step: &mut Step<'_, bf16>, row: usize) {
    match step.seen_together(row..row + MR).end.div_ceil(16) {
        1 => dots::<MR, 1>(step, row),
        2 => dots::<MR, 2>(step, row),
        3 => dots::<MR, 3>(step, row),
        _ => dots::<MR, NT>(step, row),
    }
}

/// MR rows and the first 16 NV tokens of that.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn dots<const MR: usize, const NV: usize>(step: &mut Step<'_, bf16>, row: usize) {
    let d = step.head_dim;
    let q = step.q[row * d..(row + MR) * d].as_ptr();
    let keys = step.block[..d * KV_BLOCK].as_ptr();
    let out = step.p[row * KV_BLOCK..(row + MR) * KV_BLOCK].as_mut_ptr();
    let mut acc = [[_mm512_setzero_ps(); NV]; MR];
    for i in 0..d / 2 {
        let mut k = [_mm512_setzero_si512(); NV];
        for v in 0..NV {
            // SAFETY: pairs [16 v, 16 v + 16) of row i < d / 2.
            k[v] = unsafe { _mm512_loadu_si512(keys.add((i * KV_BLOCK + v * 16) * 2).cast()) };
        }
        for r in 0..MR {
            // SAFETY: elements 2 i and 2 i + 1 < d of row r < MR.
            let q = unsafe { pair(q.add(r * d + 2 * i)) };
            for v in 0..NV {
                acc[r][v] = dp(acc[r][v], k[v], q);
            }
        }
    }
    for r in 0..MR {
        for v in 0..NV {
            // SAFETY: tokens [16 v, 16 v + 16) of row r < MR.
            unsafe { _mm512_storeu_ps(out.add(r * KV_BLOCK + v * 16), acc[r][v]) };
        }
    }
}

/// The new maxima of MR rows of scores / factor, and the factors that their old states shrink by.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn maxima<const MR: usize>(step: &mut Step<'_, bf16>, row: usize, factor: f32) {
    let scores = &step.p.as_chunks::<KV_BLOCK>().0[row..row + MR];
    let mut max = [_mm512_set1_ps(f32::NEG_INFINITY); 4];
    for r in 0..MR {
        let x = load_seen(&scores[r], step.seen.map_or(u64::MAX, |seen| seen[row + r]));
        max[r] = _mm512_max_ps(_mm512_max_ps(x[0], x[1]), _mm512_max_ps(x[2], x[3]));
    }
    let mut m = [f32::NEG_INFINITY; 4];
    m[..MR].copy_from_slice(&step.m[row..row + MR]);
    let old = spread(m);
    let new = _mm512_max_ps(old, _mm512_mul_ps(row_maxima(max), _mm512_set1_ps(factor)));
    let shrink = exp2(_mm512_sub_ps(old, new));
    step.m[row..row + MR].copy_from_slice(&gather(new)[..MR]);
    step.shrink[row..row + MR].copy_from_slice(&gather(shrink)[..MR]);
}

/// A row of scores / factor becomes P, and is added to the row's sum.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn exponentials(step: &mut Step<'_, bf16>, row: usize, factor: f32) {
    let scores = &mut step.p.as_chunks_mut::<KV_BLOCK>().0[row];
    let sums = &mut step.l.as_chunks_mut::<SUM_LANES>().0[row];
    let x = load_seen(scores, step.seen.map_or(u64::MAX, |seen| seen[row]));
    let (factor, max) = (_mm512_set1_ps(factor), _mm512_set1_ps(step.m[row]));
    let mut p = [_mm512_setzero_ps(); NT];
    for v in 0..NT {
        p[v] = exp2(_mm512_sub_ps(_mm512_mul_ps(x[v], factor), max));
    }
    let sum = _mm512_add_ps(_mm512_add_ps(p[0], p[1]), _mm512_add_ps(p[2], p[3]));
    let (lanes, out) = (sums.as_mut_ptr(), scores.as_mut_ptr());
    // SAFETY: `lanes` are 16 elements; the row of 64 bf16 fills the first 32 elements of 64 f32.
    unsafe {
        let shrink = _mm512_set1_ps(step.shrink[row]);
        _mm512_storeu_ps(lanes, _mm512_fmadd_ps(_mm512_loadu_ps(lanes), shrink, sum));
        _mm512_storeu_si512(out.cast(), bits(_mm512_cvtne2ps_pbh(p[1], p[0])));
        _mm512_storeu_si512(out.add(16).cast(), bits(_mm512_cvtne2ps_pbh(p[3], p[2])));
    }
}

/// A row of scores, -inf where its bit is not set.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_seen(row: &[f32; KV_BLOCK], seen: u64) -> [__m512; NT] {
    let nothing = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut x = [nothing; NT];
    for v in 0..NT {
        // SAFETY: elements [16 v, 16 v + 16) of 64.
        x[v] = unsafe { _mm512_mask_loadu_ps(nothing, (seen >> (16 * v)) as u16, row.as_ptr().add(16 * v)) };
    }
    x
}

/// o = o * shrink + P V for the group of 16 NV dimensions from `start` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn values<const NV: usize>(step: &mut Step<'_, bf16>, start: usize) {
    let rows = step.rows();
    let (quads, rest) = (rows / 4 * 4, rows % 4);
    for row in (0..quads).step_by(4) {
        weigh::<4, NV>(step, row, start);
    }
    match rest {
        3 => weigh::<3, NV>(step, quads, start),
        2 => weigh::<2, NV>(step, quads, start),
        1 => weigh::<1, NV>(step, quads, start),
        _ => {}
    }
}

/// MR rows of such a group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn weigh<const MR: usize, const NV: usize>(step: &mut Step<'_, bf16>, row: usize, start: usize) {
    let w = step.width();
    let seen = step.seen_together(row..row + MR);
    let pairs = seen.start / 2..seen.end.div_ceil(2);
    let p = step.p[row * KV_BLOCK..(row + MR) * KV_BLOCK].as_ptr();
    let values = step.block[(step.head_dim + start) * KV_BLOCK..][..16 * NV * KV_BLOCK].as_ptr();
    let o = step.o[row * w..(row + MR) * w].as_mut_ptr();
    let mut acc = [[_mm512_setzero_ps(); NV]; MR];
    for r in 0..MR {
        let shrink = _mm512_set1_ps(step.shrink[row + r]);
        for v in 0..NV {
            // SAFETY: row r < MR has w >= start + 16 NV elements.
            let o = unsafe { _mm512_loadu_ps(o.add(r * w + start + v * 16)) };
            acc[r][v] = _mm512_mul_ps(o, shrink);
        }
    }
    for i in pairs {
        let mut x = [_mm512_setzero_si512(); NV];
        for v in 0..NV {
            // SAFETY: i < 32, and a group has 32 rows of 16 NV pairs.
            x[v] = unsafe { _mm512_loadu_si512(values.add((i * NV + v) * 32).cast()) };
        }
        for r in 0..MR {
            // SAFETY: the bf16 row r < MR of 64 starts at element 64 r of the f32 rows.
            let p = unsafe { pair(p.add(r * KV_BLOCK).cast::<bf16>().add(2 * i)) };
            for v in 0..NV {
                acc[r][v] = dp(acc[r][v], x[v], p);
            }
        }
    }
    for r in 0..MR {
        for v in 0..NV {
            // SAFETY: as for the load.
            unsafe { _mm512_storeu_ps(o.add(r * w + start + v * 16), acc[r][v]) };
        }
    }
}

/// acc + the products of both halves of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dp(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: 64 bytes are 64 bytes; every bit pattern is a vector of bf16.
    let (a, b) =
        unsafe { (std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b)) };
    _mm512_dpbf16_ps(acc, a, b)
}

/// Two consecutive elements, in every lane.
///
/// # Safety
/// `ptr` points to two elements.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn pair(ptr: *const bf16) -> __m512i {
    // SAFETY: the caller's promise.
    _mm512_set1_epi32(unsafe { ptr.cast::<i32>().read_unaligned() })
}

#[inline]
pub(super) fn bits(x: __m512bh) -> __m512i {
    // SAFETY: 64 bytes are 64 bytes; every bit pattern is a vector of integers.
    unsafe { std::mem::transmute(x) }
}

/// Number i in lanes 4 i to 4 i + 3.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread(x: [f32; 4]) -> __m512 {
    let x = _mm512_castps128_ps512(_mm_setr_ps(x[0], x[1], x[2], x[3]));
    _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), x)
}

/// The inverse of [`spread`].
#[inline]
#[target_feature(enable = "avx512f")]
fn gather(x: __m512) -> [f32; 4] {
    let index = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    let low = _mm512_castps512_ps128(_mm512_permutexvar_ps(index, x));
    let mut out = [0.0; 4];
    // SAFETY: 16 bytes.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), low) };
    out
}

/// The largest lane of vector i in lanes 4 i to 4 i + 3.
#[inline]
#[target_feature(enable = "avx512f")]
fn row_maxima(x: [__m512; 4]) -> __m512 {
    let halves = |a, b| _mm512_max_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
    let (a, b) = (halves(x[0], x[1]), halves(x[2], x[3]));
    let x = _mm512_max_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
    let x = _mm512_max_ps(x, _mm512_permute_ps::<0x4e>(x));
    _mm512_max_ps(x, _mm512_permute_ps::<0xb1>(x))
}

/// 2^x for x <= 127, relative error at most 3e-6; 2^0 is exactly 1, 2^-inf is 0, NaN stays NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp2(x: __m512) -> __m512 {
    // The distance to the nearest integer; 0 for an infinity.
    let f = _mm512_reduce_ps::<0x08>(x);
    let p = _mm512_fmadd_ps(_mm512_set1_ps(C[3]), f, _mm512_set1_ps(C[2]));
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(C[1]));
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(C[0]));
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0));
    _mm512_scalef_ps(p, _mm512_sub_ps(x, f))
}

/// Makes scores of products of query and key, in units of ln 2.
#[target_feature(enable = "avx512f,avx512dq")]
fn transform(products: &mut [f32], logits: Logits) {
    for x in products.as_chunks_mut::<16>().0 {
        // SAFETY: 16 elements.
        unsafe {
            let products = _mm512_loadu_ps(x.as_ptr());
            let scores = match logits {
                Logits::Scaled { factor } => _mm512_mul_ps(products, _mm512_set1_ps(factor)),
                Logits::Capped { inner, cap } => capped(products, inner, cap),
            };
            _mm512_storeu_ps(x.as_mut_ptr(), scores);
        }
    }
}

/// cap * tanh(x * inner).
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn capped(x: __m512, inner: f32, cap: f32) -> __m512 {
    let x = _mm512_mul_ps(x, _mm512_set1_ps(inner));
    let one = _mm512_set1_ps(1.0);
    // tanh |x| = (1 - e) / (1 + e) with e = e^(-2 |x|).
    let e = exp2(_mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(-2.0 * std::f32::consts::LOG2_E)));
    let tanh = _mm512_div_ps(_mm512_sub_ps(one, e), _mm512_add_ps(one, e));
    let sign = _mm512_and_ps(x, _mm512_set1_ps(-0.0));
    _mm512_or_ps(_mm512_mul_ps(tanh, _mm512_set1_ps(cap)), sign)
}
