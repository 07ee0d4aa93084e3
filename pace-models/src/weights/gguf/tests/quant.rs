//! Quantised blocks against the numbers that ggml's Python package makes of them
//! (`tools/reference/make_quant_vectors.py`), bit for bit.

use super::super::quant::GgmlType;
use super::writer::{Contents, tensor};
use super::*;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/quantised.gguf");

/// Types of the fixture, with the bytes of their blocks and the numbers expected of these.
fn vectors() -> Vec<(&'static GgmlType, Vec<u8>, Vec<f32>)> {
    let bytes = std::fs::read(FIXTURE).unwrap();
    let file = GgufFile::open(Path::new(FIXTURE)).unwrap();
    let places = file.tensors.iter().zip(&file.places).filter(|(info, _)| !info.name.contains('.'));
    let vector = |(info, place): (&TensorInfo, &Place)| {
        let kind = place.extent.kind;
        assert_eq!(info.name, kind.name);
        let (elements, start) = (place.extent.elements, place.extent.start as usize);
        let blocks = &bytes[start..][..elements / kind.block_len * kind.block_bytes];
        (kind, blocks.to_vec(), read(&file, &format!("{}.expected", info.name), 0, elements))
    };
    places.map(vector).collect()
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_quantised_type_has_vectors() {
    let names: Vec<_> = vectors().iter().map(|(kind, ..)| kind.name).collect();
    for kind in (0..64).filter_map(GgmlType::from_id) {
        let wanted = kind.block_len > 1 && kind.is_readable();
        assert_eq!(names.contains(&kind.name), wanted, "{}", kind.name);
    }
    let wanted = ["Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ4_NL", "MXFP4"];
    assert!(wanted.iter().all(|name| names.contains(name)), "{names:?}");
}

#[test]
fn blocks_become_ggmls_numbers() {
    let file = GgufFile::open(Path::new(FIXTURE)).unwrap();
    for (kind, blocks, want) in vectors() {
        assert_eq!(bits(&read(&file, kind.name, 0, want.len())), bits(&want), "{}", kind.name);
        assert!(blocks.len() >= 4 * kind.block_bytes && want.iter().any(|&x| x != 0.0), "{}", kind.name);
    }
}

#[test]
fn long_tensors_are_read_from_any_row_on() {
    for (kind, blocks, want) in vectors() {
        // A row is all blocks of the fixture; every type takes more than two chunks.
        let rows = 3 * CHUNK_BYTES / blocks.len();
        let contents = Contents {
            tensors: vec![tensor("w", &[want.len() as u64, rows as u64], kind.id, 0)],
            data: blocks.repeat(rows),
            ..Contents::default()
        };
        let (_directory, file) = open(&contents.bytes());
        let file = file.unwrap();
        for (first, n) in [(0, rows), (1, rows - 1), (rows / 2, 3), (rows - 1, 1)] {
            let got = read(&file, "w", first * want.len(), n * want.len());
            assert!(bits(&got) == bits(&want.repeat(n)), "{} rows from {first}", kind.name);
        }
    }
}
