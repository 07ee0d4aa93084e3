use super::{noise_vec, tiers};
use crate::{Kernels, MatMut, MatRef};

/// Higham's bound for a sum of k products in any order, plus the addition to c.
fn check(actual: f32, products: impl Iterator<Item = f64>, start: f64, what: std::fmt::Arguments<'_>) {
    let (mut sum, mut magnitude, mut k) = (start, start.abs(), 2.0);
    for product in products {
        sum += product;
        magnitude += product.abs();
        k += 1.0;
    }
    super::assert_close(actual, sum, k * 2f64.powi(-24) * magnitude, what);
}

fn check_shape(kernels: &Kernels, m: usize, n: usize, k: usize, pad: usize) {
    let (a, b) = (noise_vec(1, m * (k + pad) + 3), noise_vec(2, (n + k + 9) * (n + k + pad) + 5));
    // One element in, so that no row is aligned.
    let a = MatRef::with_stride(&a[1..], m, k, k + pad);
    let nt = MatRef::with_stride(&b[1..], n, k, k + pad);
    let nn = MatRef::with_stride(&b[1..], k, n, n + pad);
    for accumulate in [false, true] {
        let initial = noise_vec(3, m * (n + pad) + 1);
        for transposed in [false, true] {
            let mut data = initial.clone();
            let c = MatMut::with_stride(&mut data, m, n, n + pad);
            if transposed {
                kernels.matmul_nt(a, nt, c, accumulate);
            } else {
                kernels.matmul_nn(a, nn, c, accumulate);
            }
            for (at, (&actual, &start)) in data.iter().zip(&initial).enumerate() {
                let (i, j) = (at / (n + pad).max(1), at % (n + pad).max(1));
                if i >= m || j >= n {
                    assert_eq!(actual, start, "outside of the matrix");
                    continue;
                }
                let b = |p: usize| if transposed { nt.row(j)[p] } else { nn.row(p)[j] };
                let products = (0..k).map(|p| f64::from(a.row(i)[p]) * f64::from(b(p)));
                let start = if accumulate { f64::from(start) } else { 0.0 };
                let what = format_args!("{kernels:?} {m}x{n}x{k}+{pad} {accumulate} {transposed} ({i},{j})");
                check(actual, products, start, what);
            }
        }
    }
}

#[test]
fn products_follow_the_reference() {
    for kernels in tiers() {
        for m in [0, 1, 2, 3, 5, 17] {
            for n in [0, 1, 3, 4, 5, 16, 33, 64] {
                for k in [0, 1, 2, 7, 15, 16, 17, 31, 32, 33, 67, 128] {
                    check_shape(&kernels, m, n, k, (m + n + k) % 3);
                }
            }
        }
        check_shape(&kernels, 40, 70, 600, 1);
        check_shape(&kernels, 257, 9, 40, 1);
        check_shape(&kernels, 1, 130, 1537, 0);
    }
}

#[test]
fn what_c_held_does_not_matter_unless_it_is_added_to() {
    for kernels in tiers() {
        for m in [1, 3] {
            for k in [0, 5] {
                let (a, w) = (vec![1.0; m * k], vec![2.0; 6 * k]);
                let mut c = vec![f32::NAN; m * 6];
                let (a, w) = (MatRef::new(&a, m, k), &w);
                kernels.matmul_nt(a, MatRef::new(w, 6, k), MatMut::new(&mut c, m, 6), false);
                assert_eq!(c, vec![2.0 * k as f32; m * 6]);
                c.fill(f32::NAN);
                kernels.matmul_nn(a, MatRef::new(w, k, 6), MatMut::new(&mut c, m, 6), false);
                assert_eq!(c, vec![2.0 * k as f32; m * 6]);
            }
        }
    }
}

#[test]
#[should_panic(expected = "does not fit")]
fn shapes_are_checked() {
    let data = [0.0; 12];
    let mut c = [0.0; 12];
    Kernels::detect().matmul_nt(
        MatRef::new(&data, 3, 4),
        MatRef::new(&data, 4, 3),
        MatMut::new(&mut c, 3, 4),
        false,
    );
}
