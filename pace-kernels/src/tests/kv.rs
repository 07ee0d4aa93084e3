#[cfg(unix)]
mod int8;

use half::bf16;

use super::{noise_vec, tiers};
use crate::{Element, KV_BLOCK, Kernels, KvDType, KvLayout, KvMut, KvRef, KvRun, MatRef};

/// A block of the layout, all NaN: every number, or every scale.
enum Block {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    Int8(Vec<i8>),
}

impl Block {
    fn nan(layout: &KvLayout) -> Self {
        match layout.dtype() {
            KvDType::F32 => Self::F32(vec![f32::NAN; layout.block_len()]),
            KvDType::Bf16 => Self::Bf16(vec![bf16::NAN; layout.block_len()]),
            KvDType::Int8 => Self::Int8(vec![NAN_BYTE; layout.block_len()]),
        }
    }

    fn as_mut(&mut self) -> KvMut<'_> {
        match self {
            Self::F32(data) => KvMut::F32(data),
            Self::Bf16(data) => KvMut::Bf16(data),
            Self::Int8(data) => KvMut::Int8(data),
        }
    }

    fn as_ref(&self) -> KvRef<'_> {
        match self {
            Self::F32(data) => KvRef::F32(data),
            Self::Bf16(data) => KvRef::Bf16(data),
            Self::Int8(data) => KvRef::Int8(data),
        }
    }

    /// Dimension `j` of the key and of the value in a slot.
    fn get(&self, layout: &KvLayout, slot: usize, j: usize) -> (f32, f32) {
        let (k_at, v_at) = places(layout, slot, j);
        let at = |i: usize, scale: usize| match self {
            Self::F32(data) => data[i],
            Self::Bf16(data) => data[i].to_f32(),
            Self::Int8(data) => {
                let scale: [i8; 4] = data[4 * scale..][..4].try_into().unwrap();
                f32::from(data[i]) * bytemuck::cast::<_, f32>(scale)
            }
        };
        (at(k_at, slot), at(v_at, KV_BLOCK + slot))
    }

    /// Whether nothing was ever stored in an element.
    fn is_spare(&self, i: usize) -> bool {
        match self {
            Self::F32(data) => data[i].is_nan(),
            Self::Bf16(data) => data[i].is_nan(),
            Self::Int8(data) => data[i] == NAN_BYTE,
        }
    }
}

/// The byte that a NaN can be made of.
pub(super) const NAN_BYTE: i8 = -1;

/// The elements that a row is stored as, times their scale: int8 is rotated.
pub(super) fn elements(dtype: KvDType, row: &[f32]) -> Vec<f32> {
    let mut row = row.to_vec();
    match dtype {
        KvDType::F32 => {}
        KvDType::Bf16 => row.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        KvDType::Int8 => {
            row = rotated(&row);
            let largest = row.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
            let round = |x: f32| (x * (127.0 / largest)).round_ties_even() * (largest / 127.0);
            row.iter_mut().for_each(|x| *x = round(*x));
        }
    }
    row
}

/// A row as it reads once it has been stored.
fn stored(dtype: KvDType, row: &[f32]) -> Vec<f32> {
    let row = elements(dtype, row);
    if dtype == KvDType::Int8 { rotated(&row) } else { row }
}

/// A rotation has the same bits on every tier, and is its own inverse.
pub(super) fn rotated(row: &[f32]) -> Vec<f32> {
    let mut row = row.to_vec();
    Kernels::detect().rotate(&mut row);
    row
}

fn layouts() -> impl Iterator<Item = KvLayout> {
    KvDType::ALL.into_iter().flat_map(|dtype| (1..=130).map(move |d| KvLayout::new(dtype, d)))
}

#[test]
fn tokens_round_trip_among_rows_of_nan() {
    for layout in layouts() {
        let d = layout.head_dim();
        let (keys, values) = (noise_vec(1, KV_BLOCK * d), noise_vec(2, KV_BLOCK * d));
        let [want_k, want_v] = [&keys, &values].map(|rows| -> Vec<f32> {
            rows.chunks_exact(d).flat_map(|row| stored(layout.dtype(), row)).collect()
        });
        let mut block = Block::nan(&layout);
        let mut appended = 0;
        for tokens in [0, 1, 2, 5, 31, 32, 63, 64] {
            for t in appended..tokens {
                layout.append(block.as_mut(), t, &keys[t * d..][..d], &values[t * d..][..d]);
            }
            appended = tokens;
            for kernels in tiers() {
                let (mut k, mut v) = (vec![f32::NAN; KV_BLOCK * d], vec![f32::NAN; KV_BLOCK * d]);
                layout.unpack_k(&kernels, block.as_ref(), tokens, &mut k);
                layout.unpack_v(&kernels, block.as_ref(), tokens, &mut v);
                for t in 0..tokens {
                    for j in 0..d {
                        let what = format!("{kernels:?} {layout:?} token {t} of {tokens}, dimension {j}");
                        assert_eq!(k[j * KV_BLOCK + t], want_k[t * d + j], "key, {what}");
                        assert_eq!(v[t * d + j], want_v[t * d + j], "value, {what}");
                    }
                }
            }
        }
    }
}

/// Where dimension `j` of a token's key and value lie in a block.
fn places(layout: &KvLayout, slot: usize, j: usize) -> (usize, usize) {
    let group = j / 64;
    let width = (layout.head_dim() - 64 * group).min(64).next_multiple_of(16);
    let lane = j % 64;
    let (k, v) = match layout.dtype() {
        KvDType::F32 => (j * 64 + slot, slot * width + lane),
        _ => ((j / 2 * 64 + slot) * 2 + j % 2, slot / 2 * 2 * width + lane * 2 + slot % 2),
    };
    // The scales of int8 come first.
    let start = if layout.dtype() == KvDType::Int8 { 2 * 64 * 4 } else { 0 };
    (start + k, start + layout.k_len() + 64 * 64 * group + v)
}

#[test]
fn elements_lie_where_the_layout_says() {
    for layout in layouts() {
        let d = layout.head_dim();
        let (keys, values) = (noise_vec(1, d), noise_vec(2, d));
        let [want_k, want_v] = [&keys, &values].map(|row| elements(layout.dtype(), row));
        for slot in [0, 1, 38, 63] {
            let mut block = Block::nan(&layout);
            layout.append(block.as_mut(), slot, &keys, &values);
            for j in 0..d {
                assert_eq!(block.get(&layout, slot, j), (want_k[j], want_v[j]), "{layout:?} {slot} {j}");
            }
        }
    }
}

#[test]
fn a_run_of_tokens_fills_its_slots_and_no_other() {
    fn check<E: Element>(layout: &KvLayout, first: usize, tokens: usize) {
        let (d, stride) = (layout.head_dim(), 2 * layout.head_dim() + 3);
        // Keys and values side by side, as a projection leaves them.
        let data: Vec<E> = noise_vec(3, KV_BLOCK * stride).into_iter().map(E::from_f32).collect();
        let rows = MatRef::new(&data, KV_BLOCK, stride).rows_range(0..tokens);
        let (k, v) = (rows.cols_range(0..d), rows.cols_range(d + 3..2 * d + 3));
        let mut block = Block::nan(layout);
        layout.append_rows(block.as_mut(), first, k, v);
        let [want_k, want_v] = [k, v].map(|rows| -> Vec<Vec<f32>> {
            let wide = |t| rows.row(t).iter().map(|x: &E| x.to_f32()).collect::<Vec<_>>();
            (0..tokens).map(|t| elements(layout.dtype(), &wide(t))).collect()
        });
        let partner = first + tokens;
        for (slot, j) in (0..KV_BLOCK).flat_map(|slot| (0..d).map(move |j| (slot, j))) {
            let what = || format!("{layout:?}, {tokens} tokens from {first}, slot {slot}, dimension {j}");
            let (got_k, got_v) = block.get(layout, slot, j);
            if (first..partner).contains(&slot) {
                let want = (want_k[slot - first][j], want_v[slot - first][j]);
                assert_eq!((got_k, got_v), want, "{}", what());
            } else if slot == partner && slot % 2 == 1 {
                assert!(got_k.is_nan() && got_v.to_bits() == 0, "{}: {got_v}", what());
            } else {
                assert!(got_k.is_nan() && got_v.is_nan(), "{}: {got_k} {got_v}", what());
            }
        }
    }
    for layout in layouts() {
        for (first, tokens) in
            [(0, 64), (0, 1), (1, 1), (3, 2), (4, 16), (5, 14), (17, 30), (31, 33), (63, 1)]
        {
            check::<f32>(&layout, first, tokens);
            check::<bf16>(&layout, first, tokens);
        }
    }
}

#[test]
fn a_run_pads_with_zeros_what_kernels_read_in_full_lanes() {
    for layout in layouts() {
        let d = layout.head_dim();
        let ones = vec![1.0f32; 4 * d];
        let mut block = Block::nan(&layout);
        let rows = MatRef::new(&ones, 4, d);
        layout.append_rows(block.as_mut(), 0, rows, rows);
        let written = |range: std::ops::Range<usize>| range.filter(|&i| !block.is_spare(i)).count();
        let (start, end) = (layout.k_start(), layout.k_start() + layout.k_len());
        let v_width = (layout.block_len() - end) / KV_BLOCK;
        assert_eq!(written(start..end), 4 * layout.k_len() / KV_BLOCK, "{layout:?}: keys");
        assert_eq!(written(end..layout.block_len()), 4 * v_width, "{layout:?}: values");
    }
}

#[test]
fn sizes() {
    let bf16 = KvLayout::new(KvDType::Bf16, 65);
    assert_eq!((bf16.k_len(), bf16.block_len()), (66 * 64, 66 * 64 + 80 * 64));
    assert_eq!((bf16.block_bytes(), 2 * bf16.block_words()), (2 * bf16.block_len(), bf16.block_len()));
    let int8 = KvLayout::new(KvDType::Int8, 65);
    assert_eq!((int8.k_len(), int8.block_bytes()), (66 * 64, 512 + bf16.block_len()));
    let f32 = KvLayout::new(KvDType::F32, 128);
    assert_eq!((f32.k_len(), f32.block_len(), f32.block_bytes()), (8192, 16384, 65536));
}

#[test]
fn an_even_slot_zeroes_its_partner() {
    for layout in layouts() {
        let d = layout.head_dim();
        let mut block = Block::nan(&layout);
        let [one, two, three] = [1.0, 2.0, 3.0].map(|x| stored(layout.dtype(), &vec![x; d]));
        layout.append(block.as_mut(), 6, &vec![1.0f32; d], &vec![1.0f32; d]);
        for kernels in tiers() {
            let mut v = vec![f32::NAN; KV_BLOCK * d];
            layout.unpack_v(&kernels, block.as_ref(), 8, &mut v);
            assert_eq!(v[6 * d..8 * d], [one.clone(), vec![0.0; d]].concat());
        }
        // The odd slot, and the even one behind it, leave what is there.
        layout.append(block.as_mut(), 7, &vec![2.0f32; d], &vec![2.0f32; d]);
        layout.append(block.as_mut(), 8, &vec![3.0f32; d], &vec![3.0f32; d]);
        for kernels in tiers() {
            let mut v = vec![f32::NAN; KV_BLOCK * d];
            layout.unpack_v(&kernels, block.as_ref(), 9, &mut v);
            assert_eq!(v[6 * d..9 * d], [&one[..], &two, &three].concat());
        }
    }
}

#[test]
fn any_element_type_can_be_appended() {
    fn check<E: Element>(layout: &KvLayout) {
        let mut block = Block::nan(layout);
        let x = [0.5, -3.0, 1.25].map(E::from_f32);
        layout.append(block.as_mut(), 0, &x, &x);
        let mut v = [0.0; 3];
        layout.unpack_v(&Kernels::detect(), block.as_ref(), 1, &mut v);
        assert_eq!(v[..], stored(layout.dtype(), &[0.5, -3.0, 1.25]));
    }
    for dtype in KvDType::ALL {
        let layout = KvLayout::new(dtype, 3);
        check::<f32>(&layout);
        check::<bf16>(&layout);
        check::<half::f16>(&layout);
    }
}

#[test]
fn a_run_is_cut_into_blocks() {
    let layout = KvLayout::new(KvDType::F32, 2);
    let data: Vec<f32> = (0..3 * layout.block_len()).map(|i| i as f32).collect();
    let run = KvRun { first_token: 128, blocks: KvRef::F32(&data) };
    assert_eq!(run.block_count(&layout), 3);
    let KvRef::F32(block) = run.block(&layout, 2) else { unreachable!() };
    assert_eq!((block.len(), block[0]), (layout.block_len(), 2.0 * layout.block_len() as f32));
}

#[test]
#[should_panic(expected = "are not a block")]
fn a_block_of_another_layout_is_refused() {
    KvLayout::new(KvDType::F32, 4).append(KvMut::F32(&mut [0.0; 100]), 0, &[0.0f32; 4], &[0.0f32; 4]);
}

#[test]
#[should_panic(expected = "65 tokens in a block")]
fn a_run_beyond_its_block_is_refused() {
    let layout = KvLayout::new(KvDType::F32, 1);
    let rows = [0.0f32; 3];
    let rows = MatRef::new(&rows, 3, 1);
    layout.append_rows(Block::nan(&layout).as_mut(), 62, rows, rows);
}
