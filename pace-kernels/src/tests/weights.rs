mod codes;
mod quantize;

use std::collections::HashSet;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use half::{bf16, f16};

use super::{assert_close, noise_vec, tiers};
use crate::{
    Kernels, MatMut, MatRef, OutOfMemory, PackError, PackSpec, PackedWeights, Par, Pool, WeightFormat,
    WeightLayout,
};

/// The formats that can be stored in rows.
const FLOATS: [WeightFormat; 3] = [WeightFormat::F32, WeightFormat::F16, WeightFormat::Bf16];

fn weight(i: usize, j: usize) -> f32 {
    ((i * 31 + j * 7) % 1009) as f32 * 0.37 - 100.0
}

fn stored(format: WeightFormat, x: f32) -> f32 {
    match format {
        WeightFormat::F16 => f16::from_f32(x).to_f32(),
        WeightFormat::Bf16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

fn fill(k: usize) -> impl Fn(Range<usize>, &mut [f32]) -> Result<(), Infallible> {
    move |rows, panel| {
        assert_eq!(panel.len(), rows.len() * k);
        for (i, row) in rows.zip(panel.chunks_mut(k)) {
            row.iter_mut().enumerate().for_each(|(j, w)| *w = weight(i, j));
        }
        Ok(())
    }
}

#[test]
fn every_row_is_packed_once_and_can_be_read() {
    let pool = Pool::unpinned(3).unwrap();
    for format in FLOATS {
        for (n, k) in [(1, 1), (64, 5), (65, 33), (7, 100), (300, 17), (3, 70_000)] {
            for par in [Par::seq(), pool.par()] {
                let seen = Mutex::new(HashSet::new());
                let packed = PackedWeights::pack(format, n, k, &par, |rows, panel| {
                    rows.clone().for_each(|i| assert!(seen.lock().unwrap().insert(i), "row {i} twice"));
                    fill(k)(rows, panel)
                })
                .unwrap();
                assert_eq!(seen.into_inner().unwrap().len(), n);
                assert_eq!((packed.n(), packed.k(), packed.format()), (n, k, format));
                check_rows(&packed);
            }
        }
    }
}

fn check_rows(packed: &PackedWeights) {
    let (n, k, format) = (packed.n(), packed.k(), packed.format());
    for kernels in tiers() {
        let mut row = vec![f32::NAN; k];
        for i in [0, n / 2, n - 1] {
            packed.row(i, &kernels, &mut row);
            assert!((0..k).all(|j| row[j] == stored(format, weight(i, j))));
        }
        let range = n / 3..n;
        let mut scratch = vec![f32::NAN; range.len() * k + 3];
        let rows = packed.rows_f32(&kernels, range.clone(), &mut scratch);
        assert_eq!((rows.rows(), rows.cols()), (range.len(), k));
        for (at, i) in range.enumerate() {
            assert!((0..k).all(|j| rows.row(at)[j] == stored(format, weight(i, j))));
        }
    }
}

#[test]
fn products_use_the_stored_weights() {
    for format in FLOATS {
        for (n, k) in [(1, 1), (6, 15), (9, 16), (70, 33), (13, 200)] {
            let packed = PackedWeights::pack(format, n, k, &Par::seq(), fill(k)).unwrap();
            for (kernels, m) in tiers().flat_map(|kernels| [0, 1, 2, 7].map(|m| (kernels, m))) {
                let (x, rows) = (noise_vec(3, m * k), n / 4..n);
                let (mut y, mut scratch) = (vec![f32::NAN; m * rows.len()], vec![f32::NAN; n * k]);
                let out = MatMut::new(&mut y, m, rows.len());
                packed.matmul(&kernels, rows.clone(), MatRef::new(&x, m, k), out, &mut scratch);
                for (at, &y) in y.iter().enumerate() {
                    let (t, i) = (at / rows.len(), rows.start + at % rows.len());
                    let product = |j| f64::from(x[t * k + j]) * f64::from(stored(format, weight(i, j)));
                    let magnitude: f64 = (0..k).map(|j| product(j).abs()).sum();
                    let bound = (k as f64 + 2.0) * 2f64.powi(-24) * magnitude;
                    let what = format!("{kernels:?} {format} {m}x{n}x{k}");
                    assert_close(y, (0..k).map(product).sum(), bound, what);
                }
            }
        }
    }
}

#[test]
fn sizes_and_empty_matrices() {
    let pack = |format, n, k| PackedWeights::pack(format, n, k, &Par::seq(), fill(k.max(1))).unwrap();
    assert_eq!(pack(WeightFormat::F32, 10, 6).bytes(), 240);
    assert_eq!(pack(WeightFormat::Bf16, 10, 6).bytes(), 120);
    for (n, k) in [(0, 5), (5, 0), (0, 0)] {
        let empty = pack(WeightFormat::Bf16, n, k);
        assert_eq!((empty.n(), empty.k(), empty.bytes()), (n, k, 0));
        assert_eq!(empty.rows_f32(&Kernels::detect(), 0..n, &mut []).rows(), n);
    }
}

#[test]
fn f32_rows_are_borrowed() {
    let packed = PackedWeights::pack(WeightFormat::F32, 8, 4, &Par::seq(), fill(4)).unwrap();
    assert_eq!(packed.rows_f32(&Kernels::detect(), 2..7, &mut []).row(0)[3], weight(2, 3));
}

#[test]
fn the_first_error_wins_and_the_rest_is_left_out() {
    let pool = Pool::unpinned(2).unwrap();
    for spec in specs() {
        for par in [Par::seq(), pool.par()] {
            let (calls, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
            let result = PackedWeights::pack(spec, 64 * 1000, 4, &par, |rows, _| {
                calls.fetch_add(1, Ordering::Relaxed);
                if rows.start == 0 {
                    failed.store(true, Ordering::Release);
                    return Err("bad tensor");
                }
                // On a busy machine the other thread could be done before this one has begun.
                while !failed.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                Ok(())
            });
            assert_eq!(result.unwrap_err(), PackError::Fill("bad tensor"));
            assert!(calls.into_inner() < 1000, "panels after the failure were filled");
        }
    }
}

#[test]
fn too_large_is_an_error() {
    for (n, k) in [(usize::MAX, 2), (1 << 40, 1 << 40), (1 << 30, 1 << 30)] {
        let result = PackedWeights::pack(WeightFormat::F32, n, k, &Par::seq(), fill(k));
        assert!(matches!(result, Err(PackError::OutOfMemory(OutOfMemory { .. }))));
    }
}

#[test]
fn format_names_round_trip() {
    for format in WeightFormat::ALL.into_iter().chain(quantised()) {
        assert_eq!(format.to_string().parse(), Ok(format));
        assert_eq!(format.to_string().to_uppercase().parse(), Ok(format));
    }
    for name in ["int8:8", "int8m:512", "int4:16", "int4m:256", "int4", "mxfp4:32"] {
        assert!(name.parse::<WeightFormat>().is_err(), "{name}");
    }
    assert!("int2".parse::<WeightFormat>().unwrap_err().to_string().contains("`int2`"));
}

/// The formats of integers, with groups of every size.
fn quantised() -> Vec<WeightFormat> {
    let int8 = [16, 32, 64, 128, 256];
    let int4 = [32, 64, 128];
    [WeightFormat::Int8, WeightFormat::Mxfp4]
        .into_iter()
        .chain(
            int8.into_iter().flat_map(|group| [WeightFormat::Int8Group(group), WeightFormat::Int8Min(group)]),
        )
        .chain(int4.into_iter().flat_map(|group| [WeightFormat::Int4(group), WeightFormat::Int4Min(group)]))
        .collect()
}

/// Every way to pack.
fn specs() -> impl Iterator<Item = PackSpec> {
    let panels = |format| {
        let layout = |width, paired| WeightLayout::Panels { width, paired };
        [layout(32, false), layout(64, false), layout(32, true), layout(64, true)]
            .map(|layout| PackSpec { format, layout })
    };
    FLOATS.into_iter().map(PackSpec::from).chain(WeightFormat::ALL.into_iter().flat_map(panels))
}

#[test]
fn panels_hold_every_row() {
    let pool = Pool::unpinned(3).unwrap();
    for spec in specs() {
        for (n, k) in [(2, 1), (64, 5), (66, 33), (130, 100), (300, 70), (4, 9000)] {
            let seen = Mutex::new(HashSet::new());
            let packed = PackedWeights::pack(spec, n, k, &pool.par(), |rows, panel| {
                rows.clone().for_each(|i| assert!(seen.lock().unwrap().insert(i), "row {i} twice"));
                fill(k)(rows, panel)
            })
            .unwrap();
            assert_eq!(seen.into_inner().unwrap().len(), n);
            assert_eq!((packed.format(), packed.layout()), (spec.format, spec.layout));
            let mut row = vec![f32::NAN; k];
            for i in 0..n {
                packed.row(i, &Kernels::detect(), &mut row);
                let largest = (0..k).fold(0.0f32, |max, j| max.max(weight(i, j).abs()));
                for (j, &got) in row.iter().enumerate() {
                    let want = stored(spec.format, weight(i, j));
                    let off = match spec.format {
                        WeightFormat::Int8 | WeightFormat::Int8Group(_) => largest / 253.0,
                        // As much in each of 64 rotated elements, whose largest is 8 times as large at the most.
                        format if format.is_rotated() => largest * 8.0 / 253.0 * 8.0,
                        // Half a step of the group's range, and what f16 scales lose.
                        WeightFormat::Int8Min(_) => 2.0 * largest / 509.0,
                        WeightFormat::Int4(_) => largest / 7.9,
                        WeightFormat::Int4Min(_) => 2.0 * largest / 29.5,
                        WeightFormat::Mxfp4 => largest / 3.9,
                        _ => 0.0,
                    };
                    assert!((got - want).abs() <= off, "{spec:?} ({i}, {j}): {got} instead of {want}");
                }
            }
        }
    }
}

/// `rows_f32` reads whole runs of a panel's columns, `row` one.
#[test]
fn runs_of_rows_in_panels_are_those_rows() {
    let groups = quantised().into_iter().map(PackSpec::panels);
    for spec in specs().filter(|spec| spec.layout != WeightLayout::Rows).chain(groups) {
        for (n, k) in [(2, 1), (66, 33), (130, 129), (200, 600), (6, 0)] {
            let packed = PackedWeights::pack(spec, n, k, &Par::seq(), fill(k.max(1))).unwrap();
            for (kernels, cut) in tiers().flat_map(|kernels| [0, 1, 31, 64, 65].map(|cut| (kernels, cut))) {
                let range = cut.min(n)..n - cut.min(n) / 3;
                let (mut scratch, mut row) = (vec![f32::NAN; range.len() * k + 1], vec![f32::NAN; k]);
                let rows = packed.rows_f32(&kernels, range.clone(), &mut scratch);
                for (at, i) in range.enumerate() {
                    packed.row(i, &kernels, &mut row);
                    assert_eq!(rows.row(at), row, "{kernels:?} {spec:?} [{n}, {k}] row {i}");
                }
            }
        }
    }
}

#[test]
fn products_by_rows_and_by_panels_agree() {
    let (n, k) = (150, 70);
    for spec in specs().filter(|spec| spec.layout != WeightLayout::Rows) {
        let packed = PackedWeights::pack(spec, n, k, &Par::seq(), fill(k)).unwrap();
        let (kernels, rows) = (Kernels::detect(), 40..n - 1);
        for m in [1, 3] {
            let (x, mut scratch) = (noise_vec(3, m * k), vec![f32::NAN; rows.len() * k]);
            let (mut want, mut got) = (vec![f32::NAN; m * rows.len()], vec![f32::NAN; m * rows.len()]);
            let mut row = vec![0.0; k];
            for (at, want) in want.iter_mut().enumerate() {
                packed.row(rows.start + at % rows.len(), &kernels, &mut row);
                let x = &x[at / rows.len() * k..][..k];
                *want = x.iter().zip(&row).map(|(x, w)| f64::from(x * w)).sum::<f64>() as f32;
            }
            let out = MatMut::new(&mut got, m, rows.len());
            packed.matmul(&kernels, rows.clone(), MatRef::new(&x, m, k), out, &mut scratch);
            for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_close(*got, f64::from(*want), 0.01, format_args!("{spec:?} {m} rows, {at}"));
            }
        }
    }
}

#[test]
fn panels_take_what_they_should() {
    let bytes = |format, n, k| {
        let spec = PackSpec { format, layout: WeightLayout::PANELS };
        PackedWeights::pack(spec, n, k, &Par::seq(), fill(k)).unwrap().bytes()
    };
    assert_eq!(bytes(WeightFormat::F32, 128, 10), 128 * 10 * 4);
    assert_eq!(bytes(WeightFormat::F16, 128, 10), 128 * 10 * 2);
    assert_eq!(bytes(WeightFormat::Bf16, 100, 9), 128 * 10 * 2);
    assert_eq!(bytes(WeightFormat::Int8, 64, 9), 64 * 12 + 64 * 4);
    assert_eq!(bytes(WeightFormat::Int8Group(64), 64, 128), 64 * 128 + 2 * 64 * 4);
    assert_eq!(bytes(WeightFormat::Int8Min(64), 64, 128), 64 * 128 + 4 * 64 * 4);
    assert_eq!(bytes(WeightFormat::Int4(32), 64, 128), 64 * 128 / 2 + 4 * 64 * 2);
    // A last group is stored whole.
    assert_eq!(bytes(WeightFormat::Int4Min(64), 64, 65), 2 * 64 * (32 + 2 * 2));
    assert_eq!(bytes(WeightFormat::Mxfp4, 1, 33), 2 * 64 * (16 + 2));
}

#[test]
#[should_panic(expected = "packed in panels")]
fn int8_in_rows_is_refused() {
    let _ = PackedWeights::pack(WeightFormat::Int8, 4, 4, &Par::seq(), fill(4));
}

#[test]
#[should_panic(expected = "not a pair")]
fn half_a_pair_is_refused() {
    let spec = PackSpec { format: WeightFormat::F32, layout: WeightLayout::PAIRED_PANELS };
    let _ = PackedWeights::pack(spec, 3, 4, &Par::seq(), fill(4));
}
