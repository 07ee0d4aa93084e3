//! AVX2, FMA and F16C: 8 lanes.

mod rotate;

use std::arch::x86_64::*;

use half::{bf16, f16};
use pulp::f32x8;
use pulp::x86::V3;

use crate::attention::{AttentionTiles, Part, State, Step};
use crate::gemm::epilogue::{RowEpilogue, RowMut};
use crate::gemm::tile::{Dots, TileArgs, TileKind};
use crate::generic::lanes::Lanes;
use crate::table::Table;
use crate::{ActMut, ActRef, Activation, DType, MatRef, RowNorm, generic};

/// Rows whose sums fit 16 registers, beside two vectors of integers across that are taken apart.
const INTEGER_ROWS: usize = 4;

pub(crate) const TABLE: Table = Table {
    widen_f16,
    tile_f32_strip: Lanes256::ACROSS * Lanes256::LANES,
    tile_int8_rows: INTEGER_ROWS,
    quad: Lanes256::QUAD,
    tile_4_bit_rows: INTEGER_ROWS,
    tile_4_bit_products: usize::MAX,
    ..SHIMS
};

shims! {
    [#[target_feature(
        enable = "sse3,ssse3,sse4.1,sse4.2,popcnt,fxsr,avx,avx2,bmi1,bmi2,fma,lzcnt,f16c"
    )]]
    // SAFETY: a function with these target features only runs on a CPU that has them all.
    unsafe { V3::new_unchecked() },
    Lanes256
}

impl Lanes for V3 {
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> f32x8 {
        let src = &src[..8];
        // SAFETY: the token proves AVX2; 16 bytes are read from 8 bf16.
        pulp::cast(unsafe {
            let bits = _mm_loadu_si128(src.as_ptr().cast::<__m128i>());
            _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))
        })
    }

    #[inline(always)]
    fn store_bf16(self, x: f32x8, dst: &mut [bf16]) {
        let dst = &mut dst[..8];
        // SAFETY: the token proves AVX2; 16 bytes are written to 8 bf16.
        unsafe {
            let x: __m256 = pulp::cast(x);
            let bits = _mm256_castps_si256(x);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            let upper = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            let (low, high) = (_mm256_castsi256_si128(upper), _mm256_extracti128_si256::<1>(upper));
            _mm_storeu_si128(dst.as_mut_ptr().cast::<__m128i>(), _mm_packus_epi32(low, high));
        }
    }

    #[inline(always)]
    fn rotate_64(self, x: &mut [f32; 64]) {
        // SAFETY: the token proves AVX2.
        unsafe { rotate::rotate_64(x) }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn widen_f16(src: &[f16], dst: &mut [f32]) {
    let (src, src_tail) = src.as_chunks::<8>();
    let (dst, dst_tail) = dst.as_chunks_mut::<8>();
    for (src, dst) in src.iter().zip(dst) {
        // SAFETY: 16 bytes are read from a chunk of 8 f16 and 32 written to a chunk of 8 f32.
        unsafe {
            let half = _mm_loadu_si128(src.as_ptr().cast::<__m128i>());
            _mm256_storeu_ps(dst.as_mut_ptr(), _mm256_cvtph_ps(half));
        }
    }
    generic::convert::widen_f16(src_tail, dst_tail);
}

/// Only made by functions that have this tier's target features.
#[derive(Clone, Copy)]
struct Lanes256;

impl Dots for Lanes256 {
    const LANES: usize = 8;
    const ACROSS: usize = 2;
    const ACROSS_ONE: usize = 8;
    /// On Zen 1, bf16: 0.97 of a pure read, instead of 0.84 without. Lost: 2048 and more, and L2 instead of L1 (0.86 to 0.90).
    const AHEAD: usize = 1024;
    /// i16: first and third, second and fourth.
    const QUAD: usize = 8;
    type V = __m256i;
    type Quad = [__m256i; 2];
    type Table = __m256i;

    #[inline(always)]
    fn zero(self) -> __m256i {
        // SAFETY: the value exists, so the CPU has AVX2.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn splat_f32(self, x: f32) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_castps_si256(_mm256_set1_ps(x)) }
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_set1_epi32(x) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> __m256i {
        // SAFETY: as above; the bytes are readable.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut u8, x: __m256i) {
        // SAFETY: as above; the bytes are writable.
        unsafe { _mm256_storeu_si256(p.cast(), x) }
    }

    #[inline(always)]
    unsafe fn splat(self, p: *const u8) -> __m256i {
        // SAFETY: as above; the bytes are readable.
        unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    fn dot_f32(self, acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
        // SAFETY: the value exists, so the CPU has AVX2 and FMA.
        unsafe {
            let (acc, w, a) = (_mm256_castsi256_ps(acc), _mm256_castsi256_ps(w), _mm256_castsi256_ps(a));
            _mm256_castps_si256(_mm256_fmadd_ps(w, a, acc))
        }
    }

    #[inline(always)]
    fn dot_bf16(self, acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let odd = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let even = self.dot_f32(acc, _mm256_slli_epi32::<16>(w), _mm256_slli_epi32::<16>(a));
            self.dot_f32(even, _mm256_and_si256(w, odd), _mm256_and_si256(a, odd))
        }
    }

    /// In 16 bits: `vpmaddubsw` would saturate.
    #[inline(always)]
    fn dot_int8(self, acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let low = _mm256_set1_epi16(0xff);
            let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a));
            let even = _mm256_madd_epi16(_mm256_and_si256(w, low), even);
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), _mm256_srai_epi16::<8>(a));
            _mm256_add_epi32(acc, _mm256_add_epi32(even, odd))
        }
    }

    #[inline(always)]
    unsafe fn quad(self, p: *const u8) -> [__m256i; 2] {
        // SAFETY: passed on to the caller.
        unsafe { [self.splat(p), self.splat(p.add(4))] }
    }

    #[inline(always)]
    fn dot_quad(self, acc: __m256i, w: __m256i, [even, odd]: [__m256i; 2]) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(0xff)), even);
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), odd);
            _mm256_add_epi32(acc, _mm256_add_epi32(even, odd))
        }
    }

    /// The sums are pairs of i16, which hold 8 products of two nibbles by bytes.
    #[inline(always)]
    fn start_nibbles(self, _start: __m256i) -> __m256i {
        self.zero()
    }

    #[inline(always)]
    fn dot_nibbles(self, acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, a)) }
    }

    #[inline(always)]
    fn end_nibbles(self, acc: __m256i, start: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_add_epi32(start, _mm256_madd_epi16(acc, _mm256_set1_epi16(1))) }
    }

    #[inline(always)]
    fn scaled(self, sum: __m256i, acc: __m256i, scale: __m256i) -> __m256i {
        // SAFETY: as above.
        self.dot_f32(sum, unsafe { _mm256_castps_si256(_mm256_cvtepi32_ps(acc)) }, scale)
    }

    #[inline(always)]
    fn mul(self, x: __m256i, y: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(x), _mm256_castsi256_ps(y))) }
    }

    #[inline(always)]
    fn low_nibbles(self, x: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_and_si256(x, _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    fn high_nibbles(self, x: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(x), _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    fn table(self, bytes: &[u8; 16]) -> __m256i {
        // SAFETY: as above; 16 bytes are read from 16.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())) }
    }

    #[inline(always)]
    fn look_up(self, table: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_shuffle_epi8(table, x) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m256i {
        // SAFETY: as above, and F16C; the bytes are readable.
        unsafe { _mm256_castps_si256(_mm256_cvtph_ps(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m256i {
        // SAFETY: as above; the bytes are readable.
        unsafe { _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    fn prefetch_near(self, p: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
