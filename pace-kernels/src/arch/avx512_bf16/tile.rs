//! The bf16 tile, and one of 8 rows by 64 columns for a batch of 8, which reads the weights once.
//!
//! 8 x 64 sums would fill all 32 registers. 30 of them stay there, one register holds weights, and one
//! holds in turn the last two sums, which live in memory and are fetched once for two steps.
//! Activations are broadcast by the multiply-adds themselves. Compilers do not find this (they spill on,
//! to half of the speed), so it is written in assembly.
//!
//! Streaming 512 MiB by two threads it reached 0.87 to 1.01 of a pure read; two tiles of 4 rows over blocks
//! of 256 KiB, of which the first one prefetches the next block, 0.70 to 0.85 in the same turns. From
//! L2, where it is bound by its multiply-adds, both are equal. Lost: two tiles of 4 rows in turns over 8
//! to 128 steps (0.6), fetching the two sums at every step (0.93 of this from L2) or every fourth
//! one, and prefetching into L1.

use std::arch::asm;

use super::LanesBf16;
use crate::gemm::tile::TileArgs;
use crate::generic;
use crate::generic::tile::Bf16;

/// Rows of the widest tile.
pub(super) const ROWS: usize = 8;

/// Multiplies the weights at byte `$w` of the panel by the activations at byte `$x` of the rows.
macro_rules! column {
    ($w:literal, $x:literal, $($sum:literal $row:literal),+) => {
        concat!(
            "vmovups zmm30, [{w} + ", $w, "]\n",
            $("vdpbf16ps zmm", $sum, ", zmm30, dword ptr [", $row, " + ", $x, "]{{1to16}}\n",)+
        )
    };
}

/// All sums in registers, over a step: columns from register 0, 8, 16 (7 rows) and 23 (7 rows) on.
macro_rules! step {
    ($w0:literal, $w1:literal, $w2:literal, $w3:literal, $x:literal) => {
        concat!(
            column!($w0, $x, 0 "{a}", 1 "{a} + {stride}", 2 "{a} + 2 * {stride}", 3 "{a} + {stride3}",
                4 "{b}", 5 "{b} + {stride}", 6 "{b} + 2 * {stride}", 7 "{b} + {stride3}"),
            column!($w1, $x, 8 "{a}", 9 "{a} + {stride}", 10 "{a} + 2 * {stride}", 11 "{a} + {stride3}",
                12 "{b}", 13 "{b} + {stride}", 14 "{b} + 2 * {stride}", 15 "{b} + {stride3}"),
            column!($w2, $x, 16 "{a}", 17 "{a} + {stride}", 18 "{a} + 2 * {stride}", 19 "{a} + {stride3}",
                20 "{b}", 21 "{b} + {stride}", 22 "{b} + 2 * {stride}"),
            column!($w3, $x, 23 "{a}", 24 "{a} + {stride}", 25 "{a} + 2 * {stride}", 26 "{a} + {stride3}",
                27 "{b}", 28 "{b} + {stride}", 29 "{b} + 2 * {stride}"),
        )
    };
}

/// A sum in memory, at byte `$sum` of the last row's, over two steps.
macro_rules! in_memory {
    ($sum:literal, $w0:literal, $w1:literal) => {
        concat!(
            "vmovups zmm31, [{last} + ",
            $sum,
            "]\n",
            "vmovups zmm30, [{w} + ",
            $w0,
            "]\n",
            "vdpbf16ps zmm31, zmm30, dword ptr [{b} + {stride3}]{{1to16}}\n",
            "vmovups zmm30, [{w} + ",
            $w1,
            "]\n",
            "vdpbf16ps zmm31, zmm30, dword ptr [{b} + {stride3} + 4]{{1to16}}\n",
            "vmovups [{last} + ",
            $sum,
            "], zmm31\n",
        )
    };
}

/// `$move` with each register and its place among the sums of rows 0 to 3 (`first`) and 4 to 7.
macro_rules! every_sum {
    ($move:ident) => {
        concat!(
            $move!(0 "{first}", 1 "{first} + {width}", 2 "{first} + 2 * {width}", 3 "{first} + {width3}",
                4 "{second}", 5 "{second} + {width}", 6 "{second} + 2 * {width}", 7 "{last}"; 0),
            $move!(8 "{first}", 9 "{first} + {width}", 10 "{first} + 2 * {width}", 11 "{first} + {width3}",
                12 "{second}", 13 "{second} + {width}", 14 "{second} + 2 * {width}", 15 "{last}"; 64),
            $move!(16 "{first}", 17 "{first} + {width}", 18 "{first} + 2 * {width}", 19 "{first} + {width3}",
                20 "{second}", 21 "{second} + {width}", 22 "{second} + 2 * {width}"; 128),
            $move!(23 "{first}", 24 "{first} + {width}", 25 "{first} + 2 * {width}", 26 "{first} + {width3}",
                27 "{second}", 28 "{second} + {width}", 29 "{second} + 2 * {width}"; 192),
        )
    };
}

macro_rules! load {
    ($($sum:literal $row:literal),+; $at:literal) => {
        concat!($("vmovups zmm", $sum, ", [", $row, " + ", $at, "]\n",)+)
    };
}

macro_rules! store {
    ($($sum:literal $row:literal),+; $at:literal) => {
        concat!($("vmovups [", $row, " + ", $at, "], zmm", $sum, "\n",)+)
    };
}

/// # Safety
/// The CPU has this tier; what `t` describes is accessible. There may be up to [`ROWS`] rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
pub(super) unsafe fn tile(t: &TileArgs) {
    // SAFETY: passed on to the caller.
    unsafe {
        match (t.rows, t.width) {
            (7, _) => generic::tile::rows::<Bf16, _, 7>(LanesBf16, t),
            (8, 64) => tile_8x64(t),
            (8, _) => generic::tile::rows::<Bf16, _, 8>(LanesBf16, t),
            _ => generic::tile::tile::<Bf16, _>(LanesBf16, t),
        }
    }
}

/// # Safety
/// As [`tile`], with 8 rows of 64 columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
unsafe fn tile_8x64(t: &TileArgs) {
    if !t.resume {
        for row in 0..ROWS {
            // SAFETY: each row has 64 sums.
            unsafe { t.sums.add(row * t.sums_stride).write_bytes(0, 64) }
        }
    }
    let even = t.steps / 2 * 2;
    if even > 0 {
        // SAFETY: `steps` is at least 2, and even.
        unsafe { even_steps(&TileArgs { steps: even, ..*t }) }
    }
    if even < t.steps {
        let half = TileArgs { rows: ROWS / 2, steps: 1, resume: true, ..*t };
        // SAFETY: the last step of rows 0 to 3, then of 4 to 7, all within what `t` describes.
        unsafe {
            let (a, w) = (t.a.add(even * 4), t.w.add(even * 256));
            generic::tile::tile::<Bf16, _>(LanesBf16, &TileArgs { a, w, ..half });
            let (a, sums) = (a.add(ROWS / 2 * t.a_stride), t.sums.add(ROWS / 2 * t.sums_stride));
            generic::tile::tile::<Bf16, _>(LanesBf16, &TileArgs { a, w, sums, ..half });
        }
    }
}

/// Goes on with the sums of 8 rows of 64 columns.
///
/// # Safety
/// As [`tile_8x64`], and the number of steps is even and not 0.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn even_steps(t: &TileArgs) {
    let (stride, width) = (t.a_stride, t.sums_stride * size_of::<f32>());
    // SAFETY: every address lies in the rows of activations, the panel or the sums; all vector registers
    // are named as changed, and memory is by default.
    unsafe {
        asm!(
            every_sum!(load),
            "2:",
            step!(0, 64, 128, 192, 0),
            step!(256, 320, 384, 448, 4),
            in_memory!(128, 128, 384),
            in_memory!(192, 192, 448),
            "add {w}, 512",
            "add {a}, 8",
            "add {b}, 8",
            "dec {pairs}",
            "jne 2b",
            every_sum!(store),
            w = inout(reg) t.w => _,
            a = inout(reg) t.a => _,
            b = inout(reg) t.a.add(ROWS / 2 * stride) => _,
            stride = in(reg) stride,
            stride3 = in(reg) 3 * stride,
            pairs = inout(reg) t.steps / 2 => _,
            first = in(reg) t.sums,
            second = in(reg) t.sums.add(ROWS / 2 * t.sums_stride),
            last = in(reg) t.sums.add((ROWS - 1) * t.sums_stride),
            width = in(reg) width,
            width3 = in(reg) 3 * width,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
            out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _,
            out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
            out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _,
            out("zmm30") _, out("zmm31") _,
            options(nostack),
        );
    }
}
