//! Weights that come as integers: what is packed is what is read.

use std::convert::Infallible;
use std::ops::Range;

use half::f16;

use super::quantised;
use crate::{
    Arena, CodeRows, Kernels, PackError, PackSpec, PackedWeights, Par, Placement, Pool, WeightFormat,
    WeightLayout,
};

/// Twice the values of E2M1.
const E2M1: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

fn code(format: WeightFormat, i: usize, j: usize) -> u8 {
    let code = (i * 31 + j * 7 + i * j) % 256;
    if format.is_4_bit() { code as u8 >> 4 } else { code as u8 }
}

/// No f16 holds most of these; those of MXFP4 are powers of two.
fn scale(format: WeightFormat, i: usize, group: usize) -> f32 {
    match format {
        WeightFormat::Mxfp4 => 2f32.powi((i * 5 + group) as i32 % 40 - 20),
        _ => ((i * 13 + group * 5) % 97) as f32 * 0.0123 - 0.5,
    }
}

fn min(i: usize, group: usize) -> f32 {
    ((i * 3 + group * 11) % 89) as f32 * 0.0371 - 1.7
}

fn fill(format: WeightFormat, k: usize, rows: Range<usize>, out: &mut CodeRows<'_>) {
    let groups = k.div_ceil(format.group().unwrap_or(k));
    assert_eq!((out.codes.len(), out.scales.len()), (rows.len() * k, rows.len() * groups));
    assert_eq!(out.mins.len(), if format.has_min() { rows.len() * groups } else { 0 });
    for (at, i) in rows.enumerate() {
        (0..k).for_each(|j| out.codes[at * k + j] = code(format, i, j));
        for group in 0..groups {
            out.scales[at * groups + group] = scale(format, i, group);
            if format.has_min() {
                out.mins[at * groups + group] = min(i, group);
            }
        }
    }
}

/// The weight that the codes stand for.
fn weight(format: WeightFormat, k: usize, i: usize, j: usize) -> f32 {
    let (code, group) = (code(format, i, j), j / format.group().unwrap_or(k));
    let stored = |x: f32| if format.is_4_bit() { f16::from_f32(x).to_f32() } else { x };
    match format {
        WeightFormat::Mxfp4 => E2M1[usize::from(code)] * 0.5 * scale(format, i, group),
        _ if format.has_min() => f32::from(code) * stored(scale(format, i, group)) + stored(min(i, group)),
        _ => (f32::from(code) - f32::from(format.zero())) * stored(scale(format, i, group)),
    }
}

fn pack(spec: PackSpec, n: usize, k: usize, par: &Par<'_>) -> PackedWeights {
    PackedWeights::pack_codes_in(&Arena::new(Placement::default()), spec, n, k, par, |rows, out| {
        fill(spec.format, k, rows, out);
        Ok::<(), Infallible>(())
    })
    .unwrap()
}

#[test]
fn codes_scales_and_minima_come_back() {
    let (kernels, pool) = (Kernels::detect(), Pool::unpinned(3).unwrap());
    for format in quantised() {
        for (n, k) in [(2, 1), (66, 33), (130, 100), (6, 31), (70, 576), (4, 9000)] {
            for (width, paired) in [(32, false), (64, false), (64, true)] {
                let layout = WeightLayout::Panels { width, paired };
                let packed = pack(PackSpec { format, layout }, n, k, &pool.par());
                let mut row = vec![f32::NAN; k];
                for i in 0..n {
                    packed.row(i, &kernels, &mut row);
                    for (j, &got) in row.iter().enumerate() {
                        assert_eq!(
                            got,
                            weight(format, k, i, j),
                            "{format} [{n}, {k}] width {width} ({i}, {j})"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_first_error_is_returned_and_nothing_is_no_weights() {
    for format in quantised() {
        let spec = PackSpec::panels(format);
        let failed = PackedWeights::pack_codes_in(
            &Arena::new(Placement::default()),
            spec,
            100,
            40,
            &Par::seq(),
            |_, _| Err("bad codes"),
        );
        assert_eq!(failed.unwrap_err(), PackError::Fill("bad codes"));
        for (n, k) in [(0, 5), (5, 0)] {
            let packed = PackedWeights::pack_codes_in(
                &Arena::new(Placement::default()),
                spec,
                n,
                k,
                &Par::seq(),
                |_, _| Err("called"),
            );
            assert_eq!(packed.unwrap().bytes(), 0);
        }
    }
}

#[test]
#[should_panic(expected = "bf16 weights are no integers")]
fn floats_have_no_codes() {
    pack(PackSpec::panels(WeightFormat::Bf16), 2, 2, &Par::seq());
}
