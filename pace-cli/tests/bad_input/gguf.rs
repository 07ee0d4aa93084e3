//! GGUF files that are none, lie about their lengths, or hold the wrong tensors.

use std::fs;

use super::common::{Outcome, fixture};
use super::generate;

fn original() -> Vec<u8> {
    fs::read(fixture("gguf-bf16").join("model.gguf")).unwrap()
}

fn run(bytes: &[u8]) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broken.gguf");
    fs::write(&path, bytes).unwrap();
    generate(&path)
}

/// The file with `new` written over what is at `at`.
fn overwritten(at: usize, new: &[u8]) -> Outcome {
    let mut bytes = original();
    bytes[at..at + new.len()].copy_from_slice(new);
    run(&bytes)
}

/// Where `text` first occurs.
fn position(text: &str) -> usize {
    original().windows(text.len()).position(|window| window == text.as_bytes()).unwrap()
}

#[test]
fn an_untouched_copy_runs() {
    assert!(run(&original()).text().contains("\"tokens\""));
}

#[test]
fn the_preamble_is_checked() {
    overwritten(0, b"FUGG").assert_refused(3, &["broken.gguf", "FUGG", "GGUF"]);
    overwritten(4, &1u32.to_le_bytes()).assert_refused(3, &["broken.gguf", "version 1"]);
    overwritten(4, &3u32.to_be_bytes()).assert_refused(3, &["broken.gguf", "big-endian"]);
    for count in [1 << 16, 1 << 40, u64::MAX] {
        overwritten(8, &count.to_le_bytes()).assert_refused(3, &["broken.gguf", "tensors"]);
        overwritten(16, &count.to_le_bytes()).assert_refused(3, &["broken.gguf", "metadata pairs"]);
    }
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let bytes = original();
    // The last tensor may be followed by up to 31 bytes of padding.
    for len in [0, 3, 10, 24, 60, 1000, 8000, bytes.len() / 2, bytes.len() - 32] {
        run(&bytes[..len]).assert_refused(3, &["broken.gguf"]);
    }
}

#[test]
fn absurd_lengths_are_refused_before_memory_is_taken() {
    // The first key's length, and the length and type of the value behind it.
    overwritten(24, &u64::MAX.to_le_bytes()).assert_refused(3, &["broken.gguf", "metadata pair 0"]);
    let key = "general.architecture";
    let value = position(key) + key.len();
    overwritten(value, &99u32.to_le_bytes()).assert_refused(3, &["broken.gguf", key, "type 99"]);
    overwritten(value + 4, &u64::MAX.to_le_bytes()).assert_refused(3, &["broken.gguf", key]);
    let key = "tokenizer.ggml.tokens";
    let array = position(key) + key.len();
    // An array: type 9, type of its elements, count.
    overwritten(array + 8, &(u64::MAX / 8).to_le_bytes()).assert_refused(3, &["broken.gguf", key]);
    overwritten(array + 8, &(1u64 << 24).to_le_bytes()).assert_refused(3, &["broken.gguf", key]);
}

#[test]
fn another_architecture_comes_with_the_known_ones() {
    let mut bytes = original();
    let key = "general.architecture";
    let name = position(key) + key.len() + 12;
    assert_eq!(&bytes[name..name + 5], b"llama");
    bytes[name..name + 5].copy_from_slice(b"zebra");
    run(&bytes).assert_refused(3, &["broken.gguf", "unknown architecture `zebra`", "known: llama"]);
}

#[test]
fn tensors_are_checked() {
    let name = "blk.1.ffn_gate.weight";
    let at = position(name);
    overwritten(at, b"blk.1.ffn_gone.weight").assert_refused(3, &["broken.gguf", name, "missing"]);
    // Behind a name: the number of dimensions, each of them, the type, the offset.
    let dims = at + name.len();
    overwritten(dims, &77u32.to_le_bytes()).assert_refused(3, &["broken.gguf", name, "77 dimensions"]);
    overwritten(dims + 4, &u64::MAX.to_le_bytes()).assert_refused(3, &["broken.gguf", name, "shape"]);
    overwritten(dims + 20, &999u32.to_le_bytes()).assert_refused(3, &["broken.gguf", name, "type 999"]);
    overwritten(dims + 24, &(1u64 << 50).to_le_bytes()).assert_refused(3, &["broken.gguf", name, "offset"]);
    overwritten(dims + 24, &33u64.to_le_bytes()).assert_refused(3, &["broken.gguf", name, "alignment"]);
    let transposed = [60u64.to_le_bytes(), 102u64.to_le_bytes()].concat();
    assert_eq!(original()[dims + 4..dims + 20], transposed, "GGUF counts the fastest dimension first");
    let transposed = [102u64.to_le_bytes(), 60u64.to_le_bytes()].concat();
    overwritten(dims + 4, &transposed).assert_refused(3, &["broken.gguf", name, "shape"]);
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let end = original().len();
    // The last tensor's data may be followed by padding, so poison a stretch of the end.
    let poison = 0x7fc0u16.to_le_bytes().repeat(256);
    overwritten(end - poison.len(), &poison).assert_refused(3, &["broken.gguf", "tensor `", "NaN"]);
}
