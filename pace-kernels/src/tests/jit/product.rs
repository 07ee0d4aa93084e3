//! Whole products by generated tiles, with a table whose own tiles must not be called.

use std::convert::Infallible;

use half::bf16;

use crate::gemm::epilogue::{RowEpilogue, RowMut};
use crate::gemm::tile::TileArgs;
use crate::table::Table;
use crate::tests::noise_vec;
use crate::{
    ActMut, ActQuant, ActRef, Activation, Epilogue, GemmCx, Isa, Jit, JitCapacity, JitError, Kernels, MatMut,
    MatRef, PackSpec, PackedWeights, Par, Pool, Scratch, WeightFormat, WeightLayout,
};

fn poisoned_tile(_: &TileArgs) {
    panic!("a tile of the table was called");
}

fn poisoned_row(_: &mut [f32], _: &RowEpilogue<'_>, _: RowMut<'_>) {
    panic!("the table's epilogue was called");
}

static POISONED: Table = Table {
    tile_f32: poisoned_tile,
    tile_bf16: poisoned_tile,
    tile_int8: poisoned_tile,
    finish_row: poisoned_row,
    ..crate::arch::avx512_bf16::TABLE
};

/// The tier's own kernels, and a generator on top of kernels without tiles.
fn kernels_and_jit() -> Option<(Kernels, Jit)> {
    let kernels = Kernels::new(Isa::Avx512Bf16)?;
    Some((kernels, Jit::new(kernels.with_table(&POISONED), JitCapacity::default()).unwrap()))
}

struct Shape {
    m: usize,
    n: usize,
    k: usize,
    width: usize,
    paired: bool,
}

fn pack(format: WeightFormat, shape: &Shape) -> PackedWeights {
    let &Shape { n, k, width, paired, .. } = shape;
    let w = noise_vec(7, n * k);
    let spec = PackSpec { format, layout: WeightLayout::Panels { width, paired } };
    PackedWeights::pack(spec, n, k, &Par::seq(), |rows, out| {
        out.copy_from_slice(&w[rows.start * k..rows.end * k]);
        Ok::<(), Infallible>(())
    })
    .unwrap()
}

/// One product by both, with an output of either type that holds something before.
fn check(format: WeightFormat, shape: &Shape, quant: ActQuant, epilogue: &Epilogue<'_>, par: Par<'_>) {
    let Some((kernels, jit)) = kernels_and_jit() else { return };
    let w = pack(format, shape);
    let (m, cols) = (shape.m, w.result_cols());
    let a = noise_vec(5, m * shape.k);
    let a = ActRef::F32(MatRef::new(&a, m, shape.k));
    let cx = GemmCx { par, scratch: &Scratch::new(), act_quant: quant };
    let what = format!("{format} {quant:?} {m}x{}x{} width {} {epilogue:?}", shape.n, shape.k, shape.width);

    let before = noise_vec(6, m * cols);
    let (mut wanted, mut got) = (before.clone(), before.clone());
    kernels.gemm(&cx, a, &w, ActMut::F32(MatMut::new(&mut wanted, m, cols)), epilogue);
    jit.gemm(&cx, a, &w, ActMut::F32(MatMut::new(&mut got, m, cols)), epilogue).unwrap();
    super::assert_bits(&got, &wanted, &what);

    let before: Vec<_> = before.into_iter().map(bf16::from_f32).collect();
    let (mut wanted, mut got) = (before.clone(), before);
    kernels.gemm(&cx, a, &w, ActMut::Bf16(MatMut::new(&mut wanted, m, cols)), epilogue);
    jit.gemm(&cx, a, &w, ActMut::Bf16(MatMut::new(&mut got, m, cols)), epilogue).unwrap();
    assert!(got.iter().zip(&wanted).all(|(got, wanted)| got.to_bits() == wanted.to_bits()), "bf16 {what}");
}

const FORMATS: [(WeightFormat, ActQuant); 11] = [
    (WeightFormat::Bf16, ActQuant::Groups),
    (WeightFormat::Int8, ActQuant::Groups),
    (WeightFormat::Int8, ActQuant::Token),
    (WeightFormat::Int8Rotated, ActQuant::Groups),
    (WeightFormat::Int8Rotated, ActQuant::Token),
    (WeightFormat::Int8RotatedGroup, ActQuant::Groups),
    (WeightFormat::Int8RotatedGroup, ActQuant::Token),
    (WeightFormat::Int8Group(16), ActQuant::Groups),
    (WeightFormat::Int8Group(32), ActQuant::Groups),
    (WeightFormat::Int8Group(64), ActQuant::Groups),
    (WeightFormat::Int8Group(128), ActQuant::Token),
];

#[test]
fn products_are_those_of_the_table_without_its_tiles() {
    for (format, quant) in FORMATS {
        for (m, n, k) in
            [(1, 64, 64), (1, 65, 127), (2, 1, 1), (6, 200, 300), (7, 33, 129), (13, 64, 2), (40, 96, 640)]
        {
            for width in [32, 64] {
                let shape = Shape { m, n, k, width, paired: false };
                check(format, &shape, quant, &Epilogue::default(), Par::seq());
            }
        }
    }
}

#[test]
fn epilogues_are_those_of_the_table_without_its_own() {
    let (bias, other) = (noise_vec(8, 150), noise_vec(9, 9 * 150));
    let narrow: Vec<_> = other.iter().copied().map(bf16::from_f32).collect();
    for (format, quant) in FORMATS {
        for case in 0..16 {
            let paired = case & 1 > 0;
            let shape = Shape { m: 9, n: 150, k: 200, width: if case & 8 > 0 { 32 } else { 64 }, paired };
            let cols = if paired { 75 } else { 150 };
            let epilogue = Epilogue {
                bias: (case & 2 > 0).then_some(&bias),
                activation: [None, Some(Activation::Silu), Some(Activation::Gelu)][case % 3],
                multiply: [
                    None,
                    Some(ActRef::F32(MatRef::with_stride(&other, 9, cols, 150))),
                    Some(ActRef::Bf16(MatRef::with_stride(&narrow, 9, cols, 150))),
                ][case / 2 % 3],
                accumulate: case & 4 > 0,
            };
            check(format, &shape, quant, &epilogue, Par::seq());
        }
    }
}

/// Large enough for several blocks of rows and of steps, and for prefetching.
#[test]
fn blocks_and_threads_give_the_same_bits() {
    let pool = Pool::unpinned(3).unwrap();
    let epilogue = Epilogue { activation: Some(Activation::Silu), ..Epilogue::default() };
    for (format, quant) in FORMATS {
        for (m, n, k) in [(20, 130, 9000), (520, 130, 200)] {
            let shape = Shape { m, n, k, width: 64, paired: true };
            check(format, &shape, quant, &epilogue, pool.par());
        }
    }
}

#[test]
fn finer_groups_than_the_weights_have_are_the_tables_business() {
    let Some((kernels, _)) = kernels_and_jit() else { return };
    let jit = Jit::new(kernels, JitCapacity::default()).unwrap();
    let w = pack(WeightFormat::Int8Group(64), &Shape { m: 7, n: 70, k: 200, width: 64, paired: false });
    let cx = GemmCx { par: Par::seq(), scratch: &Scratch::new(), act_quant: ActQuant::Fine };
    let a = noise_vec(5, 7 * 200);
    let a = ActRef::F32(MatRef::new(&a, 7, 200));
    let (mut wanted, mut got) = (vec![0.0; 7 * 70], vec![0.0; 7 * 70]);
    kernels.gemm(&cx, a, &w, ActMut::F32(MatMut::new(&mut wanted, 7, 70)), &Epilogue::default());
    jit.gemm(&cx, a, &w, ActMut::F32(MatMut::new(&mut got, 7, 70)), &Epilogue::default()).unwrap();
    super::assert_bits(&got, &wanted, "groups of 16");
}

#[test]
fn other_formats_and_lower_tiers_are_errors() {
    let Some((kernels, jit)) = kernels_and_jit() else { return };
    let shape = Shape { m: 2, n: 5, k: 6, width: 64, paired: false };
    let cx = GemmCx { par: Par::seq(), scratch: &Scratch::new(), act_quant: ActQuant::Groups };
    let a = noise_vec(1, 12);
    let product = |jit: &Jit, format| {
        let mut out = [0.0; 10];
        let out = ActMut::F32(MatMut::new(&mut out, 2, 5));
        jit.gemm(&cx, ActRef::F32(MatRef::new(&a, 2, 6)), &pack(format, &shape), out, &Epilogue::default())
    };
    for format in
        WeightFormat::ALL.into_iter().filter(|format| !FORMATS.iter().any(|(known, _)| known == format))
    {
        let error = product(&jit, format).unwrap_err();
        assert!(matches!(error, JitError::Format(f) if f == format), "{error}");
    }
    let lower = Kernels::new(Isa::Avx512Vnni).unwrap();
    let lower = Jit::new(lower, JitCapacity::default()).unwrap();
    assert!(matches!(
        product(&lower, WeightFormat::Bf16),
        Err(JitError::Isa { needed: Isa::Avx512Bf16, .. })
    ));
    assert!(product(&lower, WeightFormat::Int8).is_ok());
    assert_eq!(kernels.isa(), Isa::Avx512Bf16);
}
