//! The tile: what the driver asks of an instruction-set tier.

/// Rows that a tile has at most: 6 x 64 sums fill 24 of 32 vector registers, 4 more hold weights, 1
/// an activation.
pub(crate) const MAX_ROWS: usize = 6;

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
    /// Rows: 1 to [`MAX_ROWS`].
    pub(crate) rows: usize,
    /// Outputs of the panel: 32 or 64.
    pub(crate) width: usize,
    /// Memory to prefetch meanwhile, a line for each `64 / prefetch_lines` ... see `prefetch_lines`.
    pub(crate) prefetch: *const u8,
    /// Lines of `prefetch` for 16 steps.
    pub(crate) prefetch_lines: usize,
    /// Int8: the scale of the first row's first group.
    pub(crate) a_scales: *const f32,
    /// Int8: -128 times the sum of the first row's first group.
    pub(crate) a_offsets: *const i32,
    /// Int8: elements from a row of `a_scales` and `a_offsets` to the next.
    pub(crate) a_groups: usize,
    /// Int8: steps of a group; the last one may be shorter.
    pub(crate) group_steps: usize,
    /// Int8: the scales of the panel's outputs for each group, `[groups][width]`; null if they are not
    /// the tile's business.
    pub(crate) w_scales: *const f32,
}
