//! One suite over every tier that this CPU has, against f64 references.

mod activation;
mod attention;
mod barrier;
mod convert;
mod embed;
mod gemm;
#[cfg(unix)]
mod guard;
mod input_order;
#[cfg(target_arch = "x86_64")]
mod jit;
mod kv;
mod library;
mod norm;
mod pool;
#[cfg(unix)]
mod quantize;
mod rotate;
mod select;
mod softmax;
mod stored;
mod weights;

use proptest::prelude::*;

use crate::{Isa, Kernels};

/// The kernels of every tier of this CPU.
fn tiers() -> impl Iterator<Item = Kernels> {
    Isa::supported().filter_map(Kernels::new)
}

/// Calls `check` for every tier with the same random row of ordinary numbers. The row starts at any
/// offset in its allocation, so that vectors are not aligned.
fn with_rows(max_len: usize, check: impl Fn(&Kernels, &[f32])) {
    let row = (0usize..16, prop::collection::vec(-30.0f32..30.0, 1..max_len + 17));
    proptest!(ProptestConfig::with_cases(64), |((offset, row) in row)| {
        let row = &row[offset.min(row.len() - 1)..];
        for kernels in tiers() {
            check(&kernels, row);
        }
    });
}

/// A sequence of numbers in (-1, 1) that is the same in every run (an LCG of Numerical Recipes).
fn noise(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn noise_vec(seed: u32, len: usize) -> Vec<f32> {
    let mut next = noise(seed);
    (0..len).map(|_| next()).collect()
}

fn assert_close(actual: f32, expected: f64, tolerance: f64, what: impl std::fmt::Display) {
    let error = (f64::from(actual) - expected).abs();
    assert!(error <= tolerance, "{what}: {actual} instead of {expected}, off by {error:e} > {tolerance:e}");
}

#[test]
fn a_tier_that_the_cpu_lacks_has_no_kernels() {
    for isa in Isa::ALL {
        assert_eq!(Kernels::new(isa).map(|kernels| kernels.isa()), isa.is_supported().then_some(isa));
    }
    assert_eq!(Kernels::detect().isa(), Isa::detect());
}
