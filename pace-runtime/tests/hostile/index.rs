//! `model.safetensors.index.json` and the shards that it names.

use std::path::PathBuf;

use super::case::{Case, Stage};
use super::sample::{Entry, INDEX, Sample, Tensor, WEIGHTS, container, tensors};

pub(crate) fn cases() -> Vec<Case> {
    texts().into_iter().chain(shards()).collect()
}

/// A model of one shard, called `1.st`, whose index has this text.
fn sharded(index: impl Into<Vec<u8>>) -> Sample {
    Sample::hf().without(WEIGHTS).text("1.st", container(&tensors())).text(INDEX, index)
}

/// An index that places every tensor in `1.st`, and `extra` besides.
fn good_index(extra: &str) -> String {
    let places: Vec<String> = tensors().iter().map(|t| format!("\"{}\":\"1.st\"", t.name)).collect();
    format!("{{\"weight_map\":{{{}{extra}}}}}", places.join(","))
}

fn case(label: &str, sample: Sample, words: &[&str]) -> Case {
    Case::new(format!("index: {label}"), Stage::Open, sample, words)
}

fn texts() -> Vec<Case> {
    let map = |body: &str| format!("{{\"weight_map\":{body}}}");
    let many: Vec<String> = (0..513).map(|n| format!("\"t{n}\":\"s{n}\"")).collect();
    let more: Vec<String> = (0..65_537).map(|n| format!("\"t{n}\":\"s\"")).collect();
    let rows: [(&str, String, &str); 26] = [
        ("empty", String::new(), "EOF"),
        ("a list", "[]".into(), "weight_map"),
        ("no map", "{}".into(), "`weight_map`"),
        ("an empty map", map("{}"), "`weight_map`"),
        ("a map that is null", map("null"), "weight_map"),
        ("a map twice", "{\"weight_map\":{\"a\":\"1\"},\"weight_map\":{}}".into(), "duplicate"),
        ("a tensor twice", map(r#"{"a":"1.st","a":"1.st"}"#), "`weight_map.a`"),
        ("a shard that is a number", map(r#"{"a":1}"#), "`weight_map.a`"),
        ("a shard above", map(r#"{"a":"../1.st"}"#), "`../1.st`"),
        ("a shard far above", map(r#"{"a":"../../../../etc/passwd"}"#), "passwd"),
        ("a shard that is above", map(r#"{"a":".."}"#), "`..`"),
        ("a shard that is here", map(r#"{"a":"."}"#), "`.`"),
        ("an absolute shard", map(r#"{"a":"/etc/passwd"}"#), "`/etc/passwd`"),
        ("a device by its path", map(r#"{"a":"/dev/zero"}"#), "`/dev/zero`"),
        ("a shard below", map(r#"{"a":"sub/1.st"}"#), "`sub/1.st`"),
        ("a shard with a slash behind", map(r#"{"a":"1.st/"}"#), "`1.st/`"),
        ("a shard with a dot before", map(r#"{"a":"./1.st"}"#), "`./1.st`"),
        ("a shard without a name", map(r#"{"a":""}"#), "`weight_map.a`"),
        ("a shard with a zero byte", map("{\"a\":\"1\\u0000.st\"}"), "`weight_map.a`"),
        ("a shard with an escape", map("{\"a\":\"\\u001b[2J\"}"), "control characters"),
        ("513 shards", map(&format!("{{{}}}", many.join(","))), "512 shards"),
        ("65,537 tensors", map(&format!("{{{}}}", more.join(","))), "65536 tensors"),
        ("text behind", good_index("") + " x", "trailing"),
        ("nested metadata", format!("{{\"metadata\":{}", "[".repeat(1 << 20)), "EOF"),
        ("16 MB of metadata", format!("{{\"metadata\":\"{}\"}}", "x".repeat(16_000_000)), "`weight_map`"),
        ("a missing shard", good_index(r#","x":"2.st""#), "2.st"),
    ];
    let rows = rows.into_iter().map(|(label, text, what)| {
        let file = if what == "2.st" { what } else { INDEX };
        case(label, sharded(text), &[file, what])
    });
    rows.collect()
}

fn shards() -> Vec<Case> {
    let second = || sharded(good_index(r#","x":"2.st""#));
    let with = |entry| second().with("2.st", entry);
    let one = |name: &str| container(&[Tensor::f32(name, &[1])]);
    let mut fewer = tensors();
    let gone = fewer.pop().unwrap().name;
    vec![
        case("a shard that is a directory", with(Entry::Directory), &["2.st", "is a directory"]),
        case("a shard that is a FIFO", with(Entry::Fifo), &["2.st", "regular file"]),
        case("a shard that is a device", with(Entry::Link("/dev/zero".into())), &["2.st", "regular file"]),
        case("a shard that is no shard", with(Entry::Bytes(vec![0xff; 64])), &["2.st", "header length"]),
        case(
            "a tensor that is not where it should be",
            second().text("2.st", one("y")),
            &["2.st", "tensor `x`"],
        ),
        case(
            "a tensor in two shards",
            second().text("2.st", one("model.norm.weight")),
            &["2.st", "tensor `model.norm.weight`"],
        ),
        case(
            "a tensor that its shard lacks",
            sharded(good_index("")).text("1.st", container(&fewer)),
            &["1.st", &gone],
        ),
        case("an index that is a FIFO", sharded("").with(INDEX, Entry::Fifo), &[INDEX, "regular file"]),
        case(
            "an index that is a device",
            sharded("").with(INDEX, Entry::Link(PathBuf::from("/dev/zero"))),
            &[INDEX, "regular file"],
        ),
        case(
            "an index of 1 TiB",
            sharded("").with(INDEX, Entry::Sparse(b"{".to_vec(), 1 << 40)),
            &[INDEX, "at most"],
        ),
    ]
}
