//! The tier without vector instructions of its own: every CPU, and the reference for the others.

use half::{bf16, f16};

use crate::attention::{AttentionTiles, Part, State, Step};
use crate::gemm::epilogue::{RowEpilogue, RowMut};
use crate::gemm::tile::{Dots, TileArgs, TileKind};
use crate::generic::lanes::{Lanes, Stored};
use crate::table::Table;
use crate::{ActMut, ActRef, Activation, DType, MatRef, RowNorm, generic};

pub(crate) const TABLE: Table = SHIMS;

shims! { [] pulp::Scalar, OneLane }

impl Lanes for pulp::Scalar {
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> f32 {
        src[0].widen()
    }

    #[inline(always)]
    fn store_bf16(self, x: f32, dst: &mut [bf16]) {
        dst[0] = generic::convert::nearest_bf16(x);
    }
}

pub(super) fn widen_f16(src: &[f16], dst: &mut [f32]) {
    generic::convert::widen_f16(src, dst);
}

#[derive(Clone, Copy)]
struct OneLane;

impl Dots for OneLane {
    const LANES: usize = 1;
    const ACROSS: usize = 2;
    const ACROSS_ONE: usize = 8;
    type V = u32;
    type Quad = u32;
    type Table = [u8; 16];

    #[inline(always)]
    fn zero(self) -> u32 {
        0
    }

    #[inline(always)]
    fn splat_f32(self, x: f32) -> u32 {
        x.to_bits()
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> u32 {
        x as u32
    }

    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> u32 {
        // SAFETY: passed on to the caller.
        unsafe { p.cast::<u32>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut u8, x: u32) {
        // SAFETY: passed on to the caller.
        unsafe { p.cast::<u32>().write_unaligned(x) }
    }

    #[inline(always)]
    unsafe fn splat(self, p: *const u8) -> u32 {
        // SAFETY: passed on to the caller.
        unsafe { self.load(p) }
    }

    #[inline(always)]
    fn dot_f32(self, acc: u32, w: u32, a: u32) -> u32 {
        (f32::from_bits(acc) + f32::from_bits(w) * f32::from_bits(a)).to_bits()
    }

    #[inline(always)]
    fn dot_bf16(self, acc: u32, w: u32, a: u32) -> u32 {
        let even = self.dot_f32(acc, w << 16, a << 16);
        self.dot_f32(even, w & 0xffff_0000, a & 0xffff_0000)
    }

    #[inline(always)]
    fn dot_int8(self, acc: u32, w: u32, a: u32) -> u32 {
        let (w, a) = (w.to_ne_bytes(), a.to_ne_bytes());
        let mut acc = acc as i32;
        for i in 0..4 {
            acc = acc.wrapping_add(i32::from(w[i]) * i32::from(a[i] as i8));
        }
        acc as u32
    }

    #[inline(always)]
    unsafe fn quad(self, p: *const u8) -> u32 {
        // SAFETY: passed on to the caller.
        unsafe { self.splat(p) }
    }

    #[inline(always)]
    fn dot_quad(self, acc: u32, w: u32, a: u32) -> u32 {
        self.dot_int8(acc, w, a)
    }

    #[inline(always)]
    fn scaled(self, sum: u32, acc: u32, scale: u32) -> u32 {
        self.dot_f32(sum, (acc as i32 as f32).to_bits(), scale)
    }

    #[inline(always)]
    fn mul(self, x: u32, y: u32) -> u32 {
        (f32::from_bits(x) * f32::from_bits(y)).to_bits()
    }

    #[inline(always)]
    fn low_nibbles(self, x: u32) -> u32 {
        x & 0x0f0f_0f0f
    }

    #[inline(always)]
    fn high_nibbles(self, x: u32) -> u32 {
        x >> 4 & 0x0f0f_0f0f
    }

    #[inline(always)]
    fn table(self, bytes: &[u8; 16]) -> [u8; 16] {
        *bytes
    }

    #[inline(always)]
    fn look_up(self, table: [u8; 16], x: u32) -> u32 {
        u32::from_ne_bytes(x.to_ne_bytes().map(|at| table[usize::from(at & 15)]))
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> u32 {
        // SAFETY: passed on to the caller.
        f16::from_bits(unsafe { p.read_unaligned() }).to_f32().to_bits()
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> u32 {
        // SAFETY: passed on to the caller.
        u32::from(unsafe { p.read_unaligned() }) << 16
    }

    #[inline(always)]
    fn prefetch(self, _p: *const u8) {}
}
