//! Activations in the form that a tile reads: rows of steps of 4 bytes (8 where i8 are widened to i16), zeros behind the last input.

use half::bf16;

use super::ActQuant;
use super::tile::{MAX_ROWS, TileKind};
use crate::generic::rotate::Out;
use crate::weights::Panels;
use crate::{ActRef, Kernels, MatMut, MatRef, Par, WeightFormat};

/// Elements up to which the calling thread converts alone: about what a parallel region costs.
const SERIAL: usize = 16 << 10;

/// f32 elements in a cache line.
const LINE: usize = 16;

/// Inputs that share a scale when activations are quantised in groups.
const GROUP: usize = 64;

/// The same for weights of 4 bits.
const GROUP_4_BIT: usize = 32;

/// The same with [`ActQuant::Fine`].
const FINE_GROUP: usize = 16;

/// Inputs that are summed exactly when a row has one scale: sums fit 32 bits, and blocks of steps are
/// multiples of it.
const TOKEN_GROUP: usize = 1024;

/// How a product's activations are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) kind: TileKind,
    /// Steps of a tile in one of the panel: bf16 that is widened has two.
    pub(super) tile_steps: usize,
    /// 4-byte words of a row in one step of the panel: activations that are widened have two.
    pub(super) step_words: usize,
    /// Steps of the panel.
    steps: usize,
    /// Int8: inputs whose products are summed exactly before they are scaled.
    pub(super) group: usize,
    /// Int8: whether a row has one scale only.
    per_token: bool,
    /// Int8: whether rows are rotated as the weights are.
    rotated: bool,
    /// Bf16: whether tiles of many rows have more than [`MAX_ROWS`].
    wide: bool,
}

impl Form {
    /// `widened`: whether bf16 is multiplied as f32, i8 as i16. `wide`: whether tiles of many rows have more than
    /// [`MAX_ROWS`].
    pub(super) fn new(panels: &Panels, quant: ActQuant, widened: bool, wide: bool) -> Self {
        let per_token = quant == ActQuant::Token;
        let group = match panels.format.group() {
            Some(_) if quant == ActQuant::Fine && !panels.format.is_rotated() => FINE_GROUP,
            Some(_) if panels.format.is_4_bit() => GROUP_4_BIT,
            Some(group) => group,
            None if per_token => TOKEN_GROUP,
            None => GROUP,
        };
        let kind = match panels.format {
            WeightFormat::F32 | WeightFormat::F16 => TileKind::F32,
            WeightFormat::Bf16 if widened => TileKind::F32,
            WeightFormat::Bf16 => TileKind::Bf16,
            _ => TileKind::Int8,
        };
        Self {
            kind,
            tile_steps: if widened && kind == TileKind::F32 { 2 } else { 1 },
            step_words: if widened { 2 } else { 1 },
            steps: panels.steps(),
            group,
            per_token,
            rotated: panels.format.is_rotated(),
            wide,
        }
    }

    /// By how many bits a group of weights is larger than one of activations.
    pub(super) fn weight_shift(&self, panels: &Panels) -> u32 {
        panels.format.group().map_or(0, |group| (group / self.group).ilog2())
    }

    /// Scales of a quantised row.
    fn groups(&self) -> usize {
        if self.kind == TileKind::Int8 { (4 * self.steps).div_ceil(self.group) } else { 0 }
    }

    /// 4-byte words of a converted row: its steps, then scales and offsets, to an odd number of lines
    /// so that the rows of a tile do not share a set of L1.
    fn row_words(&self) -> usize {
        let lines = (self.words() + 2 * self.groups()).div_ceil(LINE);
        (lines | 1) * LINE
    }

    /// 4-byte words of a row's activations.
    fn words(&self) -> usize {
        self.steps * self.step_words
    }

    /// Whether the rows of a wide tile share so few sets of L1 that they evict each other.
    fn collides(&self, a: MatRef<'_, bf16>) -> bool {
        const APART: usize = 2048;
        self.wide && a.rows() > MAX_ROWS && (a.row_stride() * size_of::<bf16>()).is_multiple_of(APART)
    }

    /// Whether a tile can read these activations where they are.
    fn reads(&self, a: ActRef<'_>) -> bool {
        match (self.kind, a) {
            (TileKind::F32, ActRef::F32(_)) => self.tile_steps == 1,
            (TileKind::Bf16, ActRef::Bf16(a)) => a.cols().is_multiple_of(2) && !self.collides(a),
            _ => false,
        }
    }

    /// f32 elements of scratch that [`Input::prepare`] needs.
    pub(super) fn scratch_len(&self, a: ActRef<'_>) -> usize {
        if self.reads(a) { 0 } else { a.rows() * self.row_words() }
    }

    /// Converts row `i` of `a`.
    fn convert(&self, kernels: Kernels, a: ActRef<'_>, i: usize, row: &mut [f32]) {
        match (self.kind, a) {
            (TileKind::F32, _) => {
                let (out, padding) = row[..self.words()].split_at_mut(a.cols());
                padding.fill(0.0);
                match a {
                    ActRef::F32(a) => round_to_bf16(kernels, a.row(i), out),
                    ActRef::Bf16(a) => kernels.widen_bf16(a.row(i), out),
                }
            }
            (TileKind::Bf16, _) => {
                let out: &mut [bf16] = bytemuck::cast_slice_mut(&mut row[..self.steps]);
                let (out, padding) = out.split_at_mut(a.cols());
                padding.fill(bf16::ZERO);
                match a {
                    ActRef::F32(a) => kernels.narrow_bf16(a.row(i), out),
                    ActRef::Bf16(a) => out.copy_from_slice(a.row(i)),
                }
            }
            (TileKind::Int8, _) => self.quantize(kernels, a, i, row),
        }
    }

    /// Quantises row `i` of `a`: its steps, a scale for each group, -128 times each group's sum.
    fn quantize(&self, kernels: Kernels, a: ActRef<'_>, i: usize, row: &mut [f32]) {
        let (words, rest) = row.split_at_mut(self.words());
        let (scales, rest) = rest.split_at_mut(self.groups());
        let offsets: &mut [i32] = bytemuck::cast_slice_mut(&mut rest[..scales.len()]);
        let bytes: &mut [i8] = bytemuck::cast_slice_mut(words);
        let first = bytes.len() - 4 * self.steps;
        let (q, padding) = bytes[first..].split_at_mut(a.cols());
        padding.fill(0);
        // Weights of 4 bits are padded to whole groups of their own, which may be several of activations.
        let groups = q.len().div_ceil(self.group);
        scales[groups..].fill(0.0);
        offsets[groups..].fill(0);
        let (scales, offsets) = (&mut scales[..groups], &mut offsets[..groups]);
        let quantize = |group, q: &mut [i8], scales: &mut [f32], sums: &mut [i32]| match a {
            ActRef::F32(a) => kernels.quantize_groups(a.row(i), group, q, scales, sums),
            ActRef::Bf16(a) => kernels.quantize_groups(a.row(i), group, q, scales, sums),
        };
        if self.rotated {
            kernels.quantize_rotated(
                a,
                i,
                Out { group: self.group, one_scale: self.per_token, values: q, scales, sums: offsets },
            );
        } else if self.per_token && !q.is_empty() {
            let (mut scale, mut sum) = ([0.0], [0]);
            quantize(q.len(), q, &mut scale, &mut sum);
            scales.fill(scale[0]);
            for (offset, q) in offsets.iter_mut().zip(q.chunks(self.group)) {
                *offset = q.iter().map(|&q| i32::from(q)).sum();
            }
        } else {
            quantize(self.group, q, scales, offsets);
        }
        offsets.iter_mut().for_each(|offset| *offset *= -128);
        if self.step_words == 2 {
            widen_quads(bytes);
        }
    }
}

/// The bf16 nearest to each element of `src`, as f32.
fn round_to_bf16(kernels: Kernels, src: &[f32], dst: &mut [f32]) {
    let mut rounded = [bf16::ZERO; 64];
    for (src, dst) in src.chunks(rounded.len()).zip(dst.chunks_mut(rounded.len())) {
        let rounded = &mut rounded[..src.len()];
        kernels.narrow_bf16(src, rounded);
        kernels.widen_bf16(rounded, dst);
    }
}

/// Spreads the i8 in the second half of `bytes` over all of it, front to back: four of them as i16, the first and the
/// third before the second and the fourth, see [`Dots::quad`](super::tile::Dots::quad).
fn widen_quads(bytes: &mut [i8]) {
    let half = bytes.len() / 2;
    for at in (0..half).step_by(4) {
        let quad: [i8; 4] = std::array::from_fn(|i| bytes[half + at + i]);
        for (wide, i) in bytes[2 * at..][..8].as_chunks_mut::<2>().0.iter_mut().zip([0, 2, 1, 3]) {
            *wide = i16::from(quad[i]).to_ne_bytes().map(u8::cast_signed);
        }
    }
}

/// The activations of a product, where a tile finds them.
#[derive(Clone, Copy)]
pub(super) struct Input {
    base: *const u8,
    /// Bytes from row to row.
    pub(super) stride: usize,
    /// Bytes from a row's start to its scales.
    scales_at: usize,
    groups: usize,
}

// SAFETY: an Input points to memory that nobody writes while it is used; see `prepare`.
unsafe impl Sync for Input {}

impl Input {
    /// Converts what must be converted into `scratch`, of `form.scratch_len(a)` elements. The result
    /// points into `a` or `scratch`, which the caller keeps borrowed while it uses it.
    pub(super) fn prepare(
        kernels: Kernels,
        par: &Par<'_>,
        form: &Form,
        a: ActRef<'_>,
        scratch: &mut [f32],
    ) -> Self {
        if form.reads(a) {
            let (base, stride) = match a {
                ActRef::F32(a) => (a.as_ptr().cast(), a.row_stride() * size_of::<f32>()),
                ActRef::Bf16(a) => (a.as_ptr().cast(), a.row_stride() * size_of::<bf16>()),
            };
            return Self { base, stride, scales_at: 0, groups: 0 };
        }
        let words = form.row_words();
        let mut out = MatMut::new(scratch, a.rows(), words);
        if a.rows() * a.cols() <= SERIAL {
            (0..a.rows()).for_each(|i| form.convert(kernels, a, i, out.row_mut(i)));
        } else {
            par.rows(out, |i, row| form.convert(kernels, a, i, row));
        }
        Self {
            base: scratch.as_ptr().cast(),
            stride: words * size_of::<f32>(),
            scales_at: form.words() * size_of::<f32>(),
            groups: form.groups(),
        }
    }

    /// Row `i` from its 4-byte word `word` on.
    pub(super) fn row(&self, i: usize, word: usize) -> *const u8 {
        self.base.wrapping_add(i * self.stride + word * 4)
    }

    /// The scale of group `group` of row `i`, and the offset; rows are `stride` bytes apart.
    pub(super) fn scale(&self, i: usize, group: usize) -> (*const f32, *const i32) {
        let scales = self.base.wrapping_add(i * self.stride + self.scales_at).cast::<f32>();
        (scales.wrapping_add(group), scales.wrapping_add(self.groups + group).cast())
    }
}
