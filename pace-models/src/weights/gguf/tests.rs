//! Files written by hand, read back; what is refused is in `hostile`.

mod codes;
mod hostile;
mod quant;
mod split;
mod writer;

use std::path::Path;

use half::{bf16, f16};
use tempfile::TempDir;

use self::writer::{Contents, array, pair, string, tensor};
use super::*;

const F32: u32 = 0;
const F16: u32 = 1;
const Q4_0: u32 = 2;
const Q4_1: u32 = 3;
const Q8_0: u32 = 8;
const BF16: u32 = 30;
const U32: u32 = 4;
const STRING: u32 = 8;

/// Writes `bytes` to a file of its own and opens it; the file lives as long as the directory.
fn open(bytes: &[u8]) -> (TempDir, Result<GgufFile, ModelError>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let file = GgufFile::open(&path);
    (directory, file)
}

fn read(file: &GgufFile, name: &str, start: usize, len: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; len];
    file.read_f32(name, start, &mut out).unwrap();
    out
}

/// Two tensors, of 32 and 64 bytes of data, and a little metadata.
fn small() -> Contents {
    let numbers: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
    Contents {
        pairs: vec![
            pair("general.architecture", STRING, &string("llama")),
            pair("llama.block_count", U32, &3u32.to_le_bytes()),
            pair("tokenizer.ggml.tokens", 9, &array(STRING, &[string("a"), string("é")])),
        ],
        tensors: vec![tensor("one", &[4, 2], F32, 0), tensor("two", &[16], F32, 32)],
        data: numbers.iter().copied().cycle().take(96).collect(),
        ..Contents::default()
    }
}

/// Deterministic bytes without structure.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(step).collect()
}

/// The block's numbers by the formula of its type, one by one.
fn naive(kind: u32, block: &[u8], j: usize) -> f32 {
    let u16_at = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    let f16_at = |at: usize| f16::from_bits(u16_at(at)).to_f32();
    let nibble = |qs: usize| if j < 16 { block[qs + j] & 15 } else { block[qs + j - 16] >> 4 };
    match kind {
        F32 => f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
        F16 => f16_at(0),
        BF16 => bf16::from_bits(u16_at(0)).to_f32(),
        Q4_0 => f16_at(0) * (i32::from(nibble(2)) - 8) as f32,
        Q4_1 => f16_at(0) * f32::from(nibble(4)) + f16_at(2),
        Q8_0 => f16_at(0) * f32::from(block[2 + j] as i8),
        _ => unreachable!("no such case"),
    }
}

/// Blocks of noise whose scales are finite.
fn blocks(kind: u32, block_bytes: usize, count: usize) -> Vec<u8> {
    let mut bytes = noise(count * block_bytes);
    for block in bytes.chunks_mut(block_bytes) {
        // Clears one bit of each exponent: neither NaN nor infinite.
        match kind {
            F32 => block[3] &= 0xbf,
            Q4_1 => {
                block[1] &= 0xbf;
                block[3] &= 0xbf;
            }
            _ => block[1] &= 0xbf,
        }
    }
    bytes
}

#[test]
fn simple_types_follow_their_formulas_in_many_chunks() {
    let types = [
        (F32, "F32", 1, 4),
        (F16, "F16", 1, 2),
        (BF16, "BF16", 1, 2),
        (Q4_0, "Q4_0", 32, 18),
        (Q4_1, "Q4_1", 32, 20),
        (Q8_0, "Q8_0", 32, 34),
    ];
    for version in [2, 3] {
        for (kind, name, block_len, block_bytes) in types {
            // Longer than one chunk for every type.
            let (rows, width) = (1000, 544);
            let data = blocks(kind, block_bytes, rows * width / block_len);
            let contents = Contents {
                version,
                tensors: vec![tensor("w", &[width as u64, rows as u64], kind, 0)],
                data: data.clone(),
                ..Contents::default()
            };
            let (_directory, file) = open(&contents.bytes());
            let file = file.unwrap();
            let info = file.info("w").unwrap();
            assert_eq!((info.shape.as_slice(), info.format.as_str()), ([rows, width].as_slice(), name));
            let want: Vec<f32> = (0..rows * width)
                .map(|i| naive(kind, &data[i / block_len * block_bytes..], i % block_len))
                .collect();
            assert!(read(&file, "w", 0, rows * width) == want, "{name}");
            file.set_mapped(true).unwrap();
            assert!(read(&file, "w", 0, rows * width) == want, "{name}, mapped");
            assert!(read(&file, "w", 7 * width, 3 * width) == want[7 * width..10 * width], "{name} rows");
        }
    }
}

#[test]
fn blocks_have_ggmls_nibble_order_and_offsets() {
    let mut q4_0 = f16::from_f32(0.5).to_le_bytes().to_vec();
    q4_0.extend((0..16).map(|j| j | (15 - j) << 4));
    let mut q4_1 = [f16::from_f32(2.0).to_le_bytes(), f16::from_f32(-3.0).to_le_bytes()].concat();
    q4_1.extend((0..16).map(|j| j | (15 - j) << 4));
    let mut q8_0 = f16::from_f32(-0.25).to_le_bytes().to_vec();
    q8_0.extend((0..32).map(|j| (j - 16) as i8 as u8));
    let contents = Contents {
        tensors: vec![
            tensor("q4_0", &[32], Q4_0, 0),
            tensor("q4_1", &[32], Q4_1, 32),
            tensor("q8_0", &[32], Q8_0, 64),
        ],
        data: [q4_0, vec![0; 14], q4_1, vec![0; 12], q8_0].concat(),
        ..Contents::default()
    };
    let (_directory, file) = open(&contents.bytes());
    let file = file.unwrap();
    let want =
        |f: &dyn Fn(f32) -> f32| -> Vec<f32> { (0..16).chain((0..16).rev()).map(|q| f(q as f32)).collect() };
    assert_eq!(read(&file, "q4_0", 0, 32), want(&|q| 0.5 * (q - 8.0)));
    assert_eq!(read(&file, "q4_1", 0, 32), want(&|q| 2.0 * q - 3.0));
    assert_eq!(read(&file, "q8_0", 0, 32), (-16..16).map(|q| -0.25 * q as f32).collect::<Vec<_>>());
}

/// A file with a metadata value of every type, under keys that say so.
fn every_type() -> (TempDir, GgufFile) {
    let contents = Contents {
        pairs: vec![
            pair("u8", 0, &[200]),
            pair("i8", 1, &[0xff]),
            pair("u16", 2, &500u16.to_le_bytes()),
            pair("i16", 3, &7i16.to_le_bytes()),
            pair("u32", 4, &u32::MAX.to_le_bytes()),
            pair("i32", 5, &(-5i32).to_le_bytes()),
            pair("f32", 6, &0.5f32.to_le_bytes()),
            pair("bool", 7, &[1]),
            pair("string", 8, &string("naïve")),
            pair("i32s", 9, &array(5, &[1i32.to_le_bytes(), (-2i32).to_le_bytes()])),
            pair("u64", 10, &(1u64 << 60).to_le_bytes()),
            pair("i64", 11, &3i64.to_le_bytes()),
            pair("f64", 12, &1e-5f64.to_le_bytes()),
            pair("strings", 9, &array(8, &[string(""), string("b")])),
            pair("f32s", 9, &array(6, &[1f32.to_le_bytes(), f32::NEG_INFINITY.to_le_bytes()])),
            pair("u16s", 9, &array(2, &[9u16.to_le_bytes()])),
            pair("u64s", 9, &array(10, &[u64::MAX.to_le_bytes()])),
            pair("nested", 9, &array(9, &[array(7, &[[1], [0]]), array(0, &[[0u8; 0]; 0])])),
            pair("nan", 6, &f32::NAN.to_le_bytes()),
        ],
        ..Contents::default()
    };
    let (directory, file) = open(&contents.bytes());
    (directory, file.unwrap())
}

#[test]
fn metadata_of_all_types_is_read() {
    let (_directory, file) = every_type();
    let metadata = file.metadata();
    let whole = |key: &str| metadata.u64(key).unwrap();
    assert_eq!(["u8", "u16", "i16", "i64"].map(whole), [Some(200), Some(500), Some(7), Some(3)]);
    assert_eq!((whole("u32"), whole("u64"), whole("none")), (Some(u32::MAX.into()), Some(1 << 60), None));
    assert_eq!(
        ["f32", "f64", "i8"].map(|key| metadata.f64(key).unwrap()),
        [Some(0.5), Some(1e-5), Some(-1.0)]
    );
    assert_eq!(
        (metadata.bool("bool").unwrap(), metadata.str("string").unwrap()),
        (Some(true), Some("naïve"))
    );
    assert_eq!(metadata.strings("strings").unwrap().unwrap(), ["", "b"]);
    assert_eq!(metadata.i32s("i32s").unwrap().unwrap().as_ref(), [1, -2]);
    assert_eq!(metadata.i32s("u16s").unwrap().unwrap().as_ref(), [9]);
    assert_eq!(metadata.f32s("f32s").unwrap().unwrap(), [1.0, f32::NEG_INFINITY]);
    let nested = Array::Array(vec![Array::Bool(vec![true, false]), Array::U8(vec![])]);
    assert_eq!(metadata.get("nested"), Some(&Value::Array(nested)));
    let keys: Vec<_> = metadata.iter().map(|(key, _)| key).collect();
    assert_eq!((keys[0], keys[18], metadata.len()), ("u8", "nan", 19));
}

#[test]
fn arrays_of_every_type_are_read() {
    let nested =
        array(9, &[array(9, &[array(9, &[array(11, &[(-9i64).to_le_bytes()])])]), array(9, &[[0u8; 0]; 0])]);
    let cases = [
        (array(0, &[[255]]), Array::U8(vec![255])),
        (array(1, &[[255]]), Array::I8(vec![-1])),
        (array(2, &[500u16.to_le_bytes()]), Array::U16(vec![500])),
        (array(3, &[(-500i16).to_le_bytes()]), Array::I16(vec![-500])),
        (array(4, &[u32::MAX.to_le_bytes()]), Array::U32(vec![u32::MAX])),
        (array(5, &[i32::MIN.to_le_bytes()]), Array::I32(vec![i32::MIN])),
        (array(6, &[0.1f32.to_le_bytes()]), Array::F32(vec![0.1])),
        (array(7, &[[0], [1]]), Array::Bool(vec![false, true])),
        (array(8, &[string("é")]), Array::String(vec!["é".to_owned()])),
        (array(10, &[u64::MAX.to_le_bytes()]), Array::U64(vec![u64::MAX])),
        (array(11, &[i64::MIN.to_le_bytes()]), Array::I64(vec![i64::MIN])),
        (array(12, &[0.1f64.to_le_bytes()]), Array::F64(vec![0.1])),
        (nested, {
            let deepest = Array::Array(vec![Array::I64(vec![-9])]);
            Array::Array(vec![Array::Array(vec![deepest]), Array::Array(vec![])])
        }),
    ];
    for kind in 0..13 {
        assert!(cases.iter().any(|(bytes, _)| bytes[0] == kind), "no case of type {kind}");
    }
    // In one file, so that an array that takes a byte too many or too few spoils the next.
    let pairs = cases.iter().enumerate().map(|(i, (bytes, _))| pair(&format!("k{i}"), 9, bytes)).collect();
    let (_directory, file) = open(&Contents { pairs, ..Contents::default() }.bytes());
    let file = file.unwrap();
    for (i, (_, want)) in cases.into_iter().enumerate() {
        assert_eq!(file.metadata().get(&format!("k{i}")), Some(&Value::Array(want)));
    }
}

#[test]
fn metadata_of_another_type_or_absent_is_an_error() {
    let (_directory, file) = every_type();
    let metadata = file.metadata();
    for (key, error) in [
        ("i32", metadata.u64("i32").unwrap_err()),
        ("string", metadata.u64("string").unwrap_err()),
        ("nan", metadata.f64("nan").unwrap_err()),
        ("u8", metadata.bool("u8").unwrap_err()),
        ("u64", metadata.str("u64").unwrap_err()),
        ("i32s", metadata.strings("i32s").unwrap_err()),
        ("u64s", metadata.i32s("u64s").unwrap_err()),
        ("strings", metadata.f32s("strings").unwrap_err()),
        ("none", metadata.require_str("none").unwrap_err()),
        ("none", metadata.require_u64("none").unwrap_err()),
        ("none", metadata.require_f64("none").unwrap_err()),
        ("none", metadata.require_strings("none").unwrap_err()),
    ] {
        let message = error.to_string();
        assert!(message.contains("model.gguf") && message.contains(&format!("`{key}`")), "{message}");
        assert!(message.ends_with("is right"), "{message}");
    }
}

#[test]
fn values_are_shown_on_one_short_line() {
    let long = Value::Array(Array::String((0..50_000).map(|i| i.to_string()).collect()));
    assert_eq!(long.to_string(), r#"["0", "1", "2", "3", … 50000 in all]"#);
    assert_eq!(Value::Array(Array::I32(vec![1, -2])).to_string(), "[1, -2]");
    assert_eq!(Value::String("a\u{1b}[2J\n".to_owned()).to_string(), r#""a\u{1b}[2J\n""#);
    assert_eq!(Value::F32(0.1).to_string(), "0.1");
}

#[test]
fn alignment_and_order_of_data_are_the_files_own() {
    let contents = Contents {
        pairs: vec![pair("general.alignment", U32, &8u32.to_le_bytes())],
        alignment: 8,
        tensors: vec![tensor("later", &[2], F32, 8), tensor("first", &[2], F32, 0)],
        data: [1f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect(),
        ..Contents::default()
    };
    let (directory, file) = open(&contents.bytes());
    let file = file.unwrap();
    assert_eq!(read(&file, "first", 0, 2), [1.0, 2.0]);
    assert_eq!(read(&file, "later", 0, 2), [3.0, 4.0]);
    let names: Vec<_> = file.tensors().iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["later", "first"]);
    assert_eq!((file.naming(), file.path("first")), (Naming::Gguf, file.file_path()));
    assert_eq!(file.file_path(), directory.path().join("model.gguf"));
}

#[test]
fn a_known_type_that_cannot_be_read_is_listed() {
    let contents = Contents {
        tensors: vec![tensor("k", &[256], 17, 0), tensor("one", &[1], F32, 96)],
        data: vec![0; 100],
        ..Contents::default()
    };
    let (_directory, file) = open(&contents.bytes());
    let file = file.unwrap();
    assert_eq!(file.info("k").unwrap().format, "IQ2_XS");
    assert_eq!(read(&file, "one", 0, 1), [0.0]);
    let message = file.read_f32("k", 0, &mut [0.0; 256]).unwrap_err().to_string();
    assert!(message.contains("model.gguf: tensor `k`: type IQ2_XS cannot be read"), "{message}");
    let readable = "these can: F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ4_NL, BF16, MXFP4";
    assert!(message.ends_with(readable), "{message}");
}

#[test]
fn ranges_outside_a_tensor_are_errors() {
    let (_directory, file) = open(&small().bytes());
    let file = file.unwrap();
    let mut out = [0f32; 12];
    for (name, start, len, wanted) in [
        ("three", 0, 4, "missing"),
        ("one", 0, 3, "no whole rows of 4"),
        ("one", 2, 4, "no whole rows of 4"),
        ("one", 0, 12, "leave its shape [2, 4]"),
        ("one", 8, 4, "leave its shape"),
        ("one", usize::MAX - 3, 4, "leave its shape"),
    ] {
        let message = file.read_f32(name, start, &mut out[..len]).unwrap_err().to_string();
        assert!(message.contains(&format!("model.gguf: tensor `{name}`: ")), "{message}");
        assert!(message.contains(wanted), "{message}");
    }
    file.read_f32("one", 8, &mut []).unwrap();
}

#[test]
fn numbers_that_are_not_finite_are_errors() {
    let with = |kind: u32, width: u64, data: Vec<u8>| {
        let contents =
            Contents { tensors: vec![tensor("bad", &[width], kind, 0)], data, ..Contents::default() };
        let (_directory, file) = open(&contents.bytes());
        file.unwrap().read_f32("bad", 0, &mut vec![0.0; width as usize]).unwrap_err().to_string()
    };
    let infinite = [vec![0; 34], f16::INFINITY.to_le_bytes().to_vec(), vec![1; 32]].concat();
    for (message, wanted) in [
        (
            with(F32, 3, [1f32, 2.0, f32::NAN].iter().flat_map(|x| x.to_le_bytes()).collect()),
            "element 2 is NaN",
        ),
        (with(F16, 2, [0x00, 0x3c, 0x00, 0xfc].to_vec()), "element 1 is -inf"),
        (with(BF16, 1, bf16::NAN.to_le_bytes().to_vec()), "element 0 is NaN"),
        (with(Q8_0, 64, infinite), "element 32 is inf"),
    ] {
        assert!(message.contains("model.gguf: tensor `bad`: "), "{message}");
        assert!(message.contains(wanted), "{message}");
    }
}

#[test]
fn a_file_that_shrinks_after_opening_is_an_error() {
    let bytes = small().bytes();
    let (directory, file) = open(&bytes);
    let file = file.unwrap();
    std::fs::write(directory.path().join("model.gguf"), &bytes[..bytes.len() - 1]).unwrap();
    let message = file.read_f32("two", 0, &mut [0.0; 16]).unwrap_err().to_string();
    assert!(message.contains("model.gguf: tensor `two`: the file changed"), "{message}");
    read(&file, "one", 0, 8);
}

#[test]
fn several_threads_read_one_file() {
    let (_directory, file) = open(&small().bytes());
    let file = file.unwrap();
    let want = read(&file, "two", 0, 16);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..50).for_each(|_| assert_eq!(read(&file, "two", 0, 16), want)));
        }
    });
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = small().bytes();
    assert!(open(&bytes).1.is_ok());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    for len in 0..bytes.len() {
        std::fs::write(&path, &bytes[..len]).unwrap();
        let message = GgufFile::open(&path).expect_err("a truncated file").to_string();
        assert!(message.contains("model.gguf: "), "{len}: {message}");
    }
}

#[test]
fn no_flipped_bit_makes_opening_or_reading_panic() {
    let bytes = small().bytes();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let mut opened = 0;
    for at in 0..bytes.len() {
        for flip in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
            let mut bytes = bytes.clone();
            bytes[at] ^= flip;
            std::fs::write(&path, &bytes).unwrap();
            opened += usize::from(read_all(&path));
        }
    }
    assert!(opened > 0);
}

/// Reads every tensor of a file; whether it could be opened.
fn read_all(path: &Path) -> bool {
    let Ok(file) = GgufFile::open(path) else { return false };
    for info in file.tensors() {
        let elements: usize = info.shape.iter().product();
        assert!(elements <= 96, "{info:?}");
        // Flipped data may be NaN, a flipped type may be unreadable: errors, both.
        let _ = file.read_f32(&info.name, 0, &mut vec![0.0; elements]);
    }
    true
}
