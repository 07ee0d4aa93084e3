use std::convert::Infallible;
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::noise_vec;
use crate::{
    Arena, Kernels, MappedFile, PackError, PackSpec, PackedWeights, Par, Placement, Pool, SharedMemory,
    WeightFormat, WeightLayout,
};

/// Every way to pack an even number of rows.
fn specs() -> impl Iterator<Item = PackSpec> {
    let panels = [(32, false), (64, false), (32, true), (64, true)]
        .map(|(width, paired)| WeightLayout::Panels { width, paired });
    WeightFormat::ALL.into_iter().flat_map(move |format| {
        let rows = (!format.is_quantised()).then_some(WeightLayout::Rows);
        panels.into_iter().chain(rows).map(move |layout| PackSpec { format, layout })
    })
}

fn packed(spec: PackSpec, n: usize, k: usize) -> PackedWeights {
    let weights = noise_vec(7, n * k);
    let fill = |rows: Range<usize>, out: &mut [f32]| {
        out.copy_from_slice(&weights[rows.start * k..rows.end * k]);
        Ok::<_, Infallible>(())
    };
    PackedWeights::pack(spec, n, k, &Par::seq(), fill).unwrap()
}

#[test]
fn a_matrix_is_the_same_once_it_is_read_back_or_mapped() {
    let (pool, kernels) = (Pool::unpinned(3).unwrap(), Kernels::detect());
    for spec in specs() {
        for (n, k) in [(2, 1), (64, 33), (130, 100), (98, 576)] {
            let own = packed(spec, n, k);
            let bytes = own.stored();
            assert_eq!(PackedWeights::stored_bytes(spec, n, k).unwrap(), bytes.len(), "{spec:?} {n} {k}");
            assert_eq!(own.bytes(), bytes.len());
            let seen = Mutex::new(vec![0u8; bytes.len()]);
            let read = |range: Range<usize>, out: &mut [u8]| {
                seen.lock().unwrap()[range.clone()].iter_mut().for_each(|n| *n += 1);
                out.copy_from_slice(&bytes[range]);
                Ok::<_, Infallible>(())
            };
            let arena = Arena::new(Placement::default());
            let back = PackedWeights::read_in(&arena, spec, n, k, &pool.par(), read).unwrap();
            assert!(seen.into_inner().unwrap().iter().all(|&n| n == 1), "each byte is read once");
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[0xff; 128]).unwrap();
            file.write_all(bytes).unwrap();
            let map = Arc::new(MappedFile::new(&file).unwrap());
            let mapped = PackedWeights::mapped(&map, 128, spec, n, k).unwrap();
            let later = PackedWeights::mapped(&map, 192, spec, n, k).unwrap_err();
            assert_eq!(later.kind(), ErrorKind::UnexpectedEof, "{spec:?} {n} {k}");
            drop((map, file));
            for other in [&back, &mapped] {
                assert_eq!((other.n(), other.k()), (n, k));
                assert_eq!((other.format(), other.layout()), (spec.format, spec.layout));
                assert_eq!(other.stored(), bytes);
                let (mut want, mut got) = (vec![0.0; k], vec![1.0; k]);
                for i in 0..n {
                    own.row(i, &kernels, &mut want);
                    other.row(i, &kernels, &mut got);
                    assert_eq!(got, want, "{spec:?} row {i}");
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_read_is_an_error_and_an_empty_matrix_needs_nothing() {
    let spec = PackSpec::panels(WeightFormat::Bf16);
    let (arena, calls) = (Arena::new(Placement::default()), AtomicUsize::new(0));
    let fail = |_: Range<usize>, _: &mut [u8]| {
        calls.fetch_add(1, Ordering::Relaxed);
        Err("the disk")
    };
    let error = PackedWeights::read_in(&arena, spec, 640, 64, &Par::seq(), fail).unwrap_err();
    assert_eq!((error, calls.into_inner()), (PackError::Fill("the disk"), 1));
    let none = PackedWeights::read_in(&arena, spec, 0, 64, &Par::seq(), |_, _| Err("never called")).unwrap();
    assert!(none.stored().is_empty());
    assert!(PackedWeights::stored_bytes(spec, usize::MAX / 2, usize::MAX / 2).is_err());
}

#[cfg(target_os = "linux")]
#[test]
fn nothing_is_read_into_what_another_process_has_filled() {
    use std::os::fd::{AsFd, AsRawFd};

    let spec = PackSpec::panels(WeightFormat::Int8Group(64));
    let own = packed(spec, 100, 70);
    let memory = Arc::new(SharedMemory::create().unwrap());
    let read = |range: Range<usize>, out: &mut [u8]| {
        out.copy_from_slice(&own.stored()[range]);
        Ok::<_, &str>(())
    };
    let arena = Arena::shared(Placement::default(), Arc::clone(&memory));
    drop(PackedWeights::read_in(&arena, spec, 100, 70, &Par::seq(), read).unwrap());
    drop(arena);
    memory.seal().unwrap();
    let path = format!("/proc/self/fd/{}", memory.as_fd().as_raw_fd());
    let other = Arena::shared(
        Placement::default(),
        Arc::new(SharedMemory::open(std::path::Path::new(&path)).unwrap()),
    );
    let shared =
        PackedWeights::read_in(&other, spec, 100, 70, &Par::seq(), |_, _| Err("it is there")).unwrap();
    assert_eq!(shared.stored(), own.stored());
}
