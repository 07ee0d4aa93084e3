//! The instructions: what tiles hold, and loops of loads and products.
//!
//! Registers: sums in 0 to 3, activations in 4 and 5, weights in 6 and 7. They keep their contents between blocks of
//! assembly, because the compiler has no use for them and calls nothing that has.

use std::arch::asm;

/// Rows of a tile, and words of 4 bytes in one of its rows.
pub(super) const SIDE: usize = 16;

/// The shapes of the registers, as `ldtilecfg` reads them: palette 1.
#[repr(C, align(64))]
pub(super) struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// For `top` rows of activations and `bottom` more (none: sums 2 and 3 have the rows of the first), of which a product
    /// takes `quads` words. None is above [`SIDE`].
    pub(super) fn new(top: usize, bottom: usize, quads: usize) -> Self {
        let mut this =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let lower = if bottom == 0 { top } else { bottom };
        let shapes = [(top, SIDE), (top, SIDE), (lower, SIDE), (lower, SIDE), (top, quads), (lower, quads)];
        for (i, (rows, words)) in shapes.into_iter().chain([(quads, SIDE); 2]).enumerate() {
            this.rows[i] = rows as u8;
            this.row_bytes[i] = 4 * words as u16;
        }
        this
    }
}

/// Makes the registers ready for use, all of them zero, until [`release`].
///
/// # Safety
/// The CPU has AMX, and the system permits it.
#[inline(always)]
pub(super) unsafe fn configure(shapes: &Shapes) {
    // SAFETY: the caller's promise; the shapes are valid. Reads 64 bytes.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, preserves_flags, readonly));
    }
}

/// Gives the registers back, so that nothing of them is saved when threads are switched.
///
/// # Safety
/// As [`configure`].
#[inline(always)]
pub(super) unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
}

/// Sets the sums to 0.
///
/// # Safety
/// The registers are configured.
#[inline(always)]
pub(super) unsafe fn clear() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nostack, preserves_flags, nomem)
        );
    }
}

/// What a loop of products reads: activations from `a` on, those of the second 16 rows from `below` on, weights from `w` on,
/// rows of either so many bytes apart; each of `count` products, at least one, takes `quads` words of a row of activations and as many
/// rows of weights.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) a: *const u8,
    pub(super) below: *const u8,
    pub(super) a_stride: usize,
    pub(super) w: *const u8,
    pub(super) w_stride: usize,
    pub(super) quads: usize,
    pub(super) count: usize,
    /// Memory to prefetch meanwhile, and how many bytes further for each product: [`PREFETCH_BYTES`] or none.
    pub(super) prefetch: *const u8,
    pub(super) prefetch_step: usize,
}

/// Bytes that are prefetched with each product of two by two tiles.
pub(super) const PREFETCH_BYTES: usize = 4 * 64;

/// How sums lie: the registers 0 to 3.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Two by two: the second two belong to the rows below.
    TwoByTwo,
    /// Four across.
    Four,
    /// Two across; the others are not used.
    Two,
}

impl Layout {
    /// Columns.
    pub(super) const fn width(self) -> usize {
        match self {
            Self::TwoByTwo | Self::Two => 2 * SIDE,
            Self::Four => 4 * SIDE,
        }
    }
}

/// Four tiles of bf16 numbers of 1/2 to 1 with random signs and mantissas, or of as many bytes.
#[repr(align(64))]
struct Noise([u32; 4 * SIDE * SIDE]);

impl Noise {
    fn new() -> Self {
        let mut state = 1_u32;
        Self(std::array::from_fn(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state & 0x807f_807f | 0x3f00_3f00
        }))
    }
}

macro_rules! load {
    ($sums:literal, $at:literal) => {
        concat!("tileloadd tmm", $sums, ", [", $at, "]")
    };
}

macro_rules! store {
    ($sums:literal, $at:literal) => {
        concat!("tilestored [", $at, "], tmm", $sums)
    };
}

macro_rules! move_sums {
    ($(#[$doc:meta])* $name:ident, $pointer:ty, $move:ident) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The registers are configured; their rows, `stride` bytes apart, can be accessed from `at` on.
        #[inline(always)]
        pub(super) unsafe fn $name(layout: Layout, at: $pointer, stride: usize) {
            // SAFETY: the caller's promise.
            unsafe {
                match layout {
                    Layout::TwoByTwo => asm!(
                        $move!(0, "{at} + {stride}"),
                        $move!(1, "{at} + {stride} + 64"),
                        $move!(2, "{below} + {stride}"),
                        $move!(3, "{below} + {stride} + 64"),
                        at = in(reg) at,
                        below = in(reg) at.wrapping_byte_add(SIDE * stride),
                        stride = in(reg) stride,
                        options(nostack, preserves_flags)
                    ),
                    Layout::Four => asm!(
                        $move!(0, "{at} + {stride}"),
                        $move!(1, "{at} + {stride} + 64"),
                        $move!(2, "{at} + {stride} + 128"),
                        $move!(3, "{at} + {stride} + 192"),
                        at = in(reg) at,
                        stride = in(reg) stride,
                        options(nostack, preserves_flags)
                    ),
                    Layout::Two => asm!(
                        $move!(0, "{at} + {stride}"),
                        $move!(1, "{at} + {stride} + 64"),
                        at = in(reg) at,
                        stride = in(reg) stride,
                        options(nostack, preserves_flags)
                    ),
                }
            }
        }
    };
}

move_sums! {
    /// Loads the sums.
    load, *const u8, load
}
move_sums! {
    /// Stores the sums.
    store, *mut u8, store
}

/// A loop over the products of `$o`: its lines, and the operands that they name besides `a` and `w` with their strides.
macro_rules! each_product {
    ($o:ident, [$($line:expr),+ $(,)?], $($operand:tt)*) => {
        asm!(
            "2:",
            $($line,)+
            "add {a}, {a_step}",
            "add {w}, {w_step}",
            "dec {count}",
            "jne 2b",
            a = inout(reg) $o.a => _,
            a_stride = in(reg) $o.a_stride,
            a_step = in(reg) $o.quads * 4,
            w = inout(reg) $o.w => _,
            w_stride = in(reg) $o.w_stride,
            w_step = in(reg) $o.quads * $o.w_stride,
            count = inout(reg) $o.count => _,
            $($operand)*
            options(nostack, readonly)
        )
    };
}

macro_rules! products {
    ($name:ident, $peak:ident, $dot:literal) => {
        /// Adds products to the sums.
        ///
        /// # Safety
        /// The registers are configured for `o.quads`; what `o` describes can be read.
        #[inline(always)]
        pub(super) unsafe fn $name(layout: Layout, o: Operands) {
            // SAFETY: the caller's promise.
            unsafe {
                match layout {
                    Layout::TwoByTwo => each_product!(
                        o,
                        [
                            "tileloadd tmm4, [{a} + {a_stride}]",
                            "tileloadd tmm6, [{w} + {w_stride}]",
                            concat!($dot, " tmm0, tmm4, tmm6"),
                            "tileloadd tmm7, [{w} + {w_stride} + 64]",
                            concat!($dot, " tmm1, tmm4, tmm7"),
                            "tileloadd tmm5, [{below} + {a_stride}]",
                            concat!($dot, " tmm2, tmm5, tmm6"),
                            concat!($dot, " tmm3, tmm5, tmm7"),
                            "prefetcht1 [{prefetch}]",
                            "prefetcht1 [{prefetch} + 64]",
                            "prefetcht1 [{prefetch} + 128]",
                            "prefetcht1 [{prefetch} + 192]",
                            "add {prefetch}, {prefetch_step}",
                            "add {below}, {a_step}",
                        ],
                        below = inout(reg) o.below => _,
                        prefetch = inout(reg) o.prefetch => _,
                        prefetch_step = in(reg) o.prefetch_step,
                    ),
                    // As many lines as are read, two products ahead: loads of tiles alone do not keep memory busy.
                    Layout::Four => each_product!(
                        o,
                        [
                            "lea {ahead}, [{w} + 8192]",
                            ".rept 16",
                            "prefetcht0 [{ahead}]",
                            "prefetcht0 [{ahead} + 64]",
                            "prefetcht0 [{ahead} + 128]",
                            "prefetcht0 [{ahead} + 192]",
                            "add {ahead}, 256",
                            ".endr",
                            "tileloadd tmm4, [{a} + {a_stride}]",
                            "tileloadd tmm6, [{w} + {w_stride}]",
                            concat!($dot, " tmm0, tmm4, tmm6"),
                            "tileloadd tmm7, [{w} + {w_stride} + 64]",
                            concat!($dot, " tmm1, tmm4, tmm7"),
                            "tileloadd tmm6, [{w} + {w_stride} + 128]",
                            concat!($dot, " tmm2, tmm4, tmm6"),
                            "tileloadd tmm7, [{w} + {w_stride} + 192]",
                            concat!($dot, " tmm3, tmm4, tmm7"),
                        ],
                        ahead = out(reg) _,
                    ),
                    Layout::Two => each_product!(
                        o,
                        [
                            "tileloadd tmm4, [{a} + {a_stride}]",
                            "tileloadd tmm6, [{w} + {w_stride}]",
                            concat!($dot, " tmm0, tmm4, tmm6"),
                            "tileloadd tmm7, [{w} + {w_stride} + 64]",
                            concat!($dot, " tmm1, tmm4, tmm7"),
                        ],
                    ),
                }
            }
        }

        /// Some multiply-adds of registers, about as long as `rounds` rounds of another tier's. Returns the multiplications done.
        ///
        /// # Safety
        /// The CPU has AMX, and the system permits it.
        pub(super) unsafe fn $peak(rounds: usize) -> u64 {
            const SUMS: usize = 4;
            let rounds = rounds / 8 + 1;
            // Products of zeros take less power, so that a CPU may do more of them.
            let operands = Noise::new();
            // SAFETY: the caller's promise; the operands can be read.
            unsafe {
                configure(&Shapes::new(SIDE, SIDE, SIDE));
                asm!(
                    "tileloadd tmm4, [{operands} + {stride}]",
                    "tileloadd tmm5, [{operands} + {stride} + 1024]",
                    "tileloadd tmm6, [{operands} + {stride} + 2048]",
                    "tileloadd tmm7, [{operands} + {stride} + 3072]",
                    "2:",
                    concat!($dot, " tmm0, tmm4, tmm6"),
                    concat!($dot, " tmm1, tmm4, tmm7"),
                    concat!($dot, " tmm2, tmm5, tmm6"),
                    concat!($dot, " tmm3, tmm5, tmm7"),
                    "dec {rounds}",
                    "jne 2b",
                    rounds = inout(reg) rounds => _,
                    operands = in(reg) operands.0.as_ptr(),
                    stride = in(reg) SIDE * 4,
                    options(nostack, readonly)
                );
                release();
            }
            let elements = if $dot == "tdpbf16ps" { 2 } else { 4 };
            (rounds * SUMS * SIDE * SIDE * SIDE * elements) as u64
        }
    };
}

products!(add_bf16, peak_bf16, "tdpbf16ps");
products!(add_int8, peak_int8, "tdpbsud");
