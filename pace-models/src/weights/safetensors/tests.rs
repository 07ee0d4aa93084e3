//! What well-formed checkpoints give.

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

/// The bytes of a safetensors file.
pub(super) fn container(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// A file whose tensors lie one after the other: name, dtype, shape, data.
pub(super) fn checkpoint(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let begin = data.len();
        data.extend(bytes);
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{}]}}"#,
            data.len()
        ));
    }
    container(&format!("{{{}}}", entries.join(",")), &data)
}

pub(super) fn f32s(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn open_bytes(bytes: &[u8]) -> Result<(tempfile::TempDir, SafetensorsSource), ModelError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(SINGLE), bytes).unwrap();
    let source = SafetensorsSource::open(dir.path())?;
    Ok((dir, source))
}

fn index(entries: &[(&str, &str)]) -> String {
    let entries: Vec<_> =
        entries.iter().map(|(tensor, shard)| format!("\"{tensor}\": \"{shard}\"")).collect();
    format!(r#"{{"metadata": {{"total_size": 8}}, "weight_map": {{{}}}}}"#, entries.join(", "))
}

#[test]
fn all_three_types_are_widened_exactly() {
    let numbers = [0.0f32, -0.0, 1.0, -2.5, 6.1e-5, 65504.0];
    let halves: Vec<u8> = numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
    let brains: Vec<u8> = numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
    let file = checkpoint(&[
        ("a", "F32", &[2, 3], f32s(&numbers)),
        ("b", "F16", &[2, 3], halves),
        ("c", "BF16", &[6], brains),
        ("d", "F32", &[0, 4], Vec::new()),
        ("e", "F32", &[], f32s(&[7.0])),
    ]);
    let (_dir, source) = open_bytes(&file).unwrap();
    assert_eq!(source.naming(), Naming::Hf);
    let names: Vec<_> = source.tensors().iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert_eq!(source.info("b").unwrap().shape, [2, 3]);
    assert_eq!(source.info("b").unwrap().format, "F16");
    let bits = |name: &str| {
        let mut out = [9.0; 6];
        source.read_f32(name, 0, &mut out).unwrap();
        out.map(f32::to_bits)
    };
    assert_eq!(bits("a"), numbers.map(f32::to_bits));
    assert_eq!(bits("b"), numbers.map(|x| f16::from_f32(x).to_f32().to_bits()));
    assert_eq!(bits("c"), numbers.map(|x| bf16::from_f32(x).to_f32().to_bits()));
    let read = ["a", "b", "c"].map(bits);
    source.set_mapped(true).unwrap();
    assert_eq!(["a", "b", "c"].map(bits), read);
    source.read_f32("d", 0, &mut []).unwrap();
    let mut row = [0.0; 3];
    source.read_f32("a", 3, &mut row).unwrap();
    assert_eq!(row, numbers[3..]);
    let mut scalar = [0.0];
    source.read_f32("e", 0, &mut scalar).unwrap();
    assert_eq!(scalar, [7.0]);
}

#[test]
fn every_16_bit_pattern_is_widened_as_half_says() {
    let finite = |bits: &u16| f16::from_bits(*bits).is_finite() && bf16::from_bits(*bits).is_finite();
    let patterns: Vec<u16> = (0..=u16::MAX).filter(finite).collect();
    let bytes: Vec<u8> = patterns.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    let n = patterns.len();
    let file = checkpoint(&[("h", "F16", &[n], bytes.clone()), ("b", "BF16", &[n], bytes)]);
    let (_dir, source) = open_bytes(&file).unwrap();
    let mut out = vec![0.0; n];
    source.read_f32("h", 0, &mut out).unwrap();
    assert!(patterns.iter().zip(&out).all(|(p, x)| f16::from_bits(*p).to_f32().to_bits() == x.to_bits()));
    source.read_f32("b", 0, &mut out).unwrap();
    assert!(patterns.iter().zip(&out).all(|(p, x)| bf16::from_bits(*p).to_f32().to_bits() == x.to_bits()));
}

#[test]
fn reads_longer_than_a_chunk_are_seamless() {
    let n = 2 * CHUNK_BYTES / 2 + 77;
    let value = |at: usize| bf16::from_f32((at % 251) as f32);
    let brains: Vec<u8> = (0..n).flat_map(|at| value(at).to_le_bytes()).collect();
    let singles = f32s(&(0..n).map(|at| value(at).to_f32()).collect::<Vec<_>>());
    let (_dir, source) =
        open_bytes(&checkpoint(&[("b", "BF16", &[n], brains), ("f", "F32", &[n], singles)])).unwrap();
    for name in ["b", "f"] {
        let mut out = vec![0.0; n - 5];
        source.read_f32(name, 5, &mut out).unwrap();
        assert!(out.iter().enumerate().all(|(at, x)| *x == value(at + 5).to_f32()), "{name}");
    }
}

#[test]
fn metadata_padding_and_a_bare_file_are_read() {
    let header = r#"{"__metadata__":{"format":"pt","note":"é\n"},"w":{"data_offsets":[0,4],"shape":[1],"dtype":"F32"}}   "#;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.safetensors");
    std::fs::write(&path, container(header, &f32s(&[3.0]))).unwrap();
    let source = SafetensorsSource::open(&path).unwrap();
    assert_eq!(source.tensors().len(), 1);
    assert_eq!(source.path("w"), path);
    assert_eq!(source.path("gone"), path);
}

#[test]
fn other_types_open_and_reading_them_names_the_type() {
    let file = checkpoint(&[
        ("mask", "BOOL", &[3], vec![0, 1, 0]),
        ("ids", "I64", &[1], vec![0; 8]),
        ("scale", "F8_E4M3", &[2], vec![0; 2]),
        ("w", "F32", &[1], f32s(&[1.0])),
    ]);
    let (_dir, source) = open_bytes(&file).unwrap();
    for (name, dtype) in [("mask", "BOOL"), ("ids", "I64"), ("scale", "F8_E4M3")] {
        assert_eq!(source.info(name).unwrap().format, dtype);
        let message = source.read_f32(name, 0, &mut [0.0]).unwrap_err().to_string();
        let expected =
            format!("model.safetensors: tensor `{name}`: has type {dtype}; only F32, F16 and BF16");
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn shards_are_joined_through_the_index_and_through_links() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("1.safetensors"), checkpoint(&[("a", "F32", &[1], f32s(&[1.0]))]))
        .unwrap();
    std::fs::write(blobs.path().join("blob"), checkpoint(&[("b", "F32", &[1], f32s(&[2.0]))])).unwrap();
    std::os::unix::fs::symlink(blobs.path().join("blob"), dir.path().join("2.safetensors")).unwrap();
    std::fs::write(dir.path().join(INDEX), index(&[("b", "2.safetensors"), ("a", "1.safetensors")])).unwrap();
    let source = SafetensorsSource::open(dir.path()).unwrap();
    for (name, expected, shard) in [("a", 1.0, "1.safetensors"), ("b", 2.0, "2.safetensors")] {
        let mut out = [0.0];
        source.read_f32(name, 0, &mut out).unwrap();
        assert_eq!(out, [expected]);
        assert_eq!(source.path(name), dir.path().join(shard));
    }
    assert_eq!(source.path("gone"), dir.path().join(INDEX));
}

#[test]
fn a_single_file_wins_over_an_index() {
    let (dir, _) = open_bytes(&checkpoint(&[("a", "F32", &[1], f32s(&[1.0]))])).unwrap();
    std::fs::write(dir.path().join(INDEX), "broken").unwrap();
    assert!(SafetensorsSource::open(dir.path()).is_ok());
}

#[test]
fn ranges_unknown_names_and_bad_numbers_are_errors_of_the_tensor() {
    let file = checkpoint(&[
        ("w", "F32", &[2, 2], f32s(&[1.0, 2.0, 3.0, 4.0])),
        ("nan", "F32", &[3], f32s(&[1.0, 2.0, f32::NAN])),
        ("inf", "BF16", &[2], vec![0x80, 0x3f, 0x80, 0x7f]),
        ("neg", "F16", &[2], vec![0x00, 0xfc, 0x00, 0x00]),
    ]);
    let (_dir, source) = open_bytes(&file).unwrap();
    let cases = [
        ("w", 0, 5, "`w`: has 4 elements; 5 from 0 on"),
        ("w", 4, 1, "`w`: has 4 elements; 1 from 4 on"),
        ("w", usize::MAX, 2, "`w`: has 4 elements"),
        ("gone", 0, 1, "`gone`: is missing"),
        ("nan", 0, 3, "`nan`: element 2 is NaN; weights must be finite"),
        ("nan", 2, 1, "`nan`: element 2 is NaN"),
        ("inf", 0, 2, "`inf`: element 1 is inf"),
        ("neg", 0, 2, "`neg`: element 0 is -inf"),
    ];
    for (name, start, count, expected) in cases {
        let message = source.read_f32(name, start, &mut vec![0.0; count]).unwrap_err().to_string();
        assert!(message.contains("model.safetensors: tensor ") && message.contains(expected), "{message}");
    }
    source.read_f32("nan", 0, &mut [0.0; 2]).unwrap();
}

#[test]
fn a_file_that_shrinks_after_opening_is_an_error() {
    let (dir, source) = open_bytes(&checkpoint(&[("w", "F32", &[2], f32s(&[1.0, 2.0]))])).unwrap();
    let path = dir.path().join(SINGLE);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(path.metadata().unwrap().len() - 1).unwrap();
    let message = source.read_f32("w", 0, &mut [0.0; 2]).unwrap_err().to_string();
    assert!(message.contains("tensor `w`: ends too early: the file was changed or truncated"), "{message}");
}

proptest! {
    #[test]
    fn what_is_written_is_read_at_any_range(
        rows in 1usize..6, cols in 1usize..9, first in 0usize..6, count in 0usize..6,
    ) {
        let numbers: Vec<f32> = (0..rows * cols).map(|at| at as f32 - 7.5).collect();
        let file = checkpoint(&[
            ("pad", "U8", &[3], vec![1, 2, 3]),
            ("w", "F32", &[rows, cols], f32s(&numbers)),
        ]);
        let (_dir, source) = open_bytes(&file).unwrap();
        let mut out = vec![0.0; count * cols];
        let read = source.read_f32("w", first * cols, &mut out);
        if first + count <= rows {
            read.unwrap();
            prop_assert_eq!(out.as_slice(), &numbers[first * cols..][..count * cols]);
        } else {
            prop_assert!(read.is_err());
        }
    }
}
