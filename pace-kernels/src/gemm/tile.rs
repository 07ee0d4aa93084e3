//! What the drivers of the blocked GEMM hand to a register tile.

/// One call: an mr x nr tile over one K block.
#[repr(C)]
pub(crate) struct TileArgs {
    /// Activations, row-major: bf16 for bf16 weights, i8 for int8 weights. K is padded to the step
    /// with zeros.
    pub(crate) a: *const u8,
    /// Bytes between rows of `a`.
    pub(crate) a_stride: usize,
    /// The panel, at the first step of this K block.
    pub(crate) w: *const u8,
    /// bf16: pairs of k; int8: quads of k.
    pub(crate) steps: usize,
    /// f32 [mr][nr]: where the block's result goes.
    pub(crate) sums: *mut f32,
    /// Elements between rows of `sums`.
    pub(crate) sums_stride: usize,
    /// Whether the sums continue from `sums`; otherwise they start at zero.
    pub(crate) resume: bool,
    /// int8: the scale of (row, group of this K block), row-major.
    pub(crate) a_scales: *const f32,
    /// int8: -128 times the sum of the quantised activations of (row, group).
    pub(crate) a_offsets: *const i32,
    /// int8: elements between rows of `a_scales` and of `a_offsets`.
    pub(crate) a_groups: usize,
    /// int8: f32 [nr] (per output channel) or [groups][nr].
    pub(crate) w_scales: *const f32,
}
