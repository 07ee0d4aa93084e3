//! The header of a `.safetensors` file and what it says of the data.

use std::path::PathBuf;

use super::case::{Case, Stage};
use super::sample::{Entry, Sample, Tensor, WEIGHTS, container, raw_container, tensors};

pub(crate) fn cases() -> Vec<Case> {
    let whole = [lengths(), json_faults(), layouts(), special_files()].into_iter().flatten();
    let whole = whole.map(|(label, sample, words)| case(label, sample, &[&[WEIGHTS], words].concat()));
    let entries = entries().into_iter().map(|(body, data, what)| {
        let bytes = raw_container(&format!("{{\"w\":{{{body}}}}}"), &vec![0; data]);
        case(&format!("entry {body:.90}"), Sample::hf().text(WEIGHTS, bytes), &[WEIGHTS, "tensor `w`", what])
    });
    whole.chain(entries).chain(truncations()).collect()
}

fn case(label: &str, sample: Sample, words: &[&str]) -> Case {
    Case::new(format!("safetensors: {label}"), Stage::Open, sample, words)
}

type Rows = Vec<(&'static str, Sample, &'static [&'static str])>;

fn bytes(bytes: Vec<u8>) -> Sample {
    Sample::hf().text(WEIGHTS, bytes)
}

fn header(text: &str) -> Sample {
    bytes(raw_container(text, &[]))
}

fn lengths() -> Rows {
    let good = container(&tensors());
    let length = |n: u64| bytes([&n.to_le_bytes(), &good[8..]].concat());
    let json = u64::from_le_bytes(good[..8].try_into().unwrap());
    let sparse = |n: u64| Sample::hf().with(WEIGHTS, Entry::Sparse(n.to_le_bytes().to_vec(), 1 << 40));
    vec![
        ("empty", bytes(Vec::new()), &["0 bytes"]),
        ("seven bytes", bytes(vec![2, 0, 0, 0, 0, 0, 0]), &["7 bytes"]),
        ("a length and nothing", bytes(2u64.to_le_bytes().to_vec()), &["header length is 2"]),
        ("length 0", length(0), &["header length is 0"]),
        ("length 1", length(1), &["header length is 1"]),
        ("one short", length(json - 1), &["header"]),
        ("one long", length(json + 1), &[]),
        ("length of the file", length(good.len() as u64), &["header length"]),
        ("2^63", length(1 << 63), &["header length is 9223372036854775808"]),
        ("2^64 - 1", length(u64::MAX), &["header length is 18446744073709551615"]),
        ("100 MB in a sparse file", sparse(100_000_000), &["header length is 100000000"]),
        ("8 MiB of zeros in a sparse file", sparse(8 << 20), &["header"]),
        ("a GGUF file", bytes([b"GGUF\x03\0\0\0".as_slice(), &[0; 64]].concat()), &["not safetensors?"]),
        (
            "a Git LFS pointer",
            bytes(b"version https://git-lfs.github.com/spec/v1\n".to_vec()),
            &["header length"],
        ),
        ("a pickle", bytes(b"PK\x03\x04\0\0\x08\x08\0\0\0\0archive/data.pkl".to_vec()), &["header length"]),
    ]
}

fn json_faults() -> Rows {
    let deep = "[".repeat(1 << 20);
    let many: Vec<String> = (0..65_537)
        .map(|n| format!("\"{n}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}"))
        .collect();
    let empty_entries = format!("{{{}\"z\":1}}", r#""a":{},"#.repeat(1 << 20));
    let metadata: Vec<String> = (0..1025).map(|n| format!("\"k{n}\":\"\"")).collect();
    let long_value = format!("{{\"__metadata__\":{{\"a\":\"{}\"}},\"w\":1}}", "x".repeat(8_000_000));
    let mut not_utf8 = raw_container("{\"w?\":{}}", &[]);
    not_utf8[11] = 0xff;
    let spaces = format!("{{}}{}x", " ".repeat((8 << 20) - 3));
    vec![
        ("no JSON", header("hello"), &["header"]),
        ("a list", header("[]"), &["header"]),
        ("not UTF-8", bytes(not_utf8), &["header"]),
        ("open", header("{ "), &["header"]),
        ("text behind", header("{} {}"), &["header"]),
        ("8 MiB of spaces", header(&spaces), &["header"]),
        ("an entry that is a number", header("{\"w\":1}"), &["tensor `w`"]),
        ("an entry that is nested", header(&format!("{{\"w\":{deep}")), &["tensor `w`"]),
        ("a shape that is nested", header(&format!("{{\"w\":{{\"shape\":{deep}")), &["tensor `w`"]),
        ("a million empty entries", header(&empty_entries), &["tensor `a`", "missing field"]),
        ("65,537 tensors", header(&format!("{{{}}}", many.join(","))), &["more than 65536 tensors"]),
        ("a name of 257 bytes", header(&format!("{{\"{}\":1}}", "n".repeat(257))), &["257 bytes"]),
        ("a name of 8 MB", header(&format!("{{\"{}\":1}}", "n".repeat(8_000_000))), &["8000000 bytes"]),
        ("a name with an escape", header("{\"a\\u001b[2J\":1}"), &["control characters"]),
        ("metadata of numbers", header("{\"__metadata__\":{\"a\":1}}"), &["header"]),
        ("metadata twice", header("{\"__metadata__\":{},\"__metadata__\":{}}"), &["twice"]),
        ("1,025 metadata", header(&format!("{{\"__metadata__\":{{{}}}}}", metadata.join(","))), &["1024"]),
        ("a metadata key twice", header("{\"__metadata__\":{\"a\":\"\",\"a\":\"\"}}"), &["`a` twice"]),
        ("8 MB of metadata", header(&long_value), &["tensor `w`"]),
    ]
}

/// Fields of one tensor, the bytes of data behind it, and what is wrong.
fn entries() -> Vec<(String, usize, &'static str)> {
    let body = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#""dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}"#)
    };
    let shape = |shape: &str| body("F32", shape, "[0,4]");
    let offsets = |offsets: &str| body("F32", "[1]", offsets);
    vec![
        (String::new(), 0, "missing field"),
        (r#""shape":[1],"data_offsets":[0,4]"#.into(), 4, "`dtype`"),
        (r#""dtype":"F32","data_offsets":[0,4]"#.into(), 4, "`shape`"),
        (r#""dtype":"F32","shape":[1]"#.into(), 4, "`data_offsets`"),
        (format!("{},\"shape\":[1]", shape("[1]")), 4, "duplicate field `shape`"),
        (format!("{},\"extra\":1", shape("[1]")), 4, "unknown field `extra`"),
        (format!("{},\"\\u001b[2J\":1", shape("[1]")), 4, "unknown field"),
        (body("F33", "[1]", "[0,4]"), 4, "unknown dtype `F33`"),
        (body("f32", "[1]", "[0,4]"), 4, "unknown dtype `f32`"),
        (body(&"F".repeat(1 << 20), "[1]", "[0,4]"), 4, "at most 256"),
        (shape("4"), 4, "a shape"),
        (shape("[-1]"), 4, "`-1`"),
        (shape("[1.5]"), 4, "`1.5`"),
        (shape("[18446744073709551616]"), 4, "floating point"),
        (shape("[4294967296,4294967296]"), 4, "64 bits"),
        (shape("[9223372036854775807]"), 4, "64 bits"),
        (shape(&format!("[{}1]", "1,".repeat(1_000_000))), 4, "more than 8 dimensions"),
        (shape("[2]"), 4, "needs 8 bytes"),
        (shape("[0]"), 4, "needs 0 bytes"),
        (body("BF16", "[1]", "[0,4]"), 4, "needs 2 bytes"),
        (body("F4", "[3]", "[0,1]"), 1, "whole bytes"),
        (offsets("[0]"), 4, "length 1"),
        (offsets("[0,4,4]"), 4, "trailing"),
        (offsets("[-4,0]"), 4, "`-4`"),
        (offsets("[4,0]"), 4, "in order"),
        (offsets("[0,8]"), 4, "within the data section"),
        (offsets("[0,18446744073709551615]"), 4, "within the data section"),
    ]
}

fn layouts() -> Rows {
    let two = |a: [usize; 2], b: [usize; 2], data: usize| {
        let entry = |name, [begin, end]: [usize; 2]| {
            let len = end - begin;
            format!(r#""{name}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{begin},{end}]}}"#)
        };
        bytes(raw_container(&format!("{{{},{}}}", entry("a", a), entry("b", b)), &vec![0; data]))
    };
    let twice = r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    let escaped = twice.replacen("\"w\"", "\"\\u0077\"", 1);
    let (mut twin, mut behind) = (tensors(), container(&tensors()));
    twin.push(Tensor { name: "x".to_owned(), data: Vec::new(), ..twin[0].clone() });
    behind.push(0);
    vec![
        ("overlap", two([0, 8], [4, 12], 12), &["tensor `b`", "overlaps"]),
        ("the same bytes for two tensors", two([0, 8], [0, 8], 8), &["tensor `b`", "overlaps"]),
        ("one inside the other", two([2, 4], [0, 8], 8), &["tensor `a`", "overlaps"]),
        ("hole", two([0, 4], [6, 8], 8), &["tensor `b`", "hole"]),
        ("hole at the start", two([8, 12], [4, 8], 12), &["tensor `b`", "hole"]),
        ("an empty tensor inside another", two([0, 8], [4, 4], 8), &["tensor `b`", "overlaps"]),
        ("bytes behind the last tensor", bytes(behind), &["data section"]),
        ("data without tensors", bytes(raw_container("{}", &[0; 3])), &["data section"]),
        ("a name twice", bytes(raw_container(twice, &[0; 2])), &["tensor `w`", "twice"]),
        ("a name twice, escaped", bytes(raw_container(&escaped, &[0; 2])), &["tensor `w`", "twice"]),
        ("a tensor without its data", bytes(container(&twin)), &["tensor `x`"]),
        ("no tensors", header("{}"), &["tensor `model.embed_tokens.weight`", "missing"]),
    ]
}

fn special_files() -> Rows {
    let link = |target: &str| Sample::hf().with(WEIGHTS, Entry::Link(PathBuf::from(target)));
    vec![
        ("a directory", Sample::hf().with(WEIGHTS, Entry::Directory), &["is a directory"]),
        ("a FIFO", Sample::hf().with(WEIGHTS, Entry::Fifo), &["regular file"]),
        ("a device", link("/dev/zero"), &["regular file"]),
        ("a terminal", link("/dev/tty"), &[]),
        ("a link to nothing", link("nowhere"), &["No such file"]),
        ("a link to itself", link(WEIGHTS), &["symbolic links"]),
        ("missing", Sample::hf().without(WEIGHTS), &["holds neither"]),
    ]
}

fn truncations() -> Vec<Case> {
    let good = container(&tensors());
    let cut =
        |label: &str, len: usize| case(&format!("cut {label}"), bytes(good[..len].to_vec()), &[WEIGHTS]);
    vec![
        cut("by one byte", good.len() - 1),
        cut("by 1 KiB", good.len() - 1024),
        cut("to a half", good.len() / 2),
        cut("to the header", 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize),
        cut("inside the header", 64),
        cut("after the length", 8),
    ]
}
