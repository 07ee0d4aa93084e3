//! Products whose operands lie next to pages without access.

use half::bf16;

use super::{noise_vec, pack, product, quants};
use crate::gemm::tile::{FourBits, TileArgs, TileKind};
use crate::tests::guard::{Flush, Guarded};
use crate::tests::tiers;
use crate::{ActMut, ActRef, Activation, Epilogue, GemmCx, MatMut, MatRef, Par, Scratch, WeightFormat};

#[test]
fn activations_outputs_and_epilogues_stay_inside() {
    for format in WeightFormat::ALL {
        for (m, n, k) in [(1, 1, 1), (3, 65, 7), (7, 33, 50), (13, 100, 129)] {
            for flush in Flush::BOTH {
                check(format, flush, m, n, k);
            }
        }
    }
}

fn check(format: WeightFormat, flush: Flush, m: usize, n: usize, k: usize) {
    let w = pack(format, 64, false, &noise_vec(1, n * k), n, k);
    let a = Guarded::new(flush, &noise_vec(2, m * k));
    let narrow = Guarded::new(flush, &a.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
    let (bias, other) = (Guarded::filled(flush, n, 0.5f32), Guarded::filled(flush, m * n, bf16::ONE));
    let epilogue = Epilogue {
        bias: Some(&bias),
        activation: Some(Activation::Silu),
        multiply: Some(ActRef::Bf16(MatRef::new(&other, m, n))),
        accumulate: true,
    };
    for (kernels, &act_quant) in tiers().flat_map(|kernels| quants(format).iter().map(move |q| (kernels, q)))
    {
        let cx = GemmCx { par: Par::seq(), scratch: &Scratch::new(), act_quant };
        let mut wide = Guarded::filled(flush, m * n, 0.0f32);
        let c = ActMut::F32(MatMut::new(&mut wide, m, n));
        kernels.gemm(&cx, ActRef::F32(MatRef::new(&a, m, k)), &w, c, &epilogue);
        let silu = |x: f32| f64::from(x) / (1.0 + (-f64::from(x)).exp());
        for (got, sum) in wide.iter().zip(product(&kernels, &a, &w, act_quant)) {
            super::assert_close(*got, silu(sum + 0.5), 1e-5, format_args!("{kernels:?} {format}"));
        }
        let mut rounded = Guarded::filled(flush, m * n, bf16::ZERO);
        let c = ActMut::Bf16(MatMut::new(&mut rounded, m, n));
        kernels.gemm(&cx, ActRef::Bf16(MatRef::new(&narrow, m, k)), &w, c, &epilogue);
        assert!(rounded.iter().all(|x| x.is_finite()));
    }
}

/// The operands that a tile gets from the driver: a block of a panel, rows with scales, sums.
#[test]
fn tiles_stay_inside_of_their_block() {
    for kind in [TileKind::F32, TileKind::Bf16, TileKind::Int8] {
        // Tiles of more than 8 rows are AMX's.
        for (rows, width) in (1..=8).chain([9, 16, 17, 32]).flat_map(|rows| [(rows, 32), (rows, 64)]) {
            for (steps, flush) in [1, 2, 15, 16, 37].into_iter().flat_map(|s| Flush::BOTH.map(|f| (s, f))) {
                check_tile(kind, rows, width, steps, flush);
            }
        }
    }
}

fn check_tile(kind: TileKind, rows: usize, width: usize, steps: usize, flush: Flush) {
    let (group_steps, words) = (16, |seed, len| noise_vec(seed, len));
    let groups = steps.div_ceil(group_steps);
    let w = Guarded::new(flush, &words(2, width * steps));
    let (scales, offsets) =
        (Guarded::filled(flush, rows * groups, 0.5f32), Guarded::filled(flush, rows * groups, 3i32));
    let w_scales = Guarded::filled(flush, groups * width * 2, 0.25f32);
    for kernels in tiers().filter(|kernels| rows <= kernels.table().tile_rows(kind)) {
        for (resume, has_min) in [(false, false), (true, false), (true, kind == TileKind::Int8)] {
            let step_words = if kind == TileKind::Int8 { kernels.table().quad / 4 } else { 1 };
            let a = Guarded::new(flush, &words(1, rows * steps * step_words));
            let mut sums = Guarded::filled(flush, rows * width, 1.0f32);
            let t = TileArgs {
                a: a.as_ptr().cast(),
                a_stride: steps * step_words * 4,
                w: w.as_ptr().cast(),
                steps,
                sums: sums.as_mut_ptr(),
                sums_stride: width,
                resume,
                rows,
                width,
                prefetch: std::ptr::null(),
                prefetch_lines: 0,
                a_scales: scales.as_ptr(),
                a_offsets: offsets.as_ptr(),
                a_groups: groups,
                group_steps,
                w_scales: w_scales.as_ptr(),
                w_stride: if has_min { 2 * width } else { width },
                w_shift: 0,
                has_min,
                four_bits: FourBits::default(),
            };
            // SAFETY: the CPU has the tier; the operands have the shapes that the arguments say.
            unsafe { (kernels.table().tile(kind))(&t) }
            assert!(sums.iter().any(|&sum| sum != 1.0), "{kernels:?} {kind:?}");
        }
    }
}
