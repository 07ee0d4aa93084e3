use half::{bf16, f16};

use super::{noise_vec, tiers};
use crate::{ActBuf, ActRef, DType, Element, Kernels, MatRef};

fn check<E: Element>(kernels: &Kernels, cols: usize) {
    // A stride, so that rows are not next to each other.
    let table: Vec<E> = noise_vec(1, 5 * (cols + 3)).into_iter().map(E::from_f32).collect();
    let table = MatRef::with_stride(&table, 5, cols, cols + 3);
    let ids = [4, 0, 0, 3];
    for dtype in [DType::F32, DType::Bf16] {
        let mut out = ActBuf::new(dtype, cols);
        kernels.gather(table, &ids, out.rows_mut(4));
        for (i, &id) in ids.iter().enumerate() {
            for (j, x) in table.row(id as usize).iter().enumerate() {
                match out.rows(4) {
                    ActRef::F32(out) => assert_eq!(out.row(i)[j], x.to_f32()),
                    ActRef::Bf16(out) => assert_eq!(out.row(i)[j], bf16::from_f32(x.to_f32())),
                }
            }
        }
    }
}

#[test]
fn rows_of_any_type_are_gathered() {
    for kernels in tiers() {
        for cols in [0, 1, 5, 16, 255, 256, 257, 600] {
            check::<f32>(&kernels, cols);
            check::<bf16>(&kernels, cols);
            check::<f16>(&kernels, cols);
        }
    }
}

#[test]
#[should_panic(expected = "id 2 of 2")]
fn an_id_beyond_the_table_is_refused() {
    let mut out = ActBuf::new(DType::F32, 3);
    Kernels::detect().gather(MatRef::new(&[0.0f32; 6], 2, 3), &[1, 2], out.rows_mut(2));
}
