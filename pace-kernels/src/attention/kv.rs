//! Blocks of keys and values.
//!
//! A block holds the absolute positions `[64 b, 64 b + 64)` of one layer and one KV head,
//! contiguously: first the keys, then the values. It is laid out for kernels without shuffles:
//! - bf16: keys `[d / 2][64][2]` (lanes are tokens, pairs of dimensions); values in groups of 64
//!   dimensions, the last one `w = round_up(d mod 64, 16)` wide, each `[32][w][2]` (lanes are
//!   dimensions, pairs of tokens);
//! - f32: keys `[d][64]`, values in the same groups, each `[64][w]`;
//! - int8: the f32 scales of the keys `[64]` and of the values `[64]`, then both in the order of bf16, each element
//!   an integer of -127 to 127 to be multiplied by the scale of its token. A head's key and value are rotated first, in blocks
//!   of 64 dimensions as [`Kernels::rotate`] does it, and so are the queries; what the values add up to is turned back.
//!
//! An odd head dimension is padded to an even one inside the bf16 and int8 keys. Rows that no token has
//! been appended to may hold anything, NaN included.

mod int8;

use std::ops::Range;

use half::bf16;

pub(crate) use self::int8::split_scales;
use crate::{Element, Kernels, KvDType, MatRef};

/// Tokens in a block.
pub const KV_BLOCK: usize = 64;

/// Dimensions in a group of values.
const V_GROUP: usize = 64;

/// The last group of values is rounded up to a multiple of this.
const V_LANES: usize = 16;

/// The shape of the KV blocks of one cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    dtype: KvDType,
    head_dim: usize,
}

/// One or several KV blocks, to read.
#[derive(Clone, Copy, Debug)]
pub enum KvRef<'a> {
    /// Stored as f32.
    F32(&'a [f32]),
    /// Stored as bf16.
    Bf16(&'a [bf16]),
    /// Stored as int8; an element is a byte, of the scales, too.
    Int8(&'a [i8]),
}

/// One or several KV blocks, to write.
#[derive(Debug)]
pub enum KvMut<'a> {
    /// Stored as f32.
    F32(&'a mut [f32]),
    /// Stored as bf16.
    Bf16(&'a mut [bf16]),
    /// Stored as int8; an element is a byte, of the scales, too.
    Int8(&'a mut [i8]),
}

/// Whole blocks that lie one after the other, of one layer and KV head.
#[derive(Clone, Copy, Debug)]
pub struct KvRun<'a> {
    /// The position of the first block's first token, a multiple of [`KV_BLOCK`].
    pub first_token: usize,
    /// The blocks.
    pub blocks: KvRef<'a>,
}

impl KvRun<'_> {
    /// Where the blocks lie, for asking the system about them.
    pub fn addresses(&self) -> Range<usize> {
        match self.blocks {
            KvRef::F32(blocks) => addresses(blocks),
            KvRef::Bf16(blocks) => addresses(blocks),
            KvRef::Int8(blocks) => addresses(blocks),
        }
    }
}

fn addresses<T>(slice: &[T]) -> Range<usize> {
    let range = slice.as_ptr_range();
    range.start.addr()..range.end.addr()
}

impl KvLayout {
    /// Blocks of heads with `head_dim` dimensions.
    ///
    /// # Panics
    /// If a block's size overflows.
    pub fn new(dtype: impl Into<KvDType>, head_dim: usize) -> Self {
        let largest = usize::MAX / (4 * KV_BLOCK * size_of::<f32>());
        assert!(head_dim <= largest, "a block of {head_dim} dimensions fits no memory");
        Self { dtype: dtype.into(), head_dim }
    }

    /// The storage type.
    pub const fn dtype(&self) -> KvDType {
        self.dtype
    }

    /// Dimensions of a head.
    pub const fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Elements of the keys of a block.
    pub const fn k_len(&self) -> usize {
        match self.dtype {
            KvDType::F32 => self.head_dim * KV_BLOCK,
            KvDType::Bf16 | KvDType::Int8 => self.head_dim.next_multiple_of(2) * KV_BLOCK,
        }
    }

    /// Elements before the keys of a block: the bytes of the scales of int8.
    pub(crate) const fn k_start(&self) -> usize {
        match self.dtype {
            KvDType::F32 | KvDType::Bf16 => 0,
            KvDType::Int8 => int8::SCALE_BYTES,
        }
    }

    /// Elements of a block.
    pub const fn block_len(&self) -> usize {
        let last = (self.head_dim % V_GROUP).next_multiple_of(V_LANES);
        let v_width = self.head_dim / V_GROUP * V_GROUP + last;
        self.k_start() + self.k_len() + v_width * KV_BLOCK
    }

    /// Bytes of a block.
    pub const fn block_bytes(&self) -> usize {
        self.block_len() * self.dtype.size()
    }

    /// The size of a block in f32 numbers, which memory for blocks of any type can be had in: see
    /// [`view`](Self::view).
    pub const fn block_words(&self) -> usize {
        self.block_bytes() / size_of::<f32>()
    }

    /// What memory in f32 numbers holds, as blocks of this layout's type.
    pub fn view<'a>(&self, words: &'a [f32]) -> KvRef<'a> {
        match self.dtype {
            KvDType::F32 => KvRef::F32(words),
            KvDType::Bf16 => KvRef::Bf16(bytemuck::cast_slice(words)),
            KvDType::Int8 => KvRef::Int8(bytemuck::cast_slice(words)),
        }
    }

    /// The same, to write.
    pub fn view_mut<'a>(&self, words: &'a mut [f32]) -> KvMut<'a> {
        match self.dtype {
            KvDType::F32 => KvMut::F32(words),
            KvDType::Bf16 => KvMut::Bf16(bytemuck::cast_slice_mut(words)),
            KvDType::Int8 => KvMut::Int8(bytemuck::cast_slice_mut(words)),
        }
    }

    /// Stores the key and the value of one token in a block: [`append_rows`](Self::append_rows) of one row.
    ///
    /// # Panics
    /// If `block` is not one block of this layout, `slot >= 64`, or `k` or `v` does not have
    /// head_dim elements.
    pub fn append<E: Element>(&self, block: KvMut<'_>, slot: usize, k: &[E], v: &[E]) {
        self.append_rows(block, slot, MatRef::new(k, 1, k.len()), MatRef::new(v, 1, v.len()));
    }

    /// Stores the keys and the values of the tokens that follow each other from `first_slot` on in a block, both
    /// `[tokens, head_dim]`, rounded to the layout's type: to int8 as [`Kernels::quantize_groups`] rounds a group of
    /// head_dim, rotated, within half a scale, the same bits on every CPU. A row that holds a NaN, an infinity or a number
    /// above 5e36 may read as NaN then.
    ///
    /// If the last one has an even slot, the value of its partner in a pair, the slot behind it, is zeroed, so that a
    /// kernel that works on pairs can read it. Tokens are therefore appended in ascending order.
    ///
    /// # Panics
    /// If `block` is not one block of this layout, it ends before the last token, or `k` and `v` are not of one
    /// shape with head_dim columns.
    pub fn append_rows<E: Element>(
        &self,
        block: KvMut<'_>,
        first_slot: usize,
        k: MatRef<'_, E>,
        v: MatRef<'_, E>,
    ) {
        self.check(block.as_ref(), first_slot.saturating_add(k.rows()));
        assert!(
            k.rows() == v.rows() && k.cols() == self.head_dim && v.cols() == self.head_dim,
            "keys [{}, {}] and values [{}, {}] for a head of {}",
            k.rows(),
            k.cols(),
            v.rows(),
            v.cols(),
            self.head_dim
        );
        match block {
            KvMut::F32(block) => {
                let (keys, values) = block.split_at_mut(self.k_len());
                append_keys::<1, f32, E>(keys, first_slot, k, |_, src, dst| round(src, dst));
                self.v_groups().for_each(|group| append_values_f32(values, &group, first_slot, v));
            }
            KvMut::Bf16(block) => {
                let (keys, values) = block.split_at_mut(self.k_len());
                append_keys::<2, bf16, E>(keys, first_slot, k, |_, src, dst| round(src, dst));
                self.v_groups().for_each(|group| {
                    append_value_pairs(values, &group, first_slot, v, |_, src, dst: &mut [bf16]| {
                        round(src, dst);
                    });
                });
            }
            KvMut::Int8(block) => int8::append(self, block, first_slot, k, v),
        }
    }

    /// Writes the first `tokens` keys of a block as they were appended, transposed: `[head_dim][64]`, row after row, of
    /// which the first `tokens` columns are written.
    ///
    /// # Panics
    /// If `block` is not one block of this layout, `tokens > 64`, or `out` has fewer than
    /// `64 * head_dim` elements.
    pub fn unpack_k(&self, kernels: &Kernels, block: KvRef<'_>, tokens: usize, out: &mut [f32]) {
        self.check(block, tokens);
        let out = &mut out[..self.head_dim * KV_BLOCK];
        match block {
            KvRef::F32(block) => {
                for (src, dst) in block.chunks_exact(KV_BLOCK).zip(out.chunks_exact_mut(KV_BLOCK)) {
                    dst[..tokens].copy_from_slice(&src[..tokens]);
                }
            }
            KvRef::Bf16(block) => {
                let mut padding = [0.0; KV_BLOCK];
                for (pair, dst) in block.chunks_exact(2 * KV_BLOCK).zip(out.chunks_mut(2 * KV_BLOCK)) {
                    let (even, odd) = dst.split_at_mut(KV_BLOCK);
                    let odd = if odd.is_empty() { &mut padding } else { odd };
                    kernels.deinterleave_bf16(&pair[..2 * tokens], &mut even[..tokens], &mut odd[..tokens]);
                }
            }
            KvRef::Int8(block) => int8::unpack_k(self, block, tokens, out),
        }
    }

    /// Writes the first `tokens` values of a block: `[64][head_dim]`, row after row, of which the
    /// first `tokens` rows are written.
    ///
    /// # Panics
    /// If `block` is not one block of this layout, `tokens > 64`, or `out` has fewer than
    /// `tokens * head_dim` elements.
    pub fn unpack_v(&self, kernels: &Kernels, block: KvRef<'_>, tokens: usize, out: &mut [f32]) {
        self.check(block, tokens);
        let out = &mut out[..tokens * self.head_dim];
        match block {
            KvRef::F32(block) => self.unpack_v_f32(block, tokens, out),
            KvRef::Bf16(block) => self.unpack_v_bf16(kernels, block, tokens, out),
            KvRef::Int8(block) => int8::unpack_v(self, block, out),
        }
    }

    fn unpack_v_f32(&self, block: &[f32], tokens: usize, out: &mut [f32]) {
        let values = &block[self.k_len()..];
        for group in self.v_groups() {
            let rows = values[group.start..].chunks_exact(group.width);
            for (row, out) in rows.zip(out.chunks_exact_mut(self.head_dim)).take(tokens) {
                out[group.dims.clone()].copy_from_slice(&row[..group.dims.len()]);
            }
        }
    }

    fn unpack_v_bf16(&self, kernels: &Kernels, block: &[bf16], tokens: usize, out: &mut [f32]) {
        let values = &block[self.k_len()..];
        let mut partner = [0.0; V_GROUP];
        for group in self.v_groups() {
            let dims = group.dims.len();
            let pairs = values[group.start..].chunks_exact(2 * group.width);
            for (pair, out) in pairs.zip(out.chunks_mut(2 * self.head_dim)).take(tokens.div_ceil(2)) {
                let (even, odd) = out.split_at_mut(self.head_dim);
                let even = &mut even[group.dims.clone()];
                let odd = if odd.is_empty() { &mut partner[..dims] } else { &mut odd[group.dims.clone()] };
                kernels.deinterleave_bf16(&pair[..2 * dims], even, odd);
            }
        }
    }

    /// The groups of dimensions that the values are stored in.
    fn v_groups(&self) -> impl Iterator<Item = VGroup> + use<> {
        let head_dim = self.head_dim;
        (0..head_dim.div_ceil(V_GROUP)).map(move |g| {
            let dims = g * V_GROUP..head_dim.min((g + 1) * V_GROUP);
            VGroup { start: g * V_GROUP * KV_BLOCK, width: dims.len().next_multiple_of(V_LANES), dims }
        })
    }

    fn check(&self, block: KvRef<'_>, tokens: usize) {
        assert!(tokens <= KV_BLOCK, "{tokens} tokens in a block of {KV_BLOCK}");
        assert!(
            block.dtype() == self.dtype && block.len() == self.block_len(),
            "{} elements of {} are not a block of {} elements of {}",
            block.len(),
            block.dtype(),
            self.block_len(),
            self.dtype
        );
    }
}

/// A group of value dimensions inside a block.
struct VGroup {
    dims: Range<usize>,
    /// Elements before the group, counted from the block's first value.
    start: usize,
    /// Lanes, the dimensions rounded up.
    width: usize,
}

/// Tokens, and words of each of them, that keys are transposed in. Rows of a projection are often a multiple of 2 KiB
/// apart, so that more of them would evict each other from the first-level cache before a line is used up.
const TILE: usize = 16;

/// Stores keys in the slots from `first` on: word w of a token, `P` dimensions, goes to row w of `[words][64]`.
/// `store` turns some elements of a row of `k`.
fn append_keys<const P: usize, T: bytemuck::Pod, E: Element>(
    keys: &mut [T],
    first: usize,
    k: MatRef<'_, E>,
    store: impl Fn(usize, &[E], &mut [T]),
) {
    let mut tile = [[[T::zeroed(); P]; TILE]; TILE];
    for start in (0..k.rows()).step_by(TILE) {
        let tokens = TILE.min(k.rows() - start);
        for (i, rows) in keys.as_chunks_mut::<P>().0.chunks_mut(TILE * KV_BLOCK).enumerate() {
            let dims = i * TILE * P..k.cols().min((i + 1) * TILE * P);
            for (t, words) in tile[..tokens].iter_mut().enumerate() {
                let (row, padding) = words.as_flattened_mut().split_at_mut(dims.len());
                store(start + t, &k.row(start + t)[dims.clone()], row);
                padding.fill(T::zeroed());
            }
            for (w, row) in rows.chunks_exact_mut(KV_BLOCK).enumerate() {
                for (slot, words) in row[first + start..][..tokens].iter_mut().zip(&tile) {
                    *slot = words[w];
                }
            }
        }
    }
}

/// Stores one group of the values in the slots from `first` on.
fn append_values_f32<E: Element>(values: &mut [f32], group: &VGroup, first: usize, v: MatRef<'_, E>) {
    let mut rows = values[group.start + first * group.width..].chunks_exact_mut(group.width);
    for (t, row) in rows.by_ref().take(v.rows()).enumerate() {
        let (row, padding) = row.split_at_mut(group.dims.len());
        round(&v.row(t)[group.dims.clone()], row);
        padding.fill(0.0);
    }
    if !(first + v.rows()).is_multiple_of(2)
        && let Some(partner) = rows.next()
    {
        partner.fill(0.0);
    }
}

/// Stores one group of the values in the slots from `first` on, pair by pair. `store` turns some elements of a row of
/// `v`.
fn append_value_pairs<T: bytemuck::Pod, E: Element>(
    values: &mut [T],
    group: &VGroup,
    first: usize,
    v: MatRef<'_, E>,
    store: impl Fn(usize, &[E], &mut [T]),
) {
    let dims = group.dims.len();
    let (mut even, mut odd) = ([T::zeroed(); V_GROUP], [T::zeroed(); V_GROUP]);
    let store = |token: usize, out: &mut [T]| store(token, &v.row(token)[group.dims.clone()], out);
    let pairs = values[group.start..].chunks_exact_mut(2 * group.width);
    let last = first + v.rows();
    for (i, pair) in pairs.enumerate().take(last.div_ceil(2)).skip(first / 2) {
        let pair = pair.as_chunks_mut::<2>().0;
        if 2 * i + 1 < last {
            store(2 * i + 1 - first, &mut odd[..dims]);
        } else {
            odd.fill(T::zeroed());
        }
        if 2 * i < first {
            pair.iter_mut().zip(&odd[..dims]).for_each(|(pair, &odd)| pair[1] = odd);
            continue;
        }
        store(2 * i - first, &mut even[..dims]);
        for ((pair, &even), &odd) in pair.iter_mut().zip(&even).zip(&odd) {
            *pair = [even, odd];
        }
    }
}

/// Copies `src`, rounded.
fn round<E: Element, T: Element>(src: &[E], dst: &mut [T]) {
    if E::DTYPE == T::DTYPE {
        return dst.copy_from_slice(bytemuck::cast_slice(src));
    }
    for (dst, &src) in dst.iter_mut().zip(src) {
        *dst = T::from_f32(src.to_f32());
    }
}

impl<'a> KvRef<'a> {
    /// Number of elements.
    pub const fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::Bf16(data) => data.len(),
            Self::Int8(data) => data.len(),
        }
    }

    /// Whether there is nothing.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The storage type.
    pub const fn dtype(&self) -> KvDType {
        match self {
            Self::F32(_) => KvDType::F32,
            Self::Bf16(_) => KvDType::Bf16,
            Self::Int8(_) => KvDType::Int8,
        }
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// If the range lies outside.
    pub fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(data) => Self::F32(&data[range]),
            Self::Bf16(data) => Self::Bf16(&data[range]),
            Self::Int8(data) => Self::Int8(&data[range]),
        }
    }
}

impl KvMut<'_> {
    /// The same blocks, to read.
    #[allow(clippy::should_implement_trait)]
    pub fn as_ref(&self) -> KvRef<'_> {
        match self {
            Self::F32(data) => KvRef::F32(data),
            Self::Bf16(data) => KvRef::Bf16(data),
            Self::Int8(data) => KvRef::Int8(data),
        }
    }

    /// A shorter-lived view of the elements of `range`.
    ///
    /// # Panics
    /// If the range lies outside.
    pub fn slice_mut(&mut self, range: Range<usize>) -> KvMut<'_> {
        match self {
            Self::F32(data) => KvMut::F32(&mut data[range]),
            Self::Bf16(data) => KvMut::Bf16(&mut data[range]),
            Self::Int8(data) => KvMut::Int8(&mut data[range]),
        }
    }
}

impl<'a> KvRun<'a> {
    /// Number of blocks.
    ///
    /// # Panics
    /// If a block of this layout has no elements.
    pub fn block_count(&self, layout: &KvLayout) -> usize {
        self.blocks.len() / layout.block_len()
    }

    /// Block `i` of the run; it starts at the position `first_token + 64 * i`.
    ///
    /// # Panics
    /// If the run has no such block.
    pub fn block(&self, layout: &KvLayout, i: usize) -> KvRef<'a> {
        self.blocks.slice(i * layout.block_len()..(i + 1) * layout.block_len())
    }
}
