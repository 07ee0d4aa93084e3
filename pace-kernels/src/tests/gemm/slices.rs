//! Products over parts of a matrix: the bits of the whole product, however it is cut.

use std::ops::Range;

use half::bf16;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::{formats, noise_vec, pack, quants};
#[cfg(unix)]
use crate::tests::guard::{Flush, Guarded};
use crate::tests::tiers;
use crate::{
    ActMut, ActQuant, ActRef, Activation, Epilogue, GemmCx, Jit, JitCapacity, Kernels, MatMut, MatRef,
    PackSpec, PackedWeights, Par, Pool, Scratch, WeightFormat, WeightSlice,
};

/// What multiplies: the tiles of a tier, or generated ones.
enum Tiles {
    Table(Kernels),
    Generated(Jit),
}

impl Tiles {
    /// All that multiply weights of this format.
    fn all(format: WeightFormat) -> impl Iterator<Item = (Kernels, Self)> {
        let generated = tiers().filter_map(move |kernels| {
            let jit = Jit::new(kernels, JitCapacity::default()).ok()?;
            let multiplies = match format {
                WeightFormat::Bf16 => kernels.isa() == crate::Isa::Avx512Bf16,
                WeightFormat::Int8
                | WeightFormat::Int8Rotated
                | WeightFormat::Int8RotatedGroup
                | WeightFormat::Int8Group(_) => true,
                _ => false,
            };
            multiplies.then_some((kernels, Self::Generated(jit)))
        });
        tiers().map(|kernels| (kernels, Self::Table(kernels))).chain(generated)
    }

    fn gemm(&self, cx: &GemmCx<'_>, a: ActRef<'_>, w: WeightSlice<'_>, c: ActMut<'_>, e: &Epilogue<'_>) {
        match self {
            Self::Table(kernels) => kernels.gemm(cx, a, w, c, e),
            Self::Generated(jit) => jit.gemm(cx, a, w, c, e).unwrap(),
        }
    }
}

/// The product in parts that end at `cuts`, the last one being k, in the columns `outputs` of `c`.
fn in_parts(
    kernels: Kernels,
    cx: &GemmCx<'_>,
    a: ActRef<'_>,
    w: &PackedWeights,
    outputs: Range<usize>,
    cuts: &[usize],
    mut c: ActMut<'_>,
    e: &Epilogue<'_>,
) {
    let (m, n) = (a.rows(), outputs.len());
    // Sums that are not written yet must not matter, nor what lies between the rows.
    let mut sums = vec![f32::NAN; m * (n + 3)];
    let mut start = 0;
    for &end in cuts {
        let (a, w) = (a.cols_range(start..end), w.slice(outputs.clone(), start..end));
        let mut sums = MatMut::with_stride(&mut sums, m, n, n + 3);
        match (start, end == *cuts.last().unwrap()) {
            (0, true) => kernels.gemm(cx, a, w, c.rb_mut(), e),
            (_, true) => kernels.gemm_resume(cx, a, w, sums.as_ref(), c.rb_mut(), e),
            (_, false) => kernels.gemm_partial(cx, a, w, sums.rb_mut(), start > 0),
        }
        start = end;
    }
    let between = sums.chunks(n + 3).flat_map(|row| &row[n..]);
    assert!(between.into_iter().all(|x| x.is_nan()), "written between the rows");
}

/// Inputs that a slice of this format starts at a multiple of.
fn unit(format: WeightFormat) -> usize {
    format.group().map_or(64, |group| group.max(64))
}

/// Cuts along k at multiples of `unit`, the last one at k.
fn cuts(k: usize, unit: usize, picks: &[Index]) -> Vec<usize> {
    let inner = k.div_ceil(unit) - 1;
    let mut cuts: Vec<_> =
        picks.iter().filter(|_| inner > 0).map(|pick| (1 + pick.index(inner)) * unit).chain([k]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

fn assert_bits(got: &[f32], want: &[f32], what: impl std::fmt::Display) {
    let differs = |(got, want): (&f32, &f32)| got.to_bits() != want.to_bits();
    if let Some(at) = got.iter().zip(want).position(differs) {
        panic!("{what}: {} instead of {} at {at}", got[at], want[at]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn parts_of_the_inputs_give_the_bits_of_the_whole(
        m in prop_oneof![1usize..8, 8usize..80],
        n in 1usize..200,
        k in 1usize..1400,
        picks in prop::collection::vec(any::<Index>(), 0..5),
        format in select(formats()),
        width in select(vec![32usize, 64]),
        (narrow, with_bias, accumulate) in any::<(bool, bool, bool)>(),
        seed in any::<u32>(),
    ) {
        let w = pack(format, width, false, &noise_vec(!seed, n * k), n, k);
        let (wide, bias) = (noise_vec(seed, m * k), noise_vec(seed ^ 1, n));
        let rounded: Vec<_> = wide.iter().map(|&x| bf16::from_f32(x)).collect();
        let a = if narrow {
            ActRef::Bf16(MatRef::new(&rounded, m, k))
        } else {
            ActRef::F32(MatRef::new(&wide, m, k))
        };
        let activation = Some(Activation::Silu);
        let epilogue =
            Epilogue { bias: with_bias.then_some(&bias[..]), activation, accumulate, multiply: None };
        let cx = GemmCx { par: Par::seq(), scratch: &Scratch::new(), act_quant: ActQuant::Groups };
        let cuts = cuts(k, unit(format), &picks);
        for kernels in tiers() {
            let mut want = noise_vec(seed ^ 2, m * n);
            let mut got = want.clone();
            kernels.gemm(&cx, a, &w, ActMut::F32(MatMut::new(&mut want, m, n)), &epilogue);
            let c = ActMut::F32(MatMut::new(&mut got, m, n));
            in_parts(kernels, &cx, a, &w, 0..n, &cuts, c, &epilogue);
            assert_bits(&got, &want, format_args!("{kernels:?} {format} {m}x{n}x{k} at {cuts:?}"));
        }
    }

    #[test]
    fn parts_of_the_outputs_are_columns_of_the_whole(
        m in prop_oneof![1usize..8, 8usize..80],
        cols in 1usize..300,
        k in 1usize..300,
        picks in any::<[Index; 2]>(),
        format in select(formats()),
        width in select(vec![32usize, 64]),
        paired in any::<bool>(),
        seed in any::<u32>(),
    ) {
        let (panel, n) = if paired { (width / 2, 2 * cols) } else { (width, cols) };
        let w = pack(format, width, paired, &noise_vec(!seed, n * k), n, k);
        let mut outputs = picks.map(|pick| cols.min(pick.index(cols.div_ceil(panel) + 1) * panel));
        outputs.sort_unstable();
        let outputs = outputs[0]..outputs[1];
        let (a, bias, other) = (noise_vec(seed, m * k), noise_vec(seed ^ 1, n), noise_vec(seed ^ 2, m * cols));
        let (a, other) = (ActRef::F32(MatRef::new(&a, m, k)), ActRef::F32(MatRef::new(&other, m, cols)));
        let mut part_bias = bias[outputs.clone()].to_vec();
        if paired {
            part_bias.extend(&bias[cols + outputs.start..cols + outputs.end]);
        }
        let epilogue =
            Epilogue { bias: Some(&bias), multiply: Some(other), accumulate: true, ..Epilogue::default() };
        let part = Epilogue {
            bias: Some(&part_bias),
            multiply: Some(other.cols_range(outputs.clone())),
            ..epilogue
        };
        for (&act_quant, (kernels, tiles)) in quants(format).iter().flat_map(|q| Tiles::all(format).map(move |t| (q, t))) {
            let cx = GemmCx { par: Par::seq(), scratch: &Scratch::new(), act_quant };
            let before = noise_vec(seed ^ 3, m * cols);
            let (mut whole, mut got) = (before.clone(), before.clone());
            kernels.gemm(&cx, a, &w, ActMut::F32(MatMut::new(&mut whole, m, cols)), &epilogue);
            let c = ActMut::F32(MatMut::new(&mut got, m, cols)).into_cols(outputs.clone());
            tiles.gemm(&cx, a, w.slice(outputs.clone(), 0..k), c, &part);
            let pick = |at: usize| if outputs.contains(&(at % cols)) { whole[at] } else { before[at] };
            let want: Vec<_> = (0..m * cols).map(pick).collect();
            assert_bits(&got, &want, format_args!("{kernels:?} {format} {m}x{n}x{k} {outputs:?} {paired}"));
        }
    }
}

/// Parts with several blocks of steps and of rows, which random shapes do not reach, on threads.
#[test]
fn deep_parts_give_the_bits_of_the_whole() {
    let pool = Pool::unpinned(3).unwrap();
    for format in WeightFormat::ALL {
        let (n, k) = (70, 2500 * format.step_inputs() + 3);
        let w = pack(format, 64, false, &noise_vec(1, n * k), n, k);
        let cuts = [64, 64 * ((2300 * format.step_inputs()) / 64), k];
        let bias = noise_vec(2, n);
        let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::default() };
        for m in [1, 20, 520] {
            let a = noise_vec(3, m * k);
            let a = ActRef::F32(MatRef::new(&a, m, k));
            let cx = GemmCx { par: pool.par(), scratch: &Scratch::new(), act_quant: ActQuant::Groups };
            for kernels in tiers().filter(|kernels| kernels.isa() >= crate::Isa::Avx2) {
                let (mut want, mut got) = (vec![0.0; m * n], vec![0.0; m * n]);
                kernels.gemm(&cx, a, &w, ActMut::F32(MatMut::new(&mut want, m, n)), &epilogue);
                let c = ActMut::F32(MatMut::new(&mut got, m, n));
                in_parts(kernels, &cx, a, &w, 0..n, &cuts, c, &epilogue);
                assert_bits(&got, &want, format_args!("{kernels:?} {format} {m} rows"));
            }
        }
    }
}

/// A gated MLP in chunks of the intermediate dimension, as against whole.
#[test]
fn an_mlp_in_chunks_gives_the_bits_of_the_whole() {
    let (m, hidden, inner) = (9, 100, 300);
    for format in formats() {
        let up = pack(format, 64, true, &noise_vec(1, 2 * inner * hidden), 2 * inner, hidden);
        let down = pack(format, 64, false, &noise_vec(2, hidden * inner), hidden, inner);
        let a = noise_vec(3, m * hidden);
        let a = ActRef::F32(MatRef::new(&a, m, hidden));
        let cx = GemmCx { par: Par::seq(), scratch: &Scratch::new(), act_quant: ActQuant::Groups };
        let gate = Epilogue { activation: Some(Activation::Silu), ..Epilogue::default() };
        let residual = Epilogue { accumulate: true, ..Epilogue::default() };
        for kernels in tiers() {
            let mut middle = vec![bf16::NAN; m * inner];
            let mut want: Vec<_> = noise_vec(4, m * hidden).into_iter().map(bf16::from_f32).collect();
            let mut got = want.clone();
            kernels.gemm(&cx, a, &up, ActMut::Bf16(MatMut::new(&mut middle, m, inner)), &gate);
            let b = ActRef::Bf16(MatRef::new(&middle, m, inner));
            kernels.gemm(&cx, b, &down, ActMut::Bf16(MatMut::new(&mut want, m, hidden)), &residual);

            let (mut chunk, mut sums) = (vec![bf16::NAN; m * inner], vec![f32::NAN; m * hidden]);
            for start in (0..inner).step_by(unit(format)) {
                let part = start..inner.min(start + unit(format));
                let (len, last) = (part.len(), part.end == inner);
                let c = ActMut::Bf16(MatMut::new(&mut chunk, m, len));
                kernels.gemm(&cx, a, up.slice(part.clone(), 0..hidden), c, &gate);
                let (b, w) = (ActRef::Bf16(MatRef::new(&chunk, m, len)), down.slice(0..hidden, part));
                let mut sums = MatMut::new(&mut sums, m, hidden);
                if last {
                    let c = ActMut::Bf16(MatMut::new(&mut got, m, hidden));
                    kernels.gemm_resume(&cx, b, w, sums.as_ref(), c, &residual);
                } else {
                    kernels.gemm_partial(&cx, b, w, sums.rb_mut(), start > 0);
                }
            }
            assert_eq!(got, want, "{kernels:?} {format}");
        }
    }
}

#[test]
fn no_inputs_add_nothing() {
    let (m, n, k) = (7, 33, 70);
    for format in WeightFormat::ALL {
        let w = pack(format, 64, false, &noise_vec(1, n * k), n, k);
        let a = noise_vec(2, m * k);
        let a = ActRef::F32(MatRef::new(&a, m, k));
        let cx = GemmCx { par: Par::seq(), scratch: &Scratch::new(), act_quant: ActQuant::Groups };
        for kernels in tiers() {
            let (mut want, mut got, mut sums) = (vec![0.0; m * n], vec![1.0; m * n], vec![f32::NAN; m * n]);
            let epilogue = Epilogue::default();
            kernels.gemm(&cx, a, &w, ActMut::F32(MatMut::new(&mut want, m, n)), &epilogue);
            let mut sums = MatMut::new(&mut sums, m, n);
            kernels.gemm_partial(&cx, a.cols_range(0..0), w.slice(0..n, 0..0), sums.rb_mut(), false);
            kernels.gemm_partial(&cx, a, w.slice(0..n, 0..k), sums.rb_mut(), true);
            kernels.gemm_partial(&cx, a.cols_range(k..k), w.slice(0..n, k..k), sums.rb_mut(), true);
            let c = ActMut::F32(MatMut::new(&mut got, m, n));
            kernels.gemm_resume(&cx, a.cols_range(0..0), w.slice(0..n, 64..64), sums.as_ref(), c, &epilogue);
            assert_bits(&got, &want, format_args!("{kernels:?} {format}"));
        }
    }
}

/// Sums and activations of a part next to pages without access.
#[cfg(unix)]
#[test]
fn parts_stay_inside() {
    for format in formats() {
        let (n, k) = (100, unit(format) + 7);
        let w = pack(format, 64, false, &noise_vec(1, n * k), n, k);
        for (flush, m) in Flush::BOTH.into_iter().flat_map(|flush| [1, 7, 13].map(|m| (flush, m))) {
            let cx = GemmCx { par: Par::seq(), scratch: &Scratch::new(), act_quant: ActQuant::Groups };
            let (head, tail) =
                (Guarded::filled(flush, m * (k - 7), 0.5f32), Guarded::filled(flush, m * 7, 0.5f32));
            let (head, tail) = (MatRef::new(&head, m, k - 7), MatRef::new(&tail, m, 7));
            let whole = vec![0.5; m * k];
            for kernels in tiers() {
                let mut want = vec![0.0; m * n];
                let c = ActMut::F32(MatMut::new(&mut want, m, n));
                kernels.gemm(&cx, ActRef::F32(MatRef::new(&whole, m, k)), &w, c, &Epilogue::default());
                let (mut sums, mut got) =
                    (Guarded::filled(flush, m * n, f32::NAN), Guarded::filled(flush, m * n, f32::NAN));
                let mut sums = MatMut::new(&mut sums, m, n);
                kernels.gemm_partial(&cx, ActRef::F32(head), w.slice(0..n, 0..k - 7), sums.rb_mut(), false);
                let c = ActMut::F32(MatMut::new(&mut got, m, n));
                let last = w.slice(0..n, k - 7..k);
                kernels.gemm_resume(&cx, ActRef::F32(tail), last, sums.as_ref(), c, &Epilogue::default());
                assert_bits(&got, &want, format_args!("{kernels:?} {format} {m} rows {flush:?}"));
            }
        }
    }
}

/// One partial product of two rows by a matrix `[80, 200]`.
fn partial(
    format: WeightFormat,
    paired: bool,
    outputs: Range<usize>,
    inputs: Range<usize>,
    act_quant: ActQuant,
) {
    let w = pack(format, 64, paired, &noise_vec(1, 80 * 200), 80, 200);
    let (a, mut sums) = (vec![1.0; 2 * inputs.len()], vec![0.0; 2 * outputs.len()]);
    let a = ActRef::F32(MatRef::new(&a, 2, inputs.len()));
    let sums = MatMut::new(&mut sums, 2, outputs.len());
    let cx = GemmCx { par: Par::seq(), scratch: &Scratch::new(), act_quant };
    Kernels::detect().gemm_partial(&cx, a, w.slice(outputs, inputs), sums, false);
}

#[test]
fn cuts_where_there_can_be_some() {
    use ActQuant::{Groups, Token};
    partial(WeightFormat::Bf16, false, 64..80, 64..200, Token);
    partial(WeightFormat::Int8, false, 0..64, 0..64, Groups);
    partial(WeightFormat::Int8, false, 0..64, 0..200, Token);
    partial(WeightFormat::Int8Group(32), false, 80..80, 200..200, Groups);
}

#[test]
#[should_panic(expected = "not cut at multiples of 64")]
fn a_panel_is_not_cut() {
    partial(WeightFormat::Bf16, false, 0..32, 0..64, ActQuant::Groups);
}

#[test]
#[should_panic(expected = "not cut at multiples of 64")]
fn a_group_of_activations_is_not_cut() {
    partial(WeightFormat::Int8Group(32), false, 0..64, 32..64, ActQuant::Groups);
}

#[test]
#[should_panic(expected = "not cut at multiples of 128")]
fn a_group_of_weights_is_not_cut() {
    partial(WeightFormat::Int8Group(128), false, 0..64, 0..64, ActQuant::Groups);
}

#[test]
#[should_panic(expected = "do not lie in 0..200")]
fn inputs_that_do_not_exist() {
    partial(WeightFormat::F32, false, 0..64, 0..256, ActQuant::Groups);
}

#[test]
#[should_panic(expected = "all inputs of the row")]
fn a_row_with_one_scale_is_not_cut() {
    partial(WeightFormat::Int8, false, 0..64, 0..64, ActQuant::Token);
}

#[test]
#[should_panic(expected = "in one go")]
fn a_pair_is_not_cut_along_its_inputs() {
    partial(WeightFormat::Bf16, true, 0..32, 0..64, ActQuant::Groups);
}

#[test]
#[should_panic(expected = "packed in panels")]
fn rows_have_no_slices() {
    let w = PackedWeights::pack(PackSpec::from(WeightFormat::F32), 2, 2, &Par::seq(), |_, _| {
        Ok::<(), std::convert::Infallible>(())
    });
    let _ = w.unwrap().slice(0..2, 0..2);
}
