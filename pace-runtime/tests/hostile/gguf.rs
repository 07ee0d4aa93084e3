//! GGUF files: the header, the metadata, the hyperparameters in it, and the list of tensors.

use std::path::PathBuf;

use super::case::{Case, Stage};
use super::sample::{
    Entry, GGUF, GgufContents, Sample, Tensor, entry, f32_value, gguf_embedding, gguf_sample, preamble,
    raw_array, raw_string, string, text, u32_value, value,
};

pub(crate) fn cases() -> Vec<Case> {
    let raw = [headers(), keys(), lists()].into_iter().flatten();
    let raw = raw.map(|(label, bytes, word)| case(label, gguf_sample(bytes), &[word]));
    let fields = [values(), hyperparameters(), rope()].into_iter().flatten().map(|(label, key, value)| {
        let mut file = GgufContents::good();
        file.set(key, value);
        case(&format!("{key} {label}"), file.sample(), &[&format!("field `{key}`")])
    });
    let tensors = tensors().into_iter().map(|(label, change)| {
        let mut file = GgufContents::good();
        change(&mut file);
        case(label, file.sample(), &["tensor `"])
    });
    raw.chain(fields).chain(missing()).chain(tensors).chain(truncations()).chain(special_files()).collect()
}

fn case(label: &str, sample: Sample, words: &[&str]) -> Case {
    Case::new(format!("GGUF: {label}"), Stage::Open, sample, &[&[GGUF], words].concat())
}

/// Labels, bytes of the file, and a word of the message.
type Raw = Vec<(&'static str, Vec<u8>, &'static str)>;

fn headers() -> Raw {
    let good = GgufContents::good().bytes();
    let counts = |tensors, pairs| [preamble(3, tensors, pairs), vec![0; 64]].concat();
    let version = |n: u32| [&b"GGUF"[..], &n.to_le_bytes(), &good[8..]].concat();
    vec![
        ("empty", Vec::new(), "header"),
        ("the magic alone", b"GGUF".to_vec(), "header"),
        ("another magic", [b"GGML", &good[4..]].concat(), "GGML"),
        ("a magic with an escape", [b"\x1b[2J", &good[4..]].concat(), "\\x1b[2J"),
        ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "vers"),
        ("version 0", version(0), "version 0"),
        ("version 1", version(1), "version 1"),
        ("version 4", version(4), "version 4"),
        ("version 2^32 - 1", version(u32::MAX), "version 4294967295"),
        ("big-endian", version(3u32.swap_bytes()), "big-endian"),
        ("2^64 - 1 tensors", counts(u64::MAX, 0), "18446744073709551615 tensors"),
        ("2^63 tensors", counts(1 << 63, 0), "9223372036854775808 tensors"),
        ("2^32 tensors", counts(1 << 32, 0), "4294967296 tensors"),
        ("65,536 tensors that are not there", counts(65_536, 0), "65536 tensors"),
        ("2^64 - 1 pairs", counts(0, u64::MAX), "18446744073709551615 metadata"),
        ("65,536 pairs that are not there", counts(0, 65_536), "65536 metadata"),
        ("no pairs and no tensors", counts(0, 0), "`general.architecture`"),
    ]
}

fn keys() -> Raw {
    let one = |rest: Vec<u8>| [preamble(3, 0, 1), rest, vec![0; 64]].concat();
    let twice = [preamble(3, 0, 2), string("a"), value(7, &[1]), string("a"), value(7, &[1]), vec![0; 32]];
    vec![
        ("a key without a name", one(string("")), "pair 0"),
        ("a key of 2^64 - 1 bytes", one(raw_string(u64::MAX, b"k")), "18446744073709551615 bytes"),
        ("a key beyond the file", one(raw_string(60_000, b"k")), "60000 bytes"),
        ("a key that is not UTF-8", one(raw_string(2, b"\xff\xfe")), "UTF-8"),
        ("a key with an escape", one(string("a\u{1b}[2J")), "pair 0"),
        ("a key twice", twice.concat(), "field `a`"),
    ]
}

/// Arrays and strings that claim more than there is, or nest.
fn lists() -> Raw {
    let one = |value: Vec<u8>| [preamble(3, 0, 1), string("key"), value, vec![0; 64]].concat();
    let nested =
        (0..64).fold(raw_array(4, 0, &[])[4..].to_vec(), |inner, _| raw_array(9, 1, &inner)[4..].to_vec());
    let many_empty = raw_array(8, 1 << 20, &[0; 100]);
    const FIELD: &str = "field `key`";
    vec![
        ("a string of 2^40 bytes", one(value(8, &raw_string(1 << 40, b"x"))), FIELD),
        ("a string of 2^64 - 1 bytes", one(value(8, &raw_string(u64::MAX, b"x"))), FIELD),
        ("a string that is not UTF-8", one(value(8, &raw_string(1, b"\x80"))), FIELD),
        ("a type of 13", one(value(13, &[0; 8])), FIELD),
        ("a truth value of 2", one(value(7, &[2])), FIELD),
        ("an array of 2^64 - 1 bytes", one(raw_array(0, u64::MAX, &[])), FIELD),
        ("an array of 2^62 numbers", one(raw_array(4, 1 << 62, &[])), FIELD),
        ("an array of 2^61 long numbers", one(raw_array(10, 1 << 61, &[])), FIELD),
        ("an array of a million strings", one(many_empty), FIELD),
        ("an array of a million arrays", one(raw_array(9, 1 << 20, &[0; 100])), FIELD),
        ("an array of an unknown type", one(raw_array(13, 1, &[0; 8])), FIELD),
        ("arrays 64 deep", one(value(9, &nested)), FIELD),
    ]
}

/// Labels, keys and values.
type Fields = Vec<(&'static str, &'static str, Vec<u8>)>;

fn values() -> Fields {
    vec![
        ("of a number", "general.architecture", u32_value(1)),
        ("of zero", "general.alignment", u32_value(0)),
        ("of 4", "general.alignment", u32_value(4)),
        ("of 48", "general.alignment", u32_value(48)),
        ("of text", "general.alignment", text("32")),
        ("below 0", "general.alignment", value(5, &(-32i32).to_le_bytes())),
        ("of a truth value", "split.count", value(7, &[1])),
    ]
}

fn hyperparameters() -> Fields {
    const EPS: &str = "llama.attention.layer_norm_rms_epsilon";
    vec![
        ("of zero", "llama.embedding_length", u32_value(0)),
        ("of 2^32 - 1", "llama.embedding_length", u32_value(u32::MAX)),
        ("of text", "llama.embedding_length", text("8")),
        ("below 0", "llama.embedding_length", value(5, &(-8i32).to_le_bytes())),
        ("with a fraction", "llama.embedding_length", f32_value(8.5)),
        ("of 9 for two heads", "llama.embedding_length", u32_value(9)),
        ("of zero", "llama.block_count", u32_value(0)),
        ("of a billion", "llama.block_count", u32_value(1_000_000_000)),
        ("of zero", "llama.attention.head_count", u32_value(0)),
        ("of 2^20", "llama.attention.head_count", u32_value(1 << 20)),
        ("of zero", "llama.attention.head_count_kv", u32_value(0)),
        ("of 3", "llama.attention.head_count_kv", u32_value(3)),
        ("of zero", "llama.attention.key_length", u32_value(0)),
        ("of 3", "llama.attention.key_length", u32_value(3)),
        ("of 2^16", "llama.attention.key_length", u32_value(1 << 16)),
        ("that differs", "llama.attention.value_length", u32_value(8)),
        ("that differs", "llama.rope.dimension_count", u32_value(2)),
        ("of zero", "llama.context_length", u32_value(0)),
        ("of 2^40", "llama.context_length", value(10, &(1u64 << 40).to_le_bytes())),
        ("of zero", "llama.feed_forward_length", u32_value(0)),
        ("of zero", EPS, f32_value(0.0)),
        ("below 0", EPS, f32_value(-1.0)),
        ("of NaN", EPS, f32_value(f32::NAN)),
        ("of infinity", EPS, f32_value(f32::INFINITY)),
        ("of 8", "llama.expert_count", u32_value(8)),
        ("that contradicts the embedding", "llama.vocab_size", u32_value(13)),
    ]
}

fn rope() -> Fields {
    vec![
        ("of zero", "llama.rope.freq_base", f32_value(0.0)),
        ("of NaN", "llama.rope.freq_base", f32_value(f32::NAN)),
        ("of text", "llama.rope.freq_base", text("1e4")),
        ("of an unknown kind", "llama.rope.scaling.type", text("spiral")),
        ("of a number", "llama.rope.scaling.type", u32_value(1)),
        ("of zero", "llama.rope.scaling.factor", f32_value(0.0)),
        ("below 1", "llama.rope.scaling.factor", f32_value(0.5)),
        ("of infinity", "llama.rope.scaling.factor", f32_value(f32::INFINITY)),
        ("beyond any context", "llama.rope.scaling.factor", f32_value(1e30)),
    ]
}

fn missing() -> Vec<Case> {
    let keys = [
        "general.architecture",
        "llama.embedding_length",
        "llama.block_count",
        "llama.attention.head_count",
        "llama.context_length",
        "llama.feed_forward_length",
        "llama.attention.layer_norm_rms_epsilon",
    ];
    let pairs = keys.map(|key| {
        let mut file = GgufContents::good();
        file.pairs.retain(|pair| pair.0 != key);
        case(&format!("no {key}"), file.sample(), &[&format!("field `{key}`")])
    });
    let tensors = GgufContents::good().tensors.into_iter().map(|(name, _)| name);
    let tensors = tensors.filter(|name| *name != "output.weight").map(|name| {
        let mut file = GgufContents::good();
        file.tensors.retain(|tensor| tensor.0 != name);
        case(&format!("no {name}"), file.sample(), &[&format!("tensor `{name}`")])
    });
    let mut unknown = GgufContents::good();
    unknown.set("general.architecture", text("brontosaurus"));
    let unknown = case("an unknown architecture", unknown.sample(), &["`brontosaurus`", "known: llama"]);
    pairs.into_iter().chain(tensors).chain([unknown]).collect()
}

type Change = Box<dyn Fn(&mut GgufContents)>;

fn tensors() -> Vec<(&'static str, Change)> {
    let first = |bytes: Vec<u8>| -> Change { Box::new(move |file| file.tensors[0].1 = bytes.clone()) };
    let factors = |shape: &'static [usize], data: f32| -> Change {
        Box::new(move |file| {
            let mut tensor = Tensor::f32("rope_freqs.weight", shape);
            tensor.data = data.to_le_bytes().repeat(tensor.data.len() / 4);
            file.push(tensor, 0);
        })
    };
    vec![
        ("a tensor without dimensions", first(entry(&[], 0, 0))),
        ("a tensor of five dimensions", first(entry(&[1; 5], 0, 0))),
        ("a tensor of 2^32 - 1 dimensions", first(vec![0xff; 4])),
        ("a tensor without elements", first(entry(&[8, 0], 0, 0))),
        ("a tensor of 2^64 elements", first(entry(&[1 << 32, 1 << 32], 0, 0))),
        ("a tensor of 2^64 bytes", first(entry(&[1 << 62], 0, 0))),
        ("a tensor of an unknown type", first(entry(&[8, 12], 1000, 0))),
        ("a tensor of a withdrawn type", first(entry(&[8, 12], 4, 0))),
        ("rows that are no whole blocks", first(entry(&[8, 12], 2, 0))),
        ("an offset between alignments", first(entry(&[8, 12], 0, 4))),
        ("an offset beyond the file", first(entry(&[8, 12], 0, 1 << 40))),
        ("an offset that overflows", first(entry(&[8, 12], 0, u64::MAX - 31))),
        ("data that overlap", first(entry(&[8, 12], 0, 384))),
        ("a tensor that is transposed", first(entry(&[12, 8], 0, 0))),
        ("a flat embedding", first(entry(&[96], 0, 0))),
        ("a tensor twice", Box::new(|file| file.tensors[1].0 = gguf_embedding())),
        ("RoPE factors of another width", factors(&[3], 1.0)),
        ("RoPE factors of zero", factors(&[2], 0.0)),
        ("RoPE factors below 0", factors(&[2], -1.0)),
        ("RoPE factors of NaN", factors(&[2], f32::NAN)),
    ]
}

fn truncations() -> Vec<Case> {
    let good = GgufContents::good().bytes();
    let header = good.len() - GgufContents::good().data.len();
    [
        ("by one byte", good.len() - 1),
        ("to a half", good.len() / 2),
        ("to the header", header),
        ("in it", header / 2),
    ]
    .map(|(label, len)| case(&format!("cut {label}"), gguf_sample(good[..len].to_vec()), &[]))
    .into()
}

fn special_files() -> Vec<Case> {
    let with = |entry| gguf_sample(Vec::new()).with(GGUF, entry);
    // Room for every count on paper: the size of the file alone refuses nothing.
    let sparse = |bytes: Vec<u8>| with(Entry::Sparse(bytes, 1 << 40));
    let array = [preamble(3, 0, 1), string("key"), raw_array(0, 1 << 30, &[])].concat();
    let zeros = [preamble(3, 0, 1), string("key"), raw_array(8, 1 << 24, &[])].concat();
    vec![
        case("a directory", with(Entry::Directory), &["regular file"]),
        case("a FIFO", with(Entry::Fifo), &["regular file"]),
        case("a device", with(Entry::Link(PathBuf::from("/dev/zero"))), &["regular file"]),
        case("a link to itself", with(Entry::Link(PathBuf::from(GGUF))), &["symbolic links"]),
        case("a gigabyte of metadata in a sparse file", sparse(array), &["field `key`"]),
        case("65,536 tensors in a sparse file", sparse(preamble(3, 65_536, 0)), &["tensor 0"]),
        case("65,536 pairs in a sparse file", sparse(preamble(3, 0, 65_536)), &["pair 0"]),
        case("16 million empty strings in a sparse file", sparse(zeros), &["field `key`"]),
    ]
}
