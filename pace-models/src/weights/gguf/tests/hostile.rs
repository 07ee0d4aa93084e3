//! Files that must be refused, each with a message that names the file and what is wrong in it.

use std::os::unix::net::UnixListener;
use std::process::Command;

use super::writer::{Contents, array, pair, preamble, raw_array, raw_string, string, tensor};
use super::*;

/// A file, and what its message must contain.
type Case = (Vec<u8>, &'static str);

fn refused(cases: &[Case], at_least: usize) {
    assert!(cases.len() >= at_least);
    for (i, (bytes, wanted)) in cases.iter().enumerate() {
        let (_directory, file) = open(bytes);
        let Err(error) = file else { panic!("case {i} was opened; wanted: {wanted}") };
        let message = error.to_string();
        assert!(message.contains("model.gguf: "), "case {i}: {message}");
        assert!(message.contains(wanted), "case {i}: {message}\nwanted: {wanted}");
    }
}

fn with_pair(pair: Vec<u8>) -> Vec<u8> {
    Contents { pairs: vec![pair], ..Contents::default() }.bytes()
}

/// A file with these tensors and 64 bytes of data.
fn with_tensors(tensors: &[Vec<u8>]) -> Vec<u8> {
    Contents { tensors: tensors.to_vec(), data: vec![0; 64], ..Contents::default() }.bytes()
}

#[test]
fn preambles() {
    let mut big_endian = b"GGUF".to_vec();
    big_endian.extend(3u32.to_be_bytes());
    big_endian.extend([0; 16]);
    let cut = |len: usize| preamble(3, 0, 0)[..len].to_vec();
    refused(
        &[
            (vec![], "header: bytes needed: 4; the file has 0 bytes"),
            (b"G".to_vec(), "header: bytes needed: 4"),
            (b"GGML".to_vec(), "starts with \"GGML\"; \"GGUF\" is right"),
            (b"\0\xff\x1b\n12345".to_vec(), "starts with \"\\x00\\xff\\x1b\\n\""),
            (b"version https://git-lfs".to_vec(), "starts with \"vers\""),
            (cut(4), "header: bytes needed: 4"),
            (cut(7), "header: bytes needed: 4"),
            (cut(8), "header: bytes needed: 8"),
            (cut(16), "header: bytes needed: 8"),
            (cut(23), "header: bytes needed: 8"),
            (preamble(0, 0, 0), "GGUF version 0; 2 and 3 can be read"),
            (preamble(1, 0, 0), "GGUF version 1;"),
            (preamble(4, 0, 0), "GGUF version 4;"),
            (preamble(u32::MAX, 0, 0), "GGUF version 4294967295;"),
            (big_endian, "header: the file is big-endian"),
            (preamble(3, 1, 0), "header: 1 tensors of at least"),
            (preamble(3, 0, 1), "header: 1 metadata pairs of at least"),
            (preamble(3, 65_536, 0), "header: 65536 tensors of at least"),
            (preamble(3, 65_537, 0), "header: 65537 tensors; at most 65536"),
            (preamble(3, u64::MAX, 0), "header: 18446744073709551615 tensors"),
            (preamble(3, 0, 65_537), "header: 65537 metadata pairs; at most"),
            (preamble(3, 0, u64::MAX), "header: 18446744073709551615 metadata pairs"),
        ],
        22,
    );
}

#[test]
fn metadata_keys() {
    let one = |rest: Vec<u8>| [preamble(3, 0, 1), rest, vec![0; 32]].concat();
    let long = "k".repeat(65_536);
    refused(
        &[
            (one(string("")), "key of metadata pair 0: the name \"\" is empty"),
            (
                one(raw_string(u64::MAX, b"k")),
                "key of metadata pair 0: a string of 18446744073709551615 bytes",
            ),
            (one(raw_string(60_000, b"k")), "key of metadata pair 0: a string of 60000 bytes cannot follow"),
            (one(string(&long)), "key of metadata pair 0: a string of 65536 bytes; at most 65535"),
            (one(raw_string(2, &[0xff, 0xfe])), "key of metadata pair 0: a string that is not UTF-8"),
            (one(string("a\x1b[31m")), "key of metadata pair 0: the name \"a\\u{1b}[31m\""),
            (
                Contents { pairs: vec![pair("a.b", 7, &[1]), pair("a.b", 7, &[1])], ..Contents::default() }
                    .bytes(),
                "field `a.b`: the key occurs twice",
            ),
            (
                Contents { pairs: vec![pair("a", 7, &[1]), string("b\n")], ..Contents::default() }.bytes(),
                "key of metadata pair 1: the name \"b\\n\"",
            ),
        ],
        8,
    );
}

#[test]
fn metadata_values() {
    let cut = |kind: u32, value: &[u8]| [preamble(3, 0, 1), pair("key", kind, value)].concat();
    let deep = (0..5).fold(raw_array(4, 0), |inner, _| [raw_array(9, 1), inner].concat());
    refused(
        &[
            (with_pair(pair("key", 13, &[0; 8])), "field `key`: unknown value type 13; 0 to 12"),
            (with_pair(pair("key", u32::MAX, &[0; 8])), "field `key`: unknown value type 4294967295"),
            (cut(0, &[]), "field `key`: bytes needed: 1"),
            (cut(2, &[1]), "field `key`: bytes needed: 2"),
            (cut(4, &[1, 0, 0]), "field `key`: bytes needed: 4"),
            (cut(6, &[0; 3]), "field `key`: bytes needed: 4"),
            (cut(10, &[0; 7]), "field `key`: bytes needed: 8"),
            (cut(12, &[0; 7]), "field `key`: bytes needed: 8"),
            (cut(8, &[0; 7]), "field `key`: bytes needed: 8"),
            (cut(8, &raw_string(3, b"ab")), "field `key`: a string of 3 bytes cannot"),
            (
                with_pair(pair("key", 8, &raw_string(u64::MAX, b"ab"))),
                "a string of 18446744073709551615 bytes",
            ),
            (
                with_pair(pair("key", 8, &raw_string(1 << 40, b"ab"))),
                "field `key`: a string of 1099511627776 bytes",
            ),
            (with_pair(pair("key", 8, &raw_string(1, &[0x80]))), "field `key`: a string that is not UTF-8"),
            (with_pair(pair("key", 7, &[2])), "field `key`: the truth value 2; 0 or 1 is right"),
            (with_pair(pair("key", 9, &array(7, &[[1], [9]]))), "field `key`: the truth value 9"),
            (
                with_pair(pair("key", 9, &array(8, &[raw_string(1, &[0xff])]))),
                "field `key`: a string that is not",
            ),
            (with_pair(pair("key", 9, &raw_array(13, 1))), "field `key`: unknown value type 13"),
            (cut(9, &4u32.to_le_bytes()), "field `key`: bytes needed: 8"),
            (with_pair(pair("key", 9, &raw_array(0, u64::MAX))), "field `key`: 18446744073709551615 array"),
            (with_pair(pair("key", 9, &raw_array(4, 1 << 62))), "field `key`: 4611686018427387904 array"),
            (with_pair(pair("key", 9, &raw_array(10, 1 << 61))), "field `key`: 2305843009213693952 array"),
            (with_pair(pair("key", 9, &raw_array(8, 1 << 20))), "1048576 array elements of at least 8 bytes"),
            (
                with_pair(pair("key", 9, &raw_array(9, 1 << 20))),
                "1048576 array elements of at least 12 bytes",
            ),
            (with_pair(pair("key", 9, &raw_array(7, 1000))), "field `key`: 1000 array elements"),
            (with_pair(pair("key", 9, &deep)), "field `key`: arrays nested more than 4 deep"),
        ],
        25,
    );
}

#[test]
fn fields_that_the_format_gives_a_meaning() {
    let alignment = |n: u32| with_pair(pair("general.alignment", U32, &n.to_le_bytes()));
    let split = |n: u16| with_pair(pair("split.count", 2, &n.to_le_bytes()));
    refused(
        &[
            (alignment(0), "field `general.alignment`: 0; a power of two of 8 or more is right"),
            (alignment(4), "field `general.alignment`: 4;"),
            (alignment(48), "field `general.alignment`: 48;"),
            (alignment(u32::MAX), "field `general.alignment`: 4294967295;"),
            (
                with_pair(pair("general.alignment", STRING, &string("32"))),
                "field `general.alignment`: \"32\" is a string",
            ),
            (
                with_pair(pair("general.alignment", 5, &[0xff; 4])),
                "field `general.alignment`: -1 is a signed",
            ),
            (
                split(2),
                "field `split.count`: the model is split over 2 files; then their names must end in -00001-of-",
            ),
            (split(u16::MAX), "field `split.count`: 65535 files; at most 512 are right"),
            (with_pair(pair("split.count", 7, &[1])), "field `split.count`: true is a truth value"),
        ],
        9,
    );
    assert!(open(&split(1)).1.is_ok());
    assert!(open(&alignment(1 << 31)).1.is_ok(), "without tensors there are no data to align");
}

#[test]
fn tensor_headers() {
    let one = |rest: Vec<u8>| [preamble(3, 1, 0), rest, vec![0; 64]].concat();
    let cut = |len: usize| [&preamble(3, 1, 0), &tensor("tensor", &[1], F32, 0)[..len]].concat();
    let long = "n".repeat(257);
    refused(
        &[
            (one(string("")), "name of tensor 0: the name \"\" is empty"),
            (one(string("a\0b")), "name of tensor 0: the name \"a\\0b\""),
            (one(raw_string(1, &[0xc3])), "name of tensor 0: a string that is not UTF-8"),
            (one(string(&long)), "name of tensor 0: a string of 257 bytes; at most 256"),
            (one(raw_string(200, b"t")), "name of tensor 0: a string of 200 bytes cannot follow"),
            (cut(33), "tensor `tensor`: bytes needed: 8"),
            (cut(36), "tensor `tensor`: bytes needed: 8"),
            (with_tensors(&[tensor("t", &[], F32, 0)]), "tensor `t`: 0 dimensions; 1 to 4 are right"),
            (with_tensors(&[tensor("t", &[1; 5], F32, 0)]), "tensor `t`: 5 dimensions"),
            (one([string("t"), vec![0xff; 4]].concat()), "tensor `t`: 4294967295 dimensions"),
            (with_tensors(&[tensor("t", &[0], F32, 0)]), "tensor `t`: its shape [0] holds no element"),
            (with_tensors(&[tensor("t", &[4, 0], F32, 0)]), "tensor `t`: its shape [0, 4] holds no element"),
            (
                with_tensors(&[tensor("t", &[1], 4, 0)]),
                "tensor `t`: unknown tensor type 4; these can be read: F32",
            ),
            (with_tensors(&[tensor("t", &[1], 1000, 0)]), "tensor `t`: unknown tensor type 1000"),
            (
                with_tensors(&[tensor("t", &[33], Q4_0, 0)]),
                "tensor `t`: rows of 33 elements; Q4_0 stores blocks of 32",
            ),
            (with_tensors(&[tensor("t", &[16, 2], Q8_0, 0)]), "tensor `t`: rows of 16 elements; Q8_0"),
            (
                with_tensors(&[tensor("t", &[128], 14, 0)]),
                "tensor `t`: rows of 128 elements; Q6_K stores blocks of 256",
            ),
            (with_tensors(&[tensor("t", &[u64::MAX], F32, 0)]), "is beyond any memory"),
            (with_tensors(&[tensor("t", &[1 << 32, 1 << 32], F32, 0)]), "tensor `t`: its shape"),
            (with_tensors(&[tensor("t", &[1 << 31, 1 << 31, 4], 24, 0)]), "tensor `t`: its shape"),
            (with_tensors(&[tensor("t", &[32, 1 << 59], Q4_1, 0)]), "tensor `t`: its shape"),
            (
                with_tensors(&[tensor("t", &[1], F32, 0), tensor("t", &[1], F32, 32)]),
                "tensor `t`: the name occurs twice",
            ),
        ],
        22,
    );
}

#[test]
fn tensor_data() {
    let alignment = pair("general.alignment", 10, &(1u64 << 63).to_le_bytes());
    let far = Contents {
        pairs: vec![alignment],
        tensors: vec![tensor("t", &[1], F32, 1 << 63)],
        ..Contents::default()
    };
    refused(
        &[
            (
                with_tensors(&[tensor("t", &[1], F32, 1)]),
                "tensor `t`: its offset 1 is not a multiple of the alignment 32",
            ),
            (with_tensors(&[tensor("t", &[1], F32, 24)]), "tensor `t`: its offset 24"),
            (
                with_tensors(&[tensor("t", &[1], F32, u64::MAX)]),
                "tensor `t`: its offset 18446744073709551615",
            ),
            (
                with_tensors(&[tensor("t", &[1], F32, u64::MAX - 31)]),
                "tensor `t`: its 4 bytes at offset 1844",
            ),
            (
                with_tensors(&[tensor("t", &[1], F32, 64)]),
                "tensor `t`: its 4 bytes at offset 64 of the data leave",
            ),
            (
                with_tensors(&[tensor("t", &[17], F32, 0)]),
                "tensor `t`: its 68 bytes at offset 0 of the data leave",
            ),
            (with_tensors(&[tensor("t", &[1 << 50], F32, 0)]), "tensor `t`: its 4503599627370496 bytes"),
            (with_tensors(&[tensor("t", &[64], Q8_0, 0)]), "tensor `t`: its 68 bytes"),
            (far.bytes(), "tensor `t`: its 4 bytes at offset 9223372036854775808"),
            (
                with_tensors(&[tensor("a", &[1], F32, 0), tensor("b", &[1], F32, 0)]),
                "tensor `b`: its data overlap those of tensor `a`",
            ),
            (
                with_tensors(&[tensor("b", &[2], F32, 32), tensor("a", &[9], F32, 0)]),
                "tensor `b`: its data overlap those of tensor `a`",
            ),
            (
                with_tensors(&[tensor("a", &[1], F32, 32), tensor("b", &[16], F32, 0)]),
                "tensor `a`: its data overlap those of tensor `b`",
            ),
        ],
        12,
    );
}

#[test]
fn what_is_no_regular_file() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let socket = directory.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (path, what) in [
        (fifo.as_path(), "is a device, a pipe or a socket"),
        (&socket, "is a device, a pipe or a socket"),
        (directory.path(), "is a directory"),
        (Path::new("/dev/zero"), "is a device, a pipe or a socket"),
    ] {
        let message = GgufFile::open(path).unwrap_err().to_string();
        assert_eq!(message, format!("{}: {what}; it must be a regular file", path.display()));
    }
    let absent = directory.path().join("absent.gguf");
    let error = GgufFile::open(&absent).unwrap_err();
    assert!(matches!(&error, ModelError::Io { path, .. } if *path == absent), "{error}");
}

#[test]
fn a_header_longer_than_any_vocabulary_is_refused() {
    // A sparse file: large on paper, so that the size alone does not refuse the count.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, [preamble(3, 0, 1), pair("key", 9, &raw_array(0, 1 << 30))].concat()).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(2 << 30).unwrap();
    let message = GgufFile::open(&path).unwrap_err().to_string();
    assert!(message.contains("field `key`: 1073741824 array elements"), "{message}");
    assert!(message.contains("a header may take 134217728 bytes"), "{message}");
}
