use proptest::prelude::*;

use super::tiers;
use crate::Kernels;

#[test]
fn argmax_takes_the_first_of_equals_and_never_nan() {
    for kernels in tiers() {
        for len in [1usize, 2, 15, 16, 17, 63, 64, 65, 200, 1000] {
            for at in [0, len / 3, len - 1] {
                let mut row = vec![-1.0; len];
                row[at..].fill(2.0);
                assert_eq!(kernels.argmax(&row), at);
                row.fill(f32::NAN);
                assert_eq!(kernels.argmax(&row), 0);
                row[at] = -5.0;
                assert_eq!((kernels.argmax(&row), kernels.max(&row)), (at, -5.0), "{kernels:?}");
                row.fill(f32::NEG_INFINITY);
                assert_eq!(kernels.argmax(&row), 0);
            }
        }
        assert_eq!(kernels.argmax(&[]), 0);
        assert_eq!(kernels.argmax(&[-0.0, 0.0]), 0);
    }
}

/// The k largest numbers and their indices, by sorting.
fn sorted(row: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut numbers: Vec<_> = (0u32..).zip(row.iter().copied()).filter(|(_, x)| !x.is_nan()).collect();
    // Stable, so equals stay in order; -0 and 0 are equals.
    numbers.sort_by(|(_, a), (_, b)| b.partial_cmp(a).unwrap());
    numbers.truncate(k);
    numbers
}

fn top_k(kernels: &Kernels, row: &[f32], k: usize) -> Vec<(u32, f32)> {
    let (mut values, mut indices) = (vec![f32::NAN; k], vec![u32::MAX; k]);
    let found = kernels.top_k(row, &mut values, &mut indices);
    indices[..found].iter().copied().zip(values[..found].iter().copied()).collect()
}

fn numbers() -> impl Strategy<Value = f32> {
    const SPECIALS: [f32; 5] = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 0.0, -0.0];
    // Few different values, so that there are many equals.
    prop_oneof![4 => -1.0f32..1.0, 4 => (-3i8..3).prop_map(f32::from), 1 => prop::sample::select(&SPECIALS)]
}

proptest! {
    #[test]
    fn the_largest_are_those_of_a_sort(row in prop::collection::vec(numbers(), 0..700), k in 0usize..90) {
        let expected = sorted(&row, k);
        for kernels in tiers() {
            prop_assert_eq!(&top_k(&kernels, &row, k), &expected, "{:?}", kernels);
            let first = sorted(&row, 1).first().map_or(0, |&(i, _)| i as usize);
            prop_assert_eq!(kernels.argmax(&row), first, "{:?}", kernels);
        }
    }
}

#[test]
fn ascending_and_descending_rows() {
    let ascending: Vec<f32> = (0..3000).map(|i| i as f32).collect();
    let descending: Vec<f32> = ascending.iter().map(|x| -x).collect();
    for kernels in tiers() {
        for row in [&ascending, &descending] {
            for k in [1, 2, 100, 2999, 3000, 4000] {
                assert_eq!(top_k(&kernels, row, k), sorted(row, k));
            }
        }
        assert_eq!(top_k(&kernels, &[f32::NAN; 300], 3), []);
    }
}
