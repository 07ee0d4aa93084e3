//! The blocked product: every format, tier and blocking against f64, and the same bits for a row
//! whatever is computed beside it.

mod guard;
#[cfg(unix)]
mod records;
mod slices;

use std::convert::Infallible;

use half::bf16;
use proptest::prelude::*;

use super::{assert_close, noise_vec, tiers};
use crate::{
    ActMut, ActQuant, ActRef, Activation, Epilogue, GemmCx, Kernels, MatMut, MatRef, PackSpec, PackedWeights,
    Par, Pool, Scratch, WeightFormat, WeightLayout,
};

fn pack(format: WeightFormat, width: usize, paired: bool, w: &[f32], n: usize, k: usize) -> PackedWeights {
    let spec = PackSpec { format, layout: WeightLayout::Panels { width, paired } };
    PackedWeights::pack(spec, n, k, &Par::seq(), |rows, out| {
        out.copy_from_slice(&w[rows.start * k..rows.end * k]);
        Ok::<(), Infallible>(())
    })
    .unwrap()
}

/// a w^T through `gemm`, f32 in and out, on the calling thread.
fn product(kernels: &Kernels, a: &[f32], w: &PackedWeights, quant: ActQuant) -> Vec<f32> {
    product_on(kernels, Par::seq(), a, w, quant)
}

fn product_on(kernels: &Kernels, par: Par<'_>, a: &[f32], w: &PackedWeights, quant: ActQuant) -> Vec<f32> {
    let m = a.len() / w.k();
    let mut c = vec![f32::NAN; m * w.result_cols()];
    let cx = GemmCx { par, scratch: &Scratch::new(), act_quant: quant };
    let out = ActMut::F32(MatMut::new(&mut c, m, w.result_cols()));
    kernels.gemm(&cx, ActRef::F32(MatRef::new(a, m, w.k())), w, out, &Epilogue::default());
    c
}

/// The activations as the kernel sees them.
fn seen(format: WeightFormat, quant: ActQuant, a: &[f32], k: usize) -> Vec<f64> {
    if format.is_rotated() {
        let mut rotated = a.to_vec();
        rotated.chunks_mut(k).for_each(|row| Kernels::detect().rotate(row));
        let mut back = seen(WeightFormat::Int8, quant, &rotated, k);
        back.chunks_mut(k).for_each(super::rotate::rotate);
        return back;
    }
    let rows = a.chunks(k);
    match format {
        WeightFormat::F32 | WeightFormat::F16 => a.iter().map(|&x| f64::from(x)).collect(),
        WeightFormat::Bf16 => a.iter().map(|&x| f64::from(bf16::from_f32(x).to_f32())).collect(),
        _ => {
            let group = match (format.group(), quant) {
                (Some(_), ActQuant::Fine) => 16,
                (Some(_), _) if format.is_4_bit() => 32,
                (Some(group), _) => group,
                (None, ActQuant::Groups | ActQuant::Fine) => 64,
                (None, ActQuant::Token) => k,
            };
            rows.flat_map(|row| row.chunks(if quant == ActQuant::Token { k } else { group }))
                .flat_map(|x| {
                    let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                    let inverse = if max == 0.0 { 0.0 } else { 127.0 / max };
                    x.iter().map(move |x| f64::from((x * inverse).round_ties_even()) * f64::from(max / 127.0))
                })
                .collect()
        }
    }
}

/// The product in f64 and the sum of magnitudes, for weights as they are stored. Where `q * scale` and a minimum are
/// added, both are about as large as the row's largest weight.
fn reference(a: &[f64], w: &PackedWeights) -> Vec<(f64, f64)> {
    let (mut row, format) = (vec![0.0; w.k()], w.format());
    let stored: Vec<Vec<f32>> = (0..w.n())
        .map(|i| {
            w.row(i, &Kernels::detect(), &mut row);
            row.clone()
        })
        .collect();
    let dot = |a: &[f64], w: &[f32]| {
        let largest = w.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
        // A rotation makes an element 8 times as large at the most.
        let parts = match format {
            _ if format.is_rotated() => 16.0 * f64::from(largest),
            _ if format.has_min() => 4.0 * f64::from(largest),
            _ => 0.0,
        };
        a.iter().zip(w).fold((0.0, 0.0), |(sum, magnitude), (a, &w)| {
            let product = a * f64::from(w);
            (sum + product, magnitude + product.abs().max(a.abs() * parts))
        })
    };
    a.chunks(w.k()).flat_map(|a| stored.iter().map(|w| dot(a, w)).collect::<Vec<_>>()).collect()
}

/// Higham's bound for k products and a few roundings more; `vdpbf16ps` flushes denormals.
fn check(got: &[f32], want: &[(f64, f64)], k: usize, what: impl std::fmt::Display) {
    assert_eq!(got.len(), want.len());
    for (i, (&got, &(sum, magnitude))) in got.iter().zip(want).enumerate() {
        let bound = (k as f64 + 4.0) * 2f64.powi(-24) * magnitude + 1e-37;
        assert_close(got, sum, bound, format_args!("{what}, element {i}"));
    }
}

/// The roundings of activations that differ for a format.
fn quants(format: WeightFormat) -> &'static [ActQuant] {
    match format {
        _ if format.group().is_some() => &[ActQuant::Groups, ActQuant::Fine, ActQuant::Token],
        _ if format.is_quantised() => &[ActQuant::Groups, ActQuant::Token],
        _ => &[ActQuant::Groups],
    }
}

/// The result of all 33 rows follows the reference, and any fewer rows give the same bits.
fn check_small(format: WeightFormat, width: usize, n: usize, k: usize) {
    const ROWS: usize = 33;
    let (a, w) = (noise_vec(k as u32, ROWS * k), noise_vec(n as u32, n * k));
    let w = pack(format, width, false, &w, n, k);
    for &quant in quants(format) {
        let want = reference(&seen(format, quant, &a, k), &w);
        for kernels in tiers() {
            let what = format!("{kernels:?} {format} {quant:?} n {n} k {k} width {width}");
            let all = product(&kernels, &a, &w, quant);
            check(&all, &want, k, &what);
            for m in 1..ROWS {
                assert!(product(&kernels, &a[..m * k], &w, quant) == all[..m * n], "{what}: {m} rows");
            }
        }
    }
}

#[test]
fn every_small_shape_follows_the_reference_and_rows_are_independent() {
    for format in WeightFormat::ALL {
        for n in 1..=33 {
            for k in 1..=33 {
                check_small(format, if (n + k) % 2 == 0 { 32 } else { 64 }, n, k);
            }
        }
    }
}

/// Every format, with groups of every size.
fn formats() -> Vec<WeightFormat> {
    let int8 = [16, 32, 128, 256]
        .into_iter()
        .flat_map(|group| [WeightFormat::Int8Group(group), WeightFormat::Int8Min(group)]);
    let int4 =
        [64, 128].into_iter().flat_map(|group| [WeightFormat::Int4(group), WeightFormat::Int4Min(group)]);
    WeightFormat::ALL.into_iter().chain(int8).chain(int4).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn random_shapes_follow_the_reference(
        m in 1usize..80,
        n in 1usize..300,
        k in 1usize..1500,
        format in prop::sample::select(formats()),
        width in prop::sample::select(vec![32usize, 64]),
        seed in any::<u32>(),
    ) {
        let (a, w) = (noise_vec(seed, m * k), noise_vec(!seed, n * k));
        let w = pack(format, width, false, &w, n, k);
        let pool = Pool::unpinned(3).unwrap();
        for &quant in quants(format) {
            let want = reference(&seen(format, quant, &a, k), &w);
            for kernels in tiers() {
                let what = format!("{kernels:?} {format} {quant:?} {m}x{n}x{k}");
                let got = product(&kernels, &a, &w, quant);
                check(&got, &want, k, &what);
                prop_assert_eq!(product_on(&kernels, pool.par(), &a, &w, quant), got);
            }
        }
    }
}

/// Deep and tall enough for blocks of steps and of rows, which small shapes do not reach.
#[test]
fn blocks_of_steps_and_rows_give_the_bits_of_a_single_row() {
    for format in WeightFormat::ALL {
        let k = 9 * 1024 * format.step_inputs() / 4 + 3;
        let (n, m) = (70, 520);
        let (a, w) = (noise_vec(1, m * k), noise_vec(2, n * k));
        let w = pack(format, 64, false, &w, n, k);
        let kernels = Kernels::detect();
        for &quant in quants(format) {
            let all = product(&kernels, &a, &w, quant);
            for threads in 2..=4 {
                let pool = Pool::unpinned(threads).unwrap();
                assert!(
                    product_on(&kernels, pool.par(), &a, &w, quant) == all,
                    "{format}: {threads} threads"
                );
            }
            let want = reference(&seen(format, quant, &a[..k], k), &w);
            check(&all[..n], &want, k, format_args!("{format} {quant:?}"));
            for (first, rows) in [(0, 1), (7, 2), (100, 6), (300, 9), (500, 20), (100, 40)] {
                let some = product(&kernels, &a[first * k..(first + rows) * k], &w, quant);
                assert!(some == all[first * n..(first + rows) * n], "{format} {quant:?}: {rows} rows");
            }
        }
    }
}

/// What an epilogue does, in f64.
fn epilogue_reference(
    sum: f64,
    bias: f64,
    act: Option<Activation>,
    up: Option<f64>,
    times: f64,
    plus: f64,
) -> f64 {
    let x = sum + bias;
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let x = match act {
        None => x,
        Some(Activation::Relu) => x.max(0.0),
        Some(Activation::Silu) => x * sigmoid(x),
        Some(Activation::GeluTanh) => {
            x * sigmoid(2.0 * 0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x))
        }
        Some(Activation::Gelu) => x * 0.5 * libm_erfc(-x / std::f64::consts::SQRT_2),
    };
    x * up.unwrap_or(1.0) * times + plus
}

/// The complementary error function by its continued fraction or series: enough for 1e-10.
fn libm_erfc(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[test]
fn epilogues_are_applied_in_order() {
    let (m, n, k) = (9, 75, 40);
    let acts = [None].into_iter().chain(Activation::ALL.map(Some));
    for (act, bits) in acts.flat_map(|act| (0..16).map(move |bits| (act, bits))) {
        for format in [WeightFormat::F32, WeightFormat::Int8] {
            check_epilogue(format, act, bits, m, n, k);
        }
    }
}

fn check_epilogue(format: WeightFormat, act: Option<Activation>, bits: u32, m: usize, n: usize, k: usize) {
    let (paired, with_bias, times, plus) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0, bits & 8 != 0);
    let rows = if paired { 2 * n } else { n };
    let (a, w) = (noise_vec(1, m * k), noise_vec(2, rows * k));
    let w = pack(format, 64, paired, &w, rows, k);
    let (bias, other, residual) = (noise_vec(3, rows), noise_vec(4, m * (n + 1)), noise_vec(5, m * (n + 2)));
    let sums = reference(&seen(format, ActQuant::Groups, &a, k), &w);
    for kernels in tiers() {
        let mut out = residual.clone();
        let epilogue = Epilogue {
            bias: with_bias.then_some(&bias[..]),
            activation: act,
            multiply: times.then(|| ActRef::F32(MatRef::with_stride(&other, m, n, n + 1))),
            accumulate: plus,
        };
        let cx = GemmCx { par: Par::seq(), scratch: &Scratch::new(), act_quant: ActQuant::Groups };
        let c = ActMut::F32(MatMut::with_stride(&mut out, m, n, n + 2));
        kernels.gemm(&cx, ActRef::F32(MatRef::new(&a, m, k)), &w, c, &epilogue);
        for i in 0..m {
            for j in 0..n + 2 {
                let at = i * (n + 2) + j;
                if j >= n {
                    assert_eq!(out[at], residual[at], "outside of the matrix");
                    continue;
                }
                let number = |on: bool, x: f32, off: f64| if on { f64::from(x) } else { off };
                let sum = |row: usize| sums[i * rows + row].0 + number(with_bias, bias[row], 0.0);
                let want = epilogue_reference(
                    sum(j),
                    0.0,
                    act,
                    paired.then(|| sum(n + j)),
                    number(times, other[i * (n + 1) + j], 1.0),
                    number(plus, residual[at], 0.0),
                );
                let what = format_args!("{kernels:?} {format} {act:?} {bits:04b} ({i}, {j})");
                assert_close(out[at], want, 3e-5 * want.abs().max(1.0), what);
            }
        }
    }
}

#[test]
fn bf16_operands_are_rounded_once() {
    let (m, n, k) = (7, 66, 51);
    let (a, w, before) = (noise_vec(1, m * (k + 3)), noise_vec(2, n * k), noise_vec(3, m * n));
    let a: Vec<_> = a.into_iter().map(bf16::from_f32).collect();
    let wide: Vec<_> = (0..m).flat_map(|i| &a[i * (k + 3)..][..k]).map(|x| x.to_f32()).collect();
    for format in WeightFormat::ALL {
        let w = pack(format, 64, false, &w, n, k);
        for (kernels, accumulate) in tiers().flat_map(|kernels| [false, true].map(|on| (kernels, on))) {
            let exact = product(&kernels, &wide, &w, ActQuant::Groups);
            let mut out: Vec<_> = before.iter().map(|&x| bf16::from_f32(x)).collect();
            let want: Vec<_> = exact
                .iter()
                .zip(&out)
                .map(|(x, old)| bf16::from_f32(if accumulate { x + old.to_f32() } else { *x }))
                .collect();
            let cx = GemmCx { par: Par::seq(), scratch: &Scratch::new(), act_quant: ActQuant::Groups };
            let c = ActMut::Bf16(MatMut::new(&mut out, m, n));
            let a = ActRef::Bf16(MatRef::with_stride(&a, m, k, k + 3));
            kernels.gemm(&cx, a, &w, c, &Epilogue { accumulate, ..Epilogue::default() });
            assert_eq!(out, want, "{kernels:?} {format} {accumulate}");
        }
    }
}

/// Small integers are exact in every format, so every tier gives the very number.
#[test]
fn int8_products_are_exact_in_a_group() {
    let (m, n, k) = (8, 40, 64);
    let a: Vec<f32> =
        (0..m * k).map(|i| if i % k == 0 { 127.0 } else { ((i * 37) % 255) as f32 - 127.0 }).collect();
    let w: Vec<f32> =
        (0..n * k).map(|i| if i % k == 1 { -127.0 } else { ((i * 91) % 255) as f32 - 127.0 }).collect();
    let packed = pack(WeightFormat::Int8, 64, false, &w, n, k);
    for kernels in tiers() {
        let got = product(&kernels, &a, &packed, ActQuant::Groups);
        for (at, got) in got.into_iter().enumerate() {
            let (i, j) = (at / n, at % n);
            let want: i32 = (0..k).map(|p| a[i * k + p] as i32 * w[j * k + p] as i32).sum();
            assert_eq!(got, want as f32, "{kernels:?} ({i}, {j})");
        }
    }
}

#[test]
fn what_is_not_finite_stays_visible() {
    let (m, n, k) = (3, 65, 70);
    for format in WeightFormat::ALL {
        let w = pack(format, 64, false, &noise_vec(1, n * k), n, k);
        for (kernels, bad) in
            tiers().flat_map(|k| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|x| (k, x)))
        {
            for &quant in quants(format) {
                let mut a = noise_vec(2, m * k);
                a[k + 5] = bad;
                let got = product(&kernels, &a, &w, quant);
                assert!(got[n..2 * n].iter().all(|x| !x.is_finite()), "{kernels:?} {format} {bad}");
                assert!(got[..n].iter().chain(&got[2 * n..]).all(|x| x.is_finite()));
            }
        }
    }
}

/// They may be flushed to zero, and nothing worse.
#[test]
fn denormals_are_small() {
    let (m, n, k) = (2, 33, 40);
    for format in WeightFormat::ALL {
        let w = pack(format, 64, false, &vec![1.0; n * k], n, k);
        for kernels in tiers() {
            let got = product(&kernels, &vec![1e-40; m * k], &w, ActQuant::Groups);
            assert!(got.iter().all(|x| (0.0..=1e-38).contains(x)), "{kernels:?} {format}");
            let tiny = pack(format, 64, false, &vec![1e-40; n * k], n, k);
            let got = product(&kernels, &vec![1.0; m * k], &tiny, ActQuant::Groups);
            assert!(got.iter().all(|x| (0.0..=1e-38).contains(x)), "{kernels:?} {format}");
        }
    }
}

#[test]
fn empty_operands() {
    for (kernels, format) in tiers().flat_map(|kernels| WeightFormat::ALL.map(|format| (kernels, format))) {
        for (m, n, k) in [(0, 5, 5), (2, 0, 5), (2, 5, 0), (7, 5, 0), (40, 5, 0)] {
            let w = pack(format, 64, false, &vec![1.0; n * k], n, k);
            let (a, mut c, bias) = (vec![1.0; m * k], vec![f32::NAN; m * n], vec![3.0; n]);
            let cx = GemmCx { par: Par::seq(), scratch: &Scratch::new(), act_quant: ActQuant::Token };
            let out = ActMut::F32(MatMut::new(&mut c, m, n));
            let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::default() };
            kernels.gemm(&cx, ActRef::F32(MatRef::new(&a, m, k)), &w, out, &epilogue);
            assert!(c.iter().all(|&c| c == 3.0), "{kernels:?} {format} {m}x{n}x{k}");
        }
    }
}

#[test]
#[should_panic(expected = "packed in panels")]
fn rows_are_refused() {
    let w =
        PackedWeights::pack(WeightFormat::F32, 2, 2, &Par::seq(), |_, _| Ok::<(), Infallible>(())).unwrap();
    product(&Kernels::detect(), &[1.0; 2], &w, ActQuant::Groups);
}

#[test]
#[should_panic(expected = "does not fit")]
fn shapes_are_checked() {
    let w = pack(WeightFormat::F32, 64, false, &[1.0; 12], 3, 4);
    let cx = GemmCx { par: Par::seq(), scratch: &Scratch::new(), act_quant: ActQuant::Groups };
    let mut c = [0.0; 8];
    let c = ActMut::F32(MatMut::new(&mut c, 2, 4));
    Kernels::detect().gemm(&cx, ActRef::F32(MatRef::new(&[1.0; 8], 2, 4)), &w, c, &Epilogue::default());
}
