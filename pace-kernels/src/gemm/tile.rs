//! The tile: what the driver asks of an instruction-set tier.

/// Rows that a tile has at most where many rows are cut into tiles: 6 x 64 sums fill 24 of 32 vector
/// registers, 4 more hold weights, 1 an activation. A tier may have a wider one for few rows.
pub(crate) const MAX_ROWS: usize = 6;

/// Rows that a tile over weights of 4 bits has at most, see [`four_bits`](crate::generic::four_bits).
pub(crate) const MAX_4_BIT_ROWS: usize = 8;

/// Steps between two rounds of prefetching. Lost: rounds of 16, whose bursts stall (0.72 of the limit at
/// 8 rows instead of 0.89).
pub(crate) const PREFETCH_STEPS: usize = 4;

/// What a tile multiplies. In each kind, a step is 4 bytes of
/// each output of a panel, and as many inputs of a row of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TileKind {
    /// One f32 by one f32.
    F32,
    /// Two bf16 by two bf16, summed in f32.
    Bf16,
    /// Four i8, widened to i16 on tiers that multiply those, by four u8 (stored as q + 128), summed in i32 and, group by
    /// group, in f32.
    Int8,
}

/// One call: sums of `rows x width` products over a run of steps.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct TileArgs {
    /// The activations of the first row, at the first step.
    pub(crate) a: *const u8,
    /// Bytes from a row of activations to the next.
    pub(crate) a_stride: usize,
    /// The panel, at the first step.
    pub(crate) w: *const u8,
    /// Steps to sum over.
    pub(crate) steps: usize,
    /// `rows x width` sums.
    pub(crate) sums: *mut f32,
    /// Elements from a row of sums to the next.
    pub(crate) sums_stride: usize,
    /// Whether the sums go on from what is there, or start at 0.
    pub(crate) resume: bool,
    /// Rows: 1 to [`Table::tile_rows`](crate::table::Table::tile_rows).
    pub(crate) rows: usize,
    /// Outputs of the panel: 32 or 64.
    pub(crate) width: usize,
    /// Memory to prefetch meanwhile.
    pub(crate) prefetch: *const u8,
    /// Lines of `prefetch` for each round.
    pub(crate) prefetch_lines: usize,
    /// Int8: the scale of the first row's first group.
    pub(crate) a_scales: *const f32,
    /// Int8: -128 times the sum of the first row's first group.
    pub(crate) a_offsets: *const i32,
    /// Int8: elements from a row of `a_scales` and `a_offsets` to the next.
    pub(crate) a_groups: usize,
    /// Int8: steps of a group; the last one may be shorter.
    pub(crate) group_steps: usize,
    /// Int8: the scales of the panel's outputs for each group, `w_stride` apart; null if they are not
    /// the tile's business.
    pub(crate) w_scales: *const f32,
    /// Int8: elements from the scales of a group to those of the next.
    pub(crate) w_stride: usize,
    /// Int8: a group of weights is 2^this groups of activations.
    pub(crate) w_shift: u32,
    /// Int8: whether the minima of a group follow its scales. Weights are stored without 128 more then.
    pub(crate) has_min: bool,
    /// What nibbles mean, for the tile of weights of 4 bits: `w` are records then, `w_scales` null.
    pub(crate) four_bits: FourBits,
}

/// What the nibbles of weights of 4 bits mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FourBits {
    /// E2M1 numbers with bf16 scales, or integers with f16 scales.
    pub(crate) is_e2m1: bool,
    /// Each as an int8 weight: with zero 128, or 0 where there is a minimum.
    pub(crate) int8: [u8; 16],
}

/// 32-bit lanes of a tier, without a type: the operations that tiles are made of.
///
/// # Safety
/// A value may only exist on a CPU that has the tier. Pointers may be unaligned.
pub(crate) trait Dots: Copy {
    /// Dots in a vector.
    const LANES: usize;
    /// Vectors across that a tile of several rows holds sums for.
    const ACROSS: usize;
    /// The same for one row, where only the sums' latency counts.
    const ACROSS_ONE: usize;
    /// How far ahead one row's weights are asked for, in bytes; 0: by the CPU itself.
    const AHEAD: usize = 0;
    /// Bytes of a quad: of four activations, as i8 or as i16.
    const QUAD: usize = 4;
    type V: Copy;
    /// A quad in every lane.
    type Quad: Copy;
    /// 16 bytes to look up.
    type Table: Copy;

    fn zero(self) -> Self::V;
    fn splat_f32(self, x: f32) -> Self::V;
    fn splat_i32(self, x: i32) -> Self::V;
    /// # Safety
    /// `LANES * 4` bytes are readable.
    unsafe fn load(self, p: *const u8) -> Self::V;
    /// # Safety
    /// `LANES * 4` bytes are writable.
    unsafe fn store(self, p: *mut u8, x: Self::V);
    /// # Safety
    /// 4 bytes are readable.
    unsafe fn splat(self, p: *const u8) -> Self::V;
    /// acc + w a in f32.
    fn dot_f32(self, acc: Self::V, w: Self::V, a: Self::V) -> Self::V;
    /// acc + the products of the two bf16 of a lane, in f32.
    fn dot_bf16(self, acc: Self::V, w: Self::V, a: Self::V) -> Self::V;
    /// acc + the products of the four bytes of a lane (w unsigned, a signed), in i32.
    fn dot_int8(self, acc: Self::V, w: Self::V, a: Self::V) -> Self::V;
    /// # Safety
    /// `QUAD` bytes are readable.
    unsafe fn quad(self, p: *const u8) -> Self::Quad;
    /// As [`dot_int8`](Self::dot_int8), with activations in the form that takes the fewest instructions.
    fn dot_quad(self, acc: Self::V, w: Self::V, a: Self::Quad) -> Self::V;
    /// What sums of nibbles begin with where sums of bytes would begin with `start`.
    #[inline(always)]
    fn start_nibbles(self, start: Self::V) -> Self::V {
        start
    }
    /// As [`dot_int8`](Self::dot_int8) with w below 16, 8 times at most from start to end.
    #[inline(always)]
    fn dot_nibbles(self, acc: Self::V, w: Self::V, a: Self::V) -> Self::V {
        self.dot_int8(acc, w, a)
    }
    /// The sums that began with `start`, in i32.
    #[inline(always)]
    fn end_nibbles(self, acc: Self::V, _start: Self::V) -> Self::V {
        acc
    }
    /// sum + f32(acc) scale.
    fn scaled(self, sum: Self::V, acc: Self::V, scale: Self::V) -> Self::V;
    /// x y in f32.
    fn mul(self, x: Self::V, y: Self::V) -> Self::V;
    /// Two halves of a byte each: the low ones as bytes.
    fn low_nibbles(self, x: Self::V) -> Self::V;
    /// The high ones as bytes.
    fn high_nibbles(self, x: Self::V) -> Self::V;
    fn table(self, bytes: &[u8; 16]) -> Self::Table;
    /// The bytes of the table that the bytes of `x` name, which are below 16.
    fn look_up(self, table: Self::Table, x: Self::V) -> Self::V;
    /// f16 as f32.
    ///
    /// # Safety
    /// `LANES * 2` bytes are readable.
    unsafe fn load_f16(self, p: *const u16) -> Self::V;
    /// bf16 as f32.
    ///
    /// # Safety
    /// `LANES * 2` bytes are readable.
    unsafe fn load_bf16(self, p: *const u16) -> Self::V;
    /// Asks for a line in the second-level cache.
    fn prefetch(self, p: *const u8);
    /// Asks for a line in the first-level cache, where [`AHEAD`](Self::AHEAD) is above 0.
    #[inline(always)]
    fn prefetch_near(self, _p: *const u8) {}
}
