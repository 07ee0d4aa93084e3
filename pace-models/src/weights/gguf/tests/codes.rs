//! Integers as they are stored, against the numbers that reading in f32 gives.

use super::super::quant::GgmlType;
use super::writer::{Contents, tensor};
use super::*;
use crate::weights::codes::{self, dequantise, join};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/quantised.gguf");

/// `n` rows of `k` numbers, from `first` on.
fn weights(
    file: &GgufFile,
    name: &str,
    first: usize,
    (n, k): (usize, usize),
    format: WeightFormat,
) -> Result<Vec<f32>, ModelError> {
    use WeightFormat::{Int4Min, Int8Min};
    let groups = n * codes::groups(format, k);
    let has_min = matches!(format, Int4Min(_) | Int8Min(_));
    let (mut codes, mut scales) = (vec![0; n * k], vec![f32::NAN; groups]);
    let mut mins = vec![f32::NAN; if has_min { groups } else { 0 }];
    let mut rows = CodeRows { codes: &mut codes, scales: &mut scales, mins: &mut mins };
    file.read_codes(name, first, format, &mut rows)?;
    let mut out = vec![f32::NAN; n * k];
    dequantise(format, k, &rows, &mut out);
    Ok(out)
}

#[test]
fn every_type_has_the_format_that_holds_it() {
    use WeightFormat::{Int4, Int4Min, Int8Group, Int8Min, Mxfp4};
    let formats = [
        ("Q4_0", Int4(32)),
        ("Q4_1", Int4Min(32)),
        ("Q5_0", Int8Group(32)),
        ("Q5_1", Int8Min(32)),
        ("Q8_0", Int8Group(32)),
        ("Q2_K", Int8Min(16)),
        ("Q3_K", Int8Group(16)),
        ("Q4_K", Int4Min(32)),
        ("Q5_K", Int8Min(32)),
        ("Q6_K", Int8Group(16)),
        ("Q8_K", Int8Group(256)),
        ("IQ4_NL", Int8Group(32)),
        ("MXFP4", Mxfp4),
    ];
    let file = GgufFile::open(Path::new(FIXTURE)).unwrap();
    for (name, format) in formats {
        assert_eq!(file.codes(name), Some(format), "{name}");
        assert_eq!(file.codes(&format!("{name}.expected")), None);
    }
    let with_integers = (0..64).filter_map(GgmlType::from_id).filter(|kind| kind.format().is_some());
    assert_eq!(with_integers.count(), formats.len());
    assert_eq!(file.codes("gone"), None);
}

#[test]
fn integers_stand_for_the_same_numbers_in_every_format_that_holds_them() {
    let file = GgufFile::open(Path::new(FIXTURE)).unwrap();
    let own: Vec<_> = file.tensors().iter().filter_map(|info| file.codes(&info.name)).collect();
    for info in file.tensors().iter().filter(|info| file.codes(&info.name).is_some()) {
        let (name, k) = (info.name.as_str(), *info.shape.last().unwrap());
        let n = info.shape.iter().product::<usize>() / k;
        let format = file.codes(name).unwrap();
        let want = read(&file, name, 0, n * k);
        let same = weights(&file, name, 0, (n, k), format).unwrap();
        assert!(same.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
        let last = weights(&file, name, n - 1, (1, k), format).unwrap();
        assert!(last == want[(n - 1) * k..], "{name}");
        for wide in own.iter().filter_map(|&other| join(format, other)) {
            let got = weights(&file, name, 0, (n, k), wide).unwrap();
            for (want, got) in want.iter().zip(got) {
                // A minimum that was not there costs a rounding of up to 255 scales.
                let most = 256.0 * f32::EPSILON * want.abs().max(1e-30) * 256.0;
                assert!((want - got).abs() <= most, "{name} in {wide:?}: {want} became {got}");
            }
        }
    }
}

#[test]
fn long_tensors_are_read_from_any_row_on() {
    // Rows of two blocks, longer together than two pieces.
    for (kind, block_bytes, block_len) in [(Q4_0, 18, 32), (Q4_1, 20, 32), (Q8_0, 34, 32), (12, 144, 256)] {
        let (rows, k) = (3 * CHUNK_BYTES / block_bytes / 2, 2 * block_len);
        let mut data = blocks(Q4_1, block_bytes, rows * 2);
        data.chunks_mut(block_bytes).for_each(|block| block[3] &= 0xbf);
        let contents = Contents {
            tensors: vec![tensor("w", &[k as u64, rows as u64], kind, 0)],
            data,
            ..Contents::default()
        };
        let (_directory, file) = open(&contents.bytes());
        let file = file.unwrap();
        let format = file.codes("w").unwrap();
        let want = read(&file, "w", 0, rows * k);
        for (first, n) in [(0, rows), (1, rows - 1), (rows / 2, 3), (rows - 1, 1), (rows, 0)] {
            let got = weights(&file, "w", first, (n, k), format).unwrap();
            assert!(got == want[first * k..][..n * k], "type {kind}, {n} rows from {first}");
        }
    }
}

#[test]
fn scales_that_are_not_finite_are_named_with_their_element() {
    let scale = |bits: u16| bits.to_le_bytes().to_vec();
    let (good, infinite, nan) = (scale(0x3c00), scale(0x7c00), scale(0x7e00));
    let codes = vec![0x11; 16];
    let q4_0 = [good.clone(), codes.clone(), good.clone(), codes.clone(), infinite, codes.clone()].concat();
    let q4_1 = [&good, &good, &codes, &good, &nan, &codes].map(Vec::as_slice).concat();
    let mxfp4 = [vec![127], codes.clone(), vec![255], codes].concat();
    let cases = [
        (Q4_0, q4_0, WeightFormat::Int4(32), "the scale of element 64 is inf"),
        (Q4_1, q4_1, WeightFormat::Int8Min(16), "the minimum of element 32 is NaN"),
        (39, mxfp4, WeightFormat::Int8Group(32), "the scale of element 32 is NaN"),
    ];
    for (kind, data, format, expected) in cases {
        let block_bytes = match kind {
            Q4_0 => 18,
            Q4_1 => 20,
            _ => 17,
        };
        let n = data.len() / block_bytes;
        let tensors = vec![tensor("w", &[32, n as u64], kind, 0)];
        let (_directory, file) = open(&Contents { tensors, data, ..Contents::default() }.bytes());
        let file = file.unwrap();
        let message = weights(&file, "w", 0, (n, 32), format).unwrap_err().to_string();
        assert!(message.contains("tensor `w`") && message.contains(expected), "{message}");
        let mut out = vec![0.0; n * 32];
        assert!(file.read_f32("w", 0, &mut out).is_err());
        let groups = n * codes::groups(format, 32);
        let mins = if expected.contains("minimum") { groups } else { 0 };
        let (mut codes, mut scales, mut mins) = (vec![0; n * 32], vec![0.0; groups], vec![0.0; mins]);
        let mut rows = CodeRows { codes: &mut codes, scales: &mut scales, mins: &mut mins };
        file.read_any_codes("w", 0, format, &mut rows).unwrap();
        assert!(rows.scales.iter().chain(&*rows.mins).any(|x| !x.is_finite()));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let file = GgufFile::open(Path::new(FIXTURE)).unwrap();
    let k = *file.info("Q4_0").unwrap().shape.last().unwrap();
    let message =
        |name: &str, first, n, format| weights(&file, name, first, (n, k), format).unwrap_err().to_string();
    let cases = [
        (message("gone", 0, 1, WeightFormat::Int4(32)), "tensor `gone`: missing"),
        (message("Q4_0", 1 << 40, 1, WeightFormat::Int4(32)), "leave its shape"),
        (message("Q4_0", usize::MAX, 1, WeightFormat::Int4(32)), "is beyond its end"),
        (message("Q4_0", 0, 1, WeightFormat::Int4(64)), "int4:32 cannot be widened to int4:64"),
        (message("Q8_0", 0, 1, WeightFormat::Int4(32)), "cannot be widened"),
        (message("Q4_0.expected", 0, 1, WeightFormat::Int4(32)), "type F32 holds no integers"),
    ];
    for (message, expected) in cases {
        assert!(message.contains("quantised.gguf") && message.contains(expected), "{message}");
    }
}
