//! Matrices whose inputs are stored in another order than the model's: the same numbers wherever one can look.

use std::cell::Cell;
use std::convert::Infallible;

use super::{noise_vec, tiers};
use crate::{
    ActMut, ActQuant, ActRef, Epilogue, GemmCx, InputOrder, Jit, JitCapacity, Kernels, MatMut, MatRef,
    PackSpec, PackedWeights, Par, Pool, Scratch, WeightFormat, WeightLayout, bf16,
};

/// A permutation of `k` inputs in which no two neighbours stay neighbours, for odd `k` > 5.
fn order(k: usize) -> Vec<u32> {
    (0..k).map(|i| (i * 2 % k) as u32).collect()
}

fn pack(format: WeightFormat, n: usize, k: usize) -> PackedWeights {
    let w = noise_vec(9, n * k);
    let spec = PackSpec { format, layout: WeightLayout::Panels { width: 32, paired: false } };
    PackedWeights::pack(spec, n, k, &Par::seq(), |rows, out| {
        out.copy_from_slice(&w[rows.start * k..rows.end * k]);
        Ok::<(), Infallible>(())
    })
    .unwrap()
}

#[test]
fn only_permutations_are_orders() {
    assert!(InputOrder::new(vec![2, 0, 1]).is_some());
    assert!(InputOrder::new(Vec::new()).is_some());
    for wrong in [vec![0, 0, 1], vec![0, 1, 3], vec![1], vec![u32::MAX]] {
        assert!(InputOrder::new(wrong.clone()).is_none(), "{wrong:?}");
    }
}

#[test]
fn rows_are_in_the_models_order() {
    let (n, k) = (37, 101);
    for format in [WeightFormat::Int8Group(32), WeightFormat::Int4(32), WeightFormat::Int4Min(32)] {
        let (plain, kernels) = (pack(format, n, k), Kernels::detect());
        let order = InputOrder::new(order(k)).unwrap();
        let sorted = pack(format, n, k).with_input_order(order.clone());
        let (mut row, mut stored, mut again) = (vec![0.0; k], vec![0.0; k], vec![0.0; k]);
        let mut scratch = vec![0.0; n * k];
        let all = sorted.rows_f32(&kernels, 1..n, &mut scratch);
        for i in 0..n {
            plain.row(i, &kernels, &mut stored);
            sorted.row(i, &kernels, &mut row);
            order.sort(&row, &mut again);
            assert_eq!(again, stored, "{format}, row {i}");
            assert!(i == 0 || all.row(i - 1) == row, "{format}, row {i}");
        }
    }
}

#[test]
fn products_are_those_of_sorted_activations() {
    let pool = Pool::unpinned(3).unwrap();
    let (n, k) = (70, 1001);
    for format in [WeightFormat::Int8Group(64), WeightFormat::Int4(32), WeightFormat::Int4Min(128)] {
        let order = InputOrder::new(order(k)).unwrap();
        let weights = [pack(format, n, k), pack(format, n, k).with_input_order(order.clone())];
        for m in [1, 2, 7, 40] {
            let wide = noise_vec(5, m * k);
            let narrow: Vec<bf16> = wide.iter().map(|&x| bf16::from_f32(x)).collect();
            let (sorted_wide, sorted_narrow) = (sorted(&order, &wide), sorted(&order, &narrow));
            let wide = [&sorted_wide, &wide].map(|a| ActRef::F32(MatRef::new(a, m, k)));
            let narrow = [&sorted_narrow, &narrow].map(|a| ActRef::Bf16(MatRef::new(a, m, k)));
            for (kernels, par) in tiers().flat_map(|t| [(t, Par::seq()), (t, pool.par())]) {
                for quant in [ActQuant::Groups, ActQuant::Fine, ActQuant::Token] {
                    check(&kernels, par, quant, wide, &weights);
                    check(&kernels, par, quant, narrow, &weights);
                }
            }
        }
    }
}

fn sorted<T: Copy>(order: &InputOrder, rows: &[T]) -> Vec<T> {
    let mut out = rows.to_vec();
    let k = order.as_slice().len();
    rows.chunks(k).zip(out.chunks_mut(k)).for_each(|(row, out)| order.sort(row, out));
    out
}

/// Sorted activations times a plain matrix, and the activations times the matrix that knows its order.
fn check(
    kernels: &Kernels,
    par: Par<'_>,
    act_quant: ActQuant,
    [a_sorted, a]: [ActRef<'_>; 2],
    [plain, sorted]: &[PackedWeights; 2],
) {
    let end = Epilogue::default();
    let product = |run: &dyn Fn(&GemmCx<'_>, ActMut<'_>)| {
        let mut c = vec![f32::NAN; a.rows() * plain.n()];
        let out = ActMut::F32(MatMut::new(&mut c, a.rows(), plain.n()));
        run(&GemmCx { par, scratch: &Scratch::new(), act_quant }, out);
        c
    };
    let what = format!("{} {} rows {kernels:?} {act_quant:?}", plain.format(), a.rows());
    let want = product(&|cx, c| kernels.gemm(cx, a_sorted, plain, c, &end));
    assert_eq!(product(&|cx, c| kernels.gemm(cx, a, sorted, c, &end)), want, "{what}");
    let Ok(jit) = Jit::new(*kernels, JitCapacity::default()) else { return };
    // Not every format and tier has generated tiles.
    let made = Cell::new(false);
    let got = product(&|cx, c| made.set(jit.gemm(cx, a, sorted, c, &end).is_ok()));
    assert!(!made.get() || got == want, "generated, {what}");
}

#[test]
fn inputs_that_are_sorted_are_not_cut() {
    let order = InputOrder::new((0..128).rev().collect()).unwrap();
    let sorted = pack(WeightFormat::Int4(32), 32, 128).with_input_order(order);
    assert_eq!(sorted.input_unit(), 128);
    assert_eq!(sorted.slice(0..32, 0..128).k(), 128);
    assert!(sorted.slice(0..32, 128..128).input_order().is_none());
    assert!(std::panic::catch_unwind(|| sorted.slice(0..32, 64..128).k()).is_err());
}
