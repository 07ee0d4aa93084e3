//! Memory between pages without access, so that a read or write outside of an operand ends the test
//! with a fault; and every element-wise kernel and KV layout run over it.

use std::ops::{Deref, DerefMut};

use half::{bf16, f16};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use super::{noise_vec, tiers};
use crate::{
    ActMut, ActRef, Activation, DType, KV_BLOCK, Kernels, KvDType, KvLayout, KvMut, MatMut, MatRef, RowNorm,
};

/// The page that an operand lies next to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Flush {
    /// The operand's first byte follows a page without access.
    Left,
    /// A page without access follows the operand's last byte.
    Right,
}

impl Flush {
    pub(super) const BOTH: [Self; 2] = [Self::Left, Self::Right];
}

/// A multiple of every page size, and the size of the borders without access.
const PAGE: usize = 64 << 10;

/// A slice with a mapping of its own that has no accessible byte on its flush side.
pub(super) struct Guarded<E> {
    base: *mut u8,
    mapped: usize,
    data: *mut E,
    len: usize,
}

impl<E: bytemuck::Pod> Guarded<E> {
    /// A copy of `data`.
    pub(super) fn new(flush: Flush, data: &[E]) -> Self {
        let bytes = size_of_val(data);
        let inner = bytes.next_multiple_of(PAGE);
        let mapped = inner + 2 * PAGE;
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing existing.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .unwrap()
        .cast::<u8>();
        let start = match flush {
            Flush::Left => PAGE,
            Flush::Right => PAGE + inner - bytes,
        };
        // SAFETY: both borders, and the operand between them, lie in the mapping that nobody else knows;
        // page borders and the ends of whole elements are aligned.
        unsafe {
            mprotect(base.cast(), PAGE, MprotectFlags::empty()).unwrap();
            mprotect(base.add(PAGE + inner).cast(), PAGE, MprotectFlags::empty()).unwrap();
            let copy = base.add(start).cast::<E>();
            std::ptr::copy_nonoverlapping(data.as_ptr(), copy, data.len());
            Self { base, mapped, data: copy, len: data.len() }
        }
    }

    /// `len` times `value`.
    pub(super) fn filled(flush: Flush, len: usize, value: E) -> Self {
        Self::new(flush, &vec![value; len])
    }
}

impl<E> Deref for Guarded<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // SAFETY: `len` initialised elements in the mapping that `self` owns.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

impl<E> DerefMut for Guarded<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        // SAFETY: as above, and `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }
}

impl<E> Drop for Guarded<E> {
    fn drop(&mut self) {
        // SAFETY: this mapping was made for `self` alone.
        unsafe { munmap(self.base.cast(), self.mapped) }.unwrap();
    }
}

/// Every length up to several vectors of every tier, and some beyond an unrolled loop.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=70).chain([127, 129, 191, 257, 321, 1023])
}

/// Calls `check` with every length, flush to either side.
fn each(mut check: impl FnMut(Flush, usize)) {
    for flush in Flush::BOTH {
        lengths().for_each(|len| check(flush, len));
    }
}

fn noise(flush: Flush, seed: u32, len: usize) -> Guarded<f32> {
    Guarded::new(flush, &noise_vec(seed, len))
}

#[test]
fn conversions_stay_inside() {
    each(|flush, len| {
        let x = noise(flush, 1, len);
        for kernels in tiers() {
            let mut narrow = Guarded::filled(flush, len, bf16::NAN);
            let mut wide = Guarded::filled(flush, len, f32::NAN);
            kernels.narrow_bf16(&x, &mut narrow);
            kernels.widen_bf16(&narrow, &mut wide);
            let mut half = Guarded::filled(flush, len, f16::NAN);
            kernels.narrow(&x, &mut half);
            kernels.widen_f16(&half, &mut wide);
            let mut even = Guarded::filled(flush, len / 2, f32::NAN);
            let mut odd = Guarded::filled(flush, len / 2, f32::NAN);
            kernels.deinterleave_bf16(&narrow[..len / 2 * 2], &mut even, &mut odd);
            assert!(wide.iter().zip(x.iter()).all(|(wide, x)| (wide - x).abs() < 1e-3));
        }
    });
}

#[test]
fn norms_stay_inside() {
    each(|flush, len| {
        let (x, weight, bias) = (noise(flush, 1, len), noise(flush, 2, len), noise(flush, 3, len));
        for kernels in tiers() {
            let mut out = Guarded::filled(flush, len, f32::NAN);
            kernels.rms_norm(&x, &weight, 1e-5, &mut out);
            assert!(out.iter().all(|x| x.is_finite()));
            kernels.layer_norm(&x, &weight, None, 1e-5, &mut out);
            kernels.layer_norm(&x, &weight, Some(&bias), 1e-5, &mut out);
            assert!(out.iter().all(|x| x.is_finite()));
            stored_norms_stay_inside(&kernels, flush, &RowNorm::rms(&weight, 1e-5), &x);
            stored_norms_stay_inside(&kernels, flush, &RowNorm::layer(&weight, Some(&bias), 1e-5), &x);
        }
    });
}

/// Norms of rows that are stored as bf16, with a sum before, and with a quantised result.
fn stored_norms_stay_inside(kernels: &Kernels, flush: Flush, norm: &RowNorm<'_>, x: &[f32]) {
    let len = x.len();
    let mut stream = Guarded::filled(flush, len, bf16::ZERO);
    kernels.narrow_bf16(x, &mut stream);
    let r = Guarded::new(flush, &stream);
    let mut out = Guarded::filled(flush, len, bf16::NAN);
    kernels.add_norm(
        norm,
        ActMut::Bf16(MatMut::new(&mut stream, 1, len)),
        ActRef::Bf16(MatRef::new(&r, 1, len)),
        ActMut::Bf16(MatMut::new(&mut out, 1, len)),
    );
    assert!(out.iter().all(|x| x.is_finite()));
    let (group, groups) = (32, len.div_ceil(32));
    let mut scratch = Guarded::filled(flush, len, f32::NAN);
    let mut values = Guarded::filled(flush, len, 0i8);
    let mut scales = Guarded::filled(flush, groups, f32::NAN);
    let mut sums = Guarded::filled(flush, groups, 0i32);
    let x = ActRef::F32(MatRef::new(x, 1, len));
    kernels.norm_quantize(norm, x, DType::Bf16, group, &mut scratch, &mut values, &mut scales, &mut sums);
    assert!(scales.iter().all(|scale| scale.is_finite()));
}

#[test]
fn rotations_stay_inside() {
    each(|flush, half| {
        let (cos, sin) = (noise(flush, 1, half), noise(flush, 2, half));
        for kernels in tiers() {
            for spare in [0, 1, 5].into_iter().filter(|spare| half + spare > 0) {
                let mut x = noise(flush, 3, 2 * half + spare);
                kernels.rope_half(&mut x, 2 * half + spare, &cos, &sin);
                kernels.rope_interleaved(&mut x, 2 * half + spare, &cos, &sin);
                assert!(x.iter().all(|x| x.is_finite()));
            }
        }
    });
}

#[test]
fn activations_stay_inside() {
    each(|flush, len| {
        let up = noise(flush, 2, len);
        for kernels in tiers() {
            for kind in Activation::ALL {
                let mut x = noise(flush, 1, len);
                let mut out = Guarded::filled(flush, len, f32::NAN);
                kernels.act_mul(kind, &x, &up, &mut out);
                kernels.activate(kind, &mut x);
                assert!(x.iter().chain(out.iter()).all(|x| x.is_finite()));
            }
        }
    });
}

#[test]
fn softmax_and_its_relatives_stay_inside() {
    each(|flush, len| {
        let y = noise(flush, 2, len);
        for kernels in tiers() {
            let mut x = noise(flush, 1, len);
            assert!(len == 0 || kernels.max(&x).is_finite() && kernels.log_sum_exp(&x).is_finite());
            assert!(kernels.argmax(&x) <= len);
            let mut values = Guarded::filled(flush, len / 2, f32::NAN);
            let mut indices = Guarded::filled(flush, len / 2, u32::MAX);
            assert_eq!(kernels.top_k(&x, &mut values, &mut indices), len / 2);
            kernels.add(&mut x, &y);
            kernels.scale(&mut x, 0.5);
            kernels.softmax(&mut x);
            assert!(len == 0 || (x.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        }
    });
}

#[test]
fn gathering_stays_inside() {
    each(|flush, cols| {
        let table = noise(flush, 1, 2 * cols);
        for kernels in tiers() {
            let mut out = Guarded::filled(flush, 2 * cols, bf16::NAN);
            let table = MatRef::new(&table, 2, cols);
            kernels.gather(table, &[1, 0], ActMut::Bf16(MatMut::new(&mut out, 2, cols)));
            assert!(out.iter().all(|x| x.is_finite()));
        }
    });
}

#[test]
fn kv_blocks_stay_inside() {
    for flush in Flush::BOTH {
        for d in [1, 2, 3, 15, 16, 17, 40, 63, 64, 65, 80, 96, 127, 128, 130] {
            let (k, v) = (noise(flush, 1, d), noise(flush, 2, d));
            for dtype in KvDType::ALL {
                let layout = KvLayout::new(dtype, d);
                let mut wide = Guarded::filled(flush, layout.block_len(), 0.0f32);
                let mut narrow = Guarded::filled(flush, layout.block_len(), bf16::ZERO);
                let mut bytes = Guarded::filled(flush, layout.block_len(), 0i8);
                let mut block = match dtype {
                    KvDType::F32 => KvMut::F32(&mut wide),
                    KvDType::Bf16 => KvMut::Bf16(&mut narrow),
                    KvDType::Int8 => KvMut::Int8(&mut bytes),
                };
                for slot in 0..KV_BLOCK {
                    layout.append(block.slice_mut(0..layout.block_len()), slot, &k, &v);
                }
                for kernels in tiers() {
                    for tokens in [0, 1, 2, 31, 63, 64] {
                        let mut keys = Guarded::filled(flush, KV_BLOCK * d, 0.0f32);
                        let mut values = Guarded::filled(flush, tokens * d, 0.0f32);
                        layout.unpack_k(&kernels, block.as_ref(), tokens, &mut keys);
                        layout.unpack_v(&kernels, block.as_ref(), tokens, &mut values);
                        assert!(tokens == 0 || (keys[0] - k[0]).abs() < 1e-2);
                        assert!(tokens == 0 || (values[tokens * d - 1] - v[d - 1]).abs() < 1e-2);
                    }
                }
            }
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_borders_have_no_access() {
    for flush in Flush::BOTH {
        let guarded = Guarded::filled(flush, 5, 7u8);
        let (first, end) = (guarded.as_ptr() as usize, guarded.as_ptr() as usize + 5);
        let outside = match flush {
            Flush::Left => first - 1,
            Flush::Right => end,
        };
        assert_eq!((access(outside), access(first), access(end - 1)), (*b"---p", *b"rw-p", *b"rw-p"));
    }
}

/// The access flags of the mapping that holds an address. An emulator may leave mappings out while other threads make
/// some: then it is asked again.
#[cfg(target_os = "linux")]
fn access(address: usize) -> [u8; 4] {
    (0..1000).find_map(|_| listed_access(address)).unwrap()
}

#[cfg(target_os = "linux")]
fn listed_access(address: usize) -> Option<[u8; 4]> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let bounds = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        bounds.contains(&address).then(|| rest.as_bytes()[..4].try_into().ok())?
    })
}
