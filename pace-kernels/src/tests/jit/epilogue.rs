//! Fused epilogues against the element-wise kernels, row by row.

use half::bf16;
use proptest::prelude::*;

use super::{Case, assert_bits, jit_for, key};
use crate::jit::{EpilogueArgs, KernelKey, Operands, TileEpilogue, TileKey};
use crate::tests::guard::{Flush, Guarded};
use crate::tests::noise_vec;
use crate::{Activation, DType, Isa, Kernels};

/// A matrix of either type between pages without access: rows of `cols`, some elements apart.
struct Matrix {
    dtype: DType,
    cols: usize,
    stride: usize,
    data: Guarded<u8>,
}

impl Matrix {
    fn noise(dtype: DType, flush: Flush, seed: u32, rows: usize, cols: usize) -> Self {
        let stride = cols + seed as usize % 3;
        let values = noise_vec(seed, (rows - 1) * stride + cols);
        let bytes: Vec<u8> = match dtype {
            DType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_ne_bytes()).collect(),
            _ => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
        };
        Self { dtype, cols, stride, data: Guarded::new(flush, &bytes) }
    }

    fn stride_bytes(&self) -> usize {
        self.stride * self.dtype.size()
    }

    /// Every element, those between rows too, as f32.
    fn values(&self) -> Vec<f32> {
        match self.dtype {
            DType::Bf16 => bytemuck::cast_slice::<u8, bf16>(&self.data).iter().map(|x| x.to_f32()).collect(),
            _ => bytemuck::cast_slice(&self.data).to_vec(),
        }
    }

    fn row(&self, row: usize) -> Vec<f32> {
        self.values()[row * self.stride..][..self.cols].to_vec()
    }
}

/// The operands of an epilogue.
struct Operand {
    bias: Guarded<f32>,
    up_bias: Guarded<f32>,
    scales: Guarded<f32>,
    multiply: Matrix,
    out: Matrix,
}

impl Operand {
    fn new(key: &TileKey, e: &TileEpilogue, flush: Flush, seed: u32) -> Self {
        let floats = |seed, len| Guarded::new(flush, &noise_vec(seed, len));
        let mut bias = floats(seed + 10, e.cols);
        // What a sum may be at worst: the activations' borders, infinities, NaN.
        let special =
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -87.0, 90.0, 3e38, -3e38, 21.0, -21.0, -1e-40];
        for (i, x) in special.into_iter().enumerate() {
            bias[(7 * i + seed as usize) % e.cols] = x;
        }
        Self {
            bias,
            up_bias: floats(seed + 11, e.cols),
            scales: floats(seed + 12, key.width),
            multiply: Matrix::noise(e.multiply.unwrap_or(DType::F32), flush, seed + 13, key.rows, e.cols),
            out: Matrix::noise(e.out, flush, seed + 14, key.rows, e.cols),
        }
    }

    fn args(&mut self) -> EpilogueArgs {
        EpilogueArgs {
            bias: self.bias.as_ptr(),
            up_bias: self.up_bias.as_ptr(),
            scales: self.scales.as_ptr(),
            multiply: self.multiply.data.as_ptr(),
            multiply_stride: self.multiply.stride_bytes(),
            out: self.out.data.as_mut_ptr(),
            out_stride: self.out.stride_bytes(),
        }
    }

    /// What row `row` of the output must be, from the finished sums of the row.
    fn expected(&self, kernels: &Kernels, e: &TileEpilogue, row: usize, mut sums: Vec<f32>) -> Vec<f32> {
        if e.scaled {
            sums.iter_mut().zip(self.scales.iter()).for_each(|(sum, scale)| *sum *= scale);
        }
        let half = sums.len() / 2;
        let up = sums[half..][..e.cols.min(half)].to_vec();
        sums.truncate(e.cols);
        if e.bias {
            sums.iter_mut().zip(self.bias.iter()).for_each(|(sum, bias)| *sum += bias);
        }
        if let Some(activation) = e.activation {
            kernels.activate(activation, &mut sums);
        }
        if e.paired {
            let bias = |at: usize| if e.bias { self.up_bias[at] } else { -0.0 };
            sums.iter_mut().zip(up).enumerate().for_each(|(at, (sum, up))| *sum *= up + bias(at));
        }
        if e.multiply.is_some() {
            sums.iter_mut().zip(self.multiply.row(row)).for_each(|(sum, other)| *sum *= other);
        }
        if e.accumulate {
            sums.iter_mut().zip(self.out.row(row)).for_each(|(sum, out)| *sum += out);
        }
        if e.out == DType::Bf16 {
            let mut narrow = vec![bf16::ZERO; sums.len()];
            kernels.narrow_bf16(&sums, &mut narrow);
            return narrow.iter().map(|x| x.to_f32()).collect();
        }
        sums
    }
}

fn check(key: TileKey, flush: Flush, seed: u32, resume: bool) {
    let (Some(jit), Some(e)) = (jit_for(&key), key.epilogue) else { return };
    // Element-wise kernels are the same on every tier with AVX-512.
    let kernels = Kernels::new(Isa::Avx512).unwrap();
    let mut case = Case::new(key, flush, seed, resume);
    let mut operand = Operand::new(&key, &e, flush, seed);
    let mut expected = operand.out.values();
    let stride = operand.out.stride;
    for (row, sums) in case.expected().chunks_exact(key.width).enumerate() {
        let values = operand.expected(&kernels, &e, row, sums.to_vec());
        expected[row * stride..][..e.cols].copy_from_slice(&values);
    }
    let args = operand.args();
    case.run(&jit, Some(&args));
    assert_bits(&operand.out.values(), &expected, format_args!("{key} resume {resume} {flush:?}"));
}

/// Every activation with and without each other part, full and partial panels.
#[test]
fn every_part_gives_the_bits_of_the_kernels() {
    let int8 = Operands::Int8 { group_steps: 16, weight_scales: false, streamed: false };
    let activations = [None].into_iter().chain(Activation::ALL.map(Some));
    for (case, activation) in activations.flat_map(|activation| (0..64).map(move |case| (case, activation))) {
        let flag = |bit: u32| case >> bit & 1 == 1;
        let paired = flag(0);
        let width = if flag(5) { 32 } else { 64 };
        let most = if paired { width / 2 } else { width };
        let e = TileEpilogue {
            cols: if flag(1) { most } else { most - 1 - case % 13 },
            scaled: flag(2),
            bias: flag(3) || case % 3 > 0,
            activation,
            paired,
            multiply: [None, Some(DType::F32), Some(DType::Bf16)][case % 3],
            accumulate: flag(4),
            out: if flag(3) { DType::F32 } else { DType::Bf16 },
        };
        let operands = if e.scaled { int8 } else { Operands::Bf16 };
        let key = TileKey { epilogue: Some(e), ..key(operands, 1 + case % 8, width, 5 + case % 30) };
        check(key, Flush::BOTH[case % 2], case as u32, flag(4));
    }
}

fn keys() -> impl Strategy<Value = TileKey> {
    let operands = prop_oneof![
        Just(Operands::Bf16),
        (1usize..40, any::<bool>(), any::<bool>()).prop_map(|(group_steps, weight_scales, streamed)| {
            Operands::Int8 { group_steps, weight_scales, streamed }
        }),
    ];
    let dtype = prop_oneof![Just(DType::F32), Just(DType::Bf16)];
    let activation = prop::option::of(prop::sample::select(Activation::ALL.to_vec()));
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let epilogue = (0usize..64, flags, activation, prop::option::of(dtype.clone()), dtype);
    let shape = (1usize..=8, prop_oneof![Just(32usize), Just(64)], 1usize..200, 0usize..=16);
    (operands, shape, prop::option::of(epilogue)).prop_map(
        |(operands, (rows, width, steps, prefetch), epilogue)| {
            let epilogue =
                epilogue.map(|(cols, (scaled, bias, paired, accumulate), activation, multiply, out)| {
                    let most = if paired { width / 2 } else { width };
                    let scaled = scaled && matches!(operands, Operands::Int8 { weight_scales: false, .. });
                    TileEpilogue {
                        cols: 1 + cols % most,
                        scaled,
                        bias,
                        activation,
                        paired,
                        multiply,
                        accumulate,
                        out,
                    }
                });
            TileKey { operands, rows, width, steps, prefetch, epilogue }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_key_gives_the_bits_of_the_kernels(key in keys(), right: bool, seed in 0u32..1000, resume: bool) {
        let flush = Flush::BOTH[usize::from(right)];
        if key.epilogue.is_some() {
            check(key, flush, seed, resume);
        } else {
            super::check_sums(key, flush, seed, resume);
        }
    }

    #[test]
    fn a_name_gives_its_key_back(key in keys()) {
        prop_assert_eq!(key.to_string().parse(), Ok(KernelKey::Tile(key)));
    }

    #[test]
    fn no_name_panics(name in "[a-z0-9:+-]{0,40}") {
        if let Ok(key) = name.parse::<KernelKey>() {
            prop_assert_eq!(key.to_string(), name);
        }
    }
}
