//! Generated tiles against the same instructions written as intrinsics, bit for bit, with every operand
//! between pages without access.

mod epilogue;
mod product;

use std::arch::x86_64::*;

use half::bf16;

use super::guard::{Flush, Guarded};
use super::noise_vec;
use crate::gemm::tile::{FourBits, TileArgs};
use crate::jit::{EpilogueArgs, Operands, TileKey};
use crate::{Isa, Jit, JitCapacity, JitError, Kernels};

/// The generator for a tier, if this CPU has it.
fn jit(isa: Isa) -> Option<Jit> {
    Kernels::new(isa).map(|kernels| Jit::new(kernels, JitCapacity::default()).unwrap())
}

/// A generator for a key, if this CPU has its tier.
fn jit_for(key: &TileKey) -> Option<Jit> {
    jit(key.isa())
}

const fn key(operands: Operands, rows: usize, width: usize, steps: usize) -> TileKey {
    TileKey { operands, rows, width, steps, prefetch: 0, epilogue: None }
}

/// The operands of a tile.
struct Case {
    key: TileKey,
    a: Guarded<u32>,
    /// Words between rows of `a`.
    a_stride: usize,
    w: Guarded<u32>,
    sums: Guarded<f32>,
    sums_stride: usize,
    resume: bool,
    a_scales: Guarded<f32>,
    a_offsets: Guarded<i32>,
    groups: usize,
    w_scales: Guarded<f32>,
}

impl Case {
    fn new(key: TileKey, flush: Flush, seed: u32, resume: bool) -> Self {
        let (rows, width) = (key.rows, key.width);
        let (a_stride, sums_stride) = (key.steps + seed as usize % 3, width + seed as usize % 5);
        let groups = match key.operands {
            Operands::Bf16 => 0,
            Operands::Int8 { group_steps, .. } => key.steps.div_ceil(group_steps),
        };
        let words = |seed, len| Guarded::new(flush, &operand_words(key.operands, seed, len));
        let floats = |seed, len| Guarded::new(flush, &noise_vec(seed, len));
        let offsets: Vec<_> = noise_vec(seed + 4, groups * rows).iter().map(|x| (x * 1e6) as i32).collect();
        Self {
            key,
            a: words(seed, (rows - 1) * a_stride + key.steps),
            a_stride,
            w: words(seed + 1, key.steps * width),
            sums: floats(seed + 2, (rows - 1) * sums_stride + width),
            sums_stride,
            resume,
            a_scales: floats(seed + 3, groups * rows),
            a_offsets: Guarded::new(flush, &offsets),
            groups,
            w_scales: floats(seed + 5, groups * width),
        }
    }

    /// The sums that the tile starts from.
    fn start(&self, row: usize, column: usize) -> f32 {
        if self.resume { self.sums[row * self.sums_stride + column] } else { 0.0 }
    }

    /// The tile by intrinsics: `[rows][width]`.
    fn expected(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.key.rows * self.key.width];
        for (row, out) in out.chunks_exact_mut(self.key.width).enumerate() {
            for (vector, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let mut acc = std::array::from_fn(|lane| self.start(row, 16 * vector + lane));
                match self.key.operands {
                    Operands::Bf16 => self.products(row, vector, 0..self.key.steps, |w, a| {
                        // SAFETY: the test has a key only if the CPU has its tier.
                        unsafe { dot_bf16(&mut acc, w, a) }
                    }),
                    Operands::Int8 { group_steps, weight_scales, .. } => {
                        for group in 0..self.groups {
                            self.int8_group(row, vector, group, group_steps, weight_scales, &mut acc);
                        }
                    }
                }
                *out = acc;
            }
        }
        out
    }

    /// Calls `add` with the words of each step.
    fn products(
        &self,
        row: usize,
        vector: usize,
        steps: std::ops::Range<usize>,
        mut add: impl FnMut(&[u32; 16], u32),
    ) {
        for step in steps {
            let w = &self.w[step * self.key.width + 16 * vector..];
            add(w.first_chunk().unwrap(), self.a[row * self.a_stride + step]);
        }
    }

    fn int8_group(
        &self,
        row: usize,
        vector: usize,
        group: usize,
        group_steps: usize,
        weight_scales: bool,
        sums: &mut [f32; 16],
    ) {
        let mut acc = [self.a_offsets[row * self.groups + group]; 16];
        let steps = group * group_steps..self.key.steps.min((group + 1) * group_steps);
        self.products(row, vector, steps, |w, a| {
            for (acc, w) in acc.iter_mut().zip(w) {
                for (w, a) in w.to_ne_bytes().into_iter().zip(a.to_ne_bytes()) {
                    *acc = acc.wrapping_add(i32::from(w) * i32::from(a as i8));
                }
            }
        });
        for (lane, (sum, acc)) in sums.iter_mut().zip(acc).enumerate() {
            let a_scale = self.a_scales[row * self.groups + group];
            let w_scale = self.w_scales[group * self.key.width + 16 * vector + lane];
            let scale = if weight_scales { a_scale * w_scale } else { a_scale };
            *sum = (acc as f32).mul_add(scale, *sum);
        }
    }

    /// Runs the generated tile.
    fn run(&mut self, jit: &Jit, epilogue: Option<&EpilogueArgs>) {
        let args = self.args();
        let tile = jit.tile(&self.key).unwrap();
        // SAFETY: every operand has exactly the size that the key asks for.
        unsafe { tile.run(&args, epilogue) }
    }

    /// Runs a tile for `steps` steps from `first` on, a multiple of the group's.
    fn run_steps(&mut self, jit: &Jit, first: usize, steps: usize) {
        let mut args = self.args();
        let group =
            if let Operands::Int8 { group_steps, .. } = self.key.operands { first / group_steps } else { 0 };
        args.a = args.a.wrapping_add(4 * first);
        args.w = args.w.wrapping_add(4 * self.key.width * first);
        args.a_scales = args.a_scales.wrapping_add(group);
        args.a_offsets = args.a_offsets.wrapping_add(group);
        args.w_scales = args.w_scales.wrapping_add(group * self.key.width);
        args.resume = first > 0;
        let tile = jit.tile(&TileKey { steps, ..self.key }).unwrap();
        // SAFETY: the steps are a part of those that the operands have.
        unsafe { tile.run(&args, None) }
    }

    fn args(&mut self) -> TileArgs {
        TileArgs {
            a: self.a.as_ptr().cast(),
            a_stride: 4 * self.a_stride,
            w: self.w.as_ptr().cast(),
            steps: self.key.steps,
            sums: self.sums.as_mut_ptr(),
            sums_stride: self.sums_stride,
            resume: self.resume,
            rows: self.key.rows,
            width: self.key.width,
            prefetch: self.w.as_ptr().cast(),
            prefetch_lines: self.key.prefetch,
            a_scales: self.a_scales.as_ptr(),
            a_offsets: self.a_offsets.as_ptr(),
            a_groups: self.groups,
            group_steps: 0,
            w_scales: self.w_scales.as_ptr(),
            w_stride: self.key.width,
            w_shift: 0,
            has_min: false,
            four_bits: FourBits::default(),
        }
    }

    /// The sums `[rows][width]`, after checking that nothing between the rows was written.
    fn sums(&self, before: &[f32]) -> Vec<f32> {
        let mut sums = Vec::new();
        for (at, (&sum, &before)) in self.sums.iter().zip(before).enumerate() {
            if at % self.sums_stride < self.key.width {
                sums.push(sum);
            } else {
                assert_eq!(sum, before, "between rows");
            }
        }
        sums
    }
}

/// Finite operands: bf16 pairs, or any bytes.
fn operand_words(operands: Operands, seed: u32, len: usize) -> Vec<u32> {
    let noise = noise_vec(seed, 2 * len);
    let word = |pair: &[f32; 2]| match operands {
        Operands::Bf16 => bytemuck::cast(pair.map(|x| bf16::from_f32(x).to_bits())),
        Operands::Int8 { .. } => (pair[0] * 2147483648.0) as i32 as u32 ^ pair[1].to_bits().rotate_left(11),
    };
    noise.as_chunks::<2>().0.iter().map(word).collect()
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_bf16(acc: &mut [f32; 16], w: &[u32; 16], a: u32) {
    // SAFETY: all of these are 512 bits without invalid values.
    unsafe {
        let w = std::mem::transmute::<[u32; 16], __m512bh>(*w);
        let a = std::mem::transmute::<[u32; 16], __m512bh>([a; 16]);
        let sum = _mm512_dpbf16_ps(std::mem::transmute::<[f32; 16], __m512>(*acc), w, a);
        *acc = std::mem::transmute::<__m512, [f32; 16]>(sum);
    }
}

pub(super) fn assert_bits(actual: &[f32], expected: &[f32], what: impl std::fmt::Display) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let differs = |(actual, expected): (&f32, &f32)| actual.to_bits() != expected.to_bits();
    if let Some(at) = actual.iter().zip(expected).position(differs) {
        panic!("{what}: {} instead of {} at {at}", actual[at], expected[at]);
    }
}

/// Compares the sums of a tile without epilogue.
fn check_sums(key: TileKey, flush: Flush, seed: u32, resume: bool) {
    let Some(jit) = jit_for(&key) else { return };
    let mut case = Case::new(key, flush, seed, resume);
    let (expected, before) = (case.expected(), case.sums.to_vec());
    case.run(&jit, None);
    assert_bits(&case.sums(&before), &expected, format_args!("{key} resume {resume} {flush:?}"));
}

#[test]
fn bf16_sums_are_those_of_the_intrinsics() {
    for width in [32, 64] {
        for rows in 1..=8 {
            for steps in (1..=20).chain([31, 64, 129]) {
                let flush = Flush::BOTH[steps % 2];
                check_sums(key(Operands::Bf16, rows, width, steps), flush, steps as u32, steps % 3 == 0);
            }
        }
    }
}

#[test]
fn int8_sums_are_those_of_integers() {
    for (group_steps, weight_scales) in
        [(16, false), (16, true), (8, true), (24, false), (256, false), (1, true)]
    {
        for (width, streamed) in [(32, false), (64, false), (32, true), (64, true)] {
            let operands = Operands::Int8 { group_steps, weight_scales, streamed };
            for rows in 1..=8 {
                for steps in [1, 3, 7, 8, 15, 16, 17, 32, 47, 48, 65] {
                    let flush = Flush::BOTH[(steps + rows) % 2];
                    check_sums(
                        key(operands, rows, width, steps),
                        flush,
                        (rows * steps) as u32,
                        steps % 2 == 0,
                    );
                }
            }
        }
    }
}

#[test]
fn blocks_of_k_give_the_bits_of_one() {
    let Some(jit) = jit(Isa::Avx512Bf16) else { return };
    for operands in [Operands::Bf16, Operands::Int8 { group_steps: 16, weight_scales: true, streamed: false }]
    {
        let mut whole = Case::new(key(operands, 5, 64, 83), Flush::Right, 3, false);
        whole.run(&jit, None);
        let mut blocks = Case::new(key(operands, 5, 64, 83), Flush::Right, 3, false);
        blocks.run_steps(&jit, 0, 48);
        blocks.run_steps(&jit, 48, 35);
        assert_bits(&blocks.sums, &whole.sums, operands);
    }
}

#[test]
fn kernels_are_made_once_and_the_one_used_longest_ago_makes_room() {
    let Some(kernels) = Kernels::new(Isa::Avx512Bf16) else { return };
    let jit = Jit::new(kernels, JitCapacity { kernels: 2, bytes: 1 << 20 }).unwrap();
    let names = || jit.list().into_iter().map(|entry| entry.name).collect::<Vec<_>>();
    let [first, second, third] = [1, 2, 3].map(|rows| key(Operands::Bf16, rows, 64, 8));
    let held = jit.tile(&first).unwrap();
    jit.tile(&second).unwrap();
    assert!(held.is(&jit.tile(&first).unwrap()));
    jit.tile(&third).unwrap();
    assert_eq!(names(), [first.to_string(), third.to_string()]);
    jit.tile(&second).unwrap();
    assert_eq!(names(), [second.to_string(), third.to_string()]);
    // The tile that lost its place lives on, and a new request makes another.
    assert!(!held.is(&jit.tile(&first).unwrap()));
}

#[test]
fn bytes_are_bounded_too() {
    let Some(kernels) = Kernels::new(Isa::Avx512Bf16) else { return };
    let jit = Jit::new(kernels, JitCapacity { kernels: 100, bytes: 8192 }).unwrap();
    for rows in 1..=8 {
        jit.tile(&key(Operands::Bf16, rows, 64, 64)).unwrap();
        let bytes: usize = jit.list().iter().map(|entry| entry.bytes.next_multiple_of(4096)).sum();
        assert!(bytes <= 8192 || jit.list().len() == 1, "{bytes} bytes in {:?}", jit.list());
    }
}

#[test]
fn threads_share_a_generator() {
    let Some(jit) = jit(Isa::Avx512Bf16) else { return };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let jit = &jit;
            scope.spawn(move || {
                for rows in 1..=8 {
                    let mut case = Case::new(key(Operands::Bf16, rows, 64, 9), Flush::Right, thread, false);
                    let (expected, before) = (case.expected(), case.sums.to_vec());
                    case.run(jit, None);
                    assert_bits(&case.sums(&before), &expected, case.key);
                }
            });
        }
    });
    assert_eq!(jit.list().len(), 8);
}

#[test]
fn a_dump_shows_the_instructions() {
    let Some(jit) = jit(Isa::Avx512Bf16) else { return };
    let text = jit.dump("bf16:6x64:k32:64:bias+silu:bf16").unwrap();
    let count = |mnemonic: &str| text.lines().filter(|line| line.contains(mnemonic)).count();
    // 16 steps of 24 products.
    assert_eq!(count("vdpbf16ps"), 16 * 24, "{text}");
    assert_eq!(count("vdivps"), 24);
    assert_eq!(count("(bad)"), 0);
    assert!(text.trim_end().ends_with("ret"), "{text}");
    for name in
        ["", "bf16", "bf16:9x64:k32", "bf16:6x64:k33", "bf16:6x64:k32:65::f32", "int8-g64:1x64:k8::up:f32"]
    {
        let error = jit.dump(name).unwrap_err();
        assert!(matches!(error, JitError::Unknown(_)), "{name}: {error}");
    }
}

#[test]
fn a_dump_leaves_the_cache_as_it_is() {
    let Some(kernels) = Kernels::new(Isa::Avx512Bf16) else { return };
    let jit = Jit::new(kernels, JitCapacity { kernels: 2, bytes: 1 << 20 }).unwrap();
    let names = || jit.list().into_iter().map(|entry| entry.name).collect::<Vec<_>>();
    let [first, second, third] = [1, 2, 3].map(|rows| key(Operands::Bf16, rows, 64, 8));
    let fresh = jit.dump(&first.to_string()).unwrap();
    assert!(names().is_empty());
    jit.tile(&first).unwrap();
    jit.tile(&second).unwrap();
    // Nor is it a use of the one that is next to go.
    assert_eq!(jit.dump(&first.to_string()).unwrap(), fresh);
    jit.tile(&third).unwrap();
    assert_eq!(names(), [second.to_string(), third.to_string()]);
}

#[test]
fn a_tier_without_the_instructions_has_no_generator() {
    for kernels in super::tiers() {
        let jit = Jit::new(kernels, JitCapacity::default());
        match kernels.isa() {
            Isa::Avx512Bf16 => assert!(jit.is_ok()),
            Isa::Avx512Vnni => {
                let jit = jit.unwrap();
                let int8 = Operands::Int8 { group_steps: 16, weight_scales: false, streamed: false };
                assert!(jit.tile(&key(int8, 1, 64, 4)).is_ok());
                let error = jit.tile(&key(Operands::Bf16, 1, 64, 4)).unwrap_err();
                assert!(matches!(error, JitError::Isa { needed: Isa::Avx512Bf16, actual: Isa::Avx512Vnni }));
                assert!(matches!(jit.dump("bf16:1x64:k8"), Err(JitError::Isa { .. })));
            }
            Isa::Amx => assert!(matches!(jit, Err(JitError::Tiles(Isa::Amx)))),
            actual => assert!(
                matches!(jit, Err(JitError::Isa { needed: Isa::Avx512Vnni, actual: a }) if a == actual)
            ),
        }
    }
}
