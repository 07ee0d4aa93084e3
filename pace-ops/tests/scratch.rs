//! Splitting the intermediate dimension saves memory: IMBPS against TPP.

// Helpers unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use common::{act, numbers, pack};
use pace_kernels::{Activation, DType, Isa, Kernels, Par, Scratch, WeightFormat};
use pace_ops::{Backend, BuildCx, Mlp, MlpWeights, OpCx, OpDType, OpShape, Operator};

#[test]
fn peak_scratch_is_that_of_one_unsplit_layer_by_the_chunks_and_a_chunk() {
    let (rows, ffn, kernels) = (512, 2048, Kernels::detect());
    for hidden in [128, 512] {
        let peak = |backend: Backend, chunks: usize| {
            let mut build = BuildCx::new(kernels);
            build.imbps_chunks = Some(chunks);
            let packed = |shape, n, k| {
                pack(
                    Par::seq(),
                    build.pack_spec(shape, backend.into(), WeightFormat::Bf16),
                    &numbers(1, n * k),
                    n,
                    k,
                )
            };
            let weights = MlpWeights {
                up: packed(OpShape::mlp(OpDType::Bf16, hidden, ffn, true), 2 * ffn, hidden),
                down: packed(OpShape::matrix(Operator::Linear, OpDType::Bf16, hidden, ffn), hidden, ffn),
                up_bias: None,
                down_bias: None,
            };
            let mlp = Mlp::new(&build, weights, Activation::Silu, backend).unwrap();
            let scratch = Scratch::new();
            let cx = OpCx { kernels, par: Par::seq(), scratch: &scratch, profile: None, inputs: None };
            let x = act(&cx, DType::Bf16, &numbers(2, rows * hidden), rows, hidden);
            let mut residual = act(&cx, DType::Bf16, &numbers(3, rows * hidden), rows, hidden);
            mlp.forward(&cx, x.rows(rows), residual.rows_mut(rows));
            scratch.bytes()
        };
        // What a product keeps whatever its size: a tile's sums, and on tiers that widen bf16, a block of a panel.
        // AMX copies rows that would collide in L1, with a line between them.
        let (kept, between) = match kernels.isa() {
            Isa::Amx => (32, rows * 64),
            Isa::Avx512Bf16 => (6, 0),
            _ => (6 + 1024, 0),
        };
        let fixed = kept * 64 * size_of::<f32>() + between;
        let whole = peak(Backend::Tpp, 1);
        assert!(whole >= rows * ffn * 2, "the intermediate rows are in it");
        for chunks in [2, 4, 8] {
            let (split, chunk) = (peak(Backend::Imbps, chunks), rows * ffn / chunks * 2);
            assert!(
                split <= whole / chunks + chunk + fixed,
                "{split} bytes in {chunks} chunks, {whole} in one, hidden {hidden}"
            );
        }
    }
}
