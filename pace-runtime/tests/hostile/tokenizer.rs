//! `tokenizer.json`, `tokenizer_config.json` and the tokenizer in GGUF metadata.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::case::{Case, Stage};
use super::sample::{
    Entry, GGUF, GgufContents, Sample, TOKENIZER, TOKENIZER_CONFIG, TOKENS, f32_value, i32s, text, texts,
    u32_value,
};

pub(crate) fn cases() -> Vec<Case> {
    let fields = [vocabularies(), added(), parts()]
        .concat()
        .into_iter()
        .map(|(label, fields, word)| case(label, Sample::hf().fields(TOKENIZER, fields), &[TOKENIZER, word]));
    fields.chain(files()).chain(configs()).chain(gguf()).collect()
}

fn case(label: &str, sample: Sample, words: &[&str]) -> Case {
    Case::new(format!("tokenizer: {label}"), Stage::Open, sample, words)
}

/// A label, fields that replace those of the good file, and a word of the message.
type Fields = Vec<(&'static str, Value, &'static str)>;

/// The good model with these tokens besides, and with these merges.
fn bpe(vocab: Value, merges: Value) -> Value {
    json!({"model": {"type": "BPE", "vocab": vocab, "merges": merges}})
}

fn vocabularies() -> Fields {
    let merges = |merges: Value| json!({"model": {"merges": merges}});
    vec![
        ("a merge whose result has no id", merges(json!([["a", "y"]])), "`ay`"),
        ("a merge of an unknown token", merges(json!(["z a"])), "`z`"),
        ("a merge of two spaces", merges(json!(["a  b"])), "merge"),
        ("a merge of one side", merges(json!([["a"]])), "merge"),
        ("a merge of three sides", merges(json!([["a", "b", "c"]])), "merge"),
        ("a merge that is a number", merges(json!([7])), "merge"),
        ("merges that are text", merges(json!("a b")), "invalid type"),
        ("an id twice", bpe(json!({"x": 11}), json!([])), "share the id 11"),
        ("an id of 2^24", bpe(json!({"x": 1 << 24}), json!([])), "16777216"),
        ("an id of 2^32", bpe(json!({"x": 1u64 << 32}), json!([])), "invalid value"),
        ("an id below 0", bpe(json!({"x": -1}), json!([])), "invalid value"),
        ("an id that is text", bpe(json!({"x": "10"}), json!([])), "invalid type"),
        ("a vocabulary that is a list", bpe(json!([["a", 0.5]]), json!([])), "model.vocab"),
        ("a vocabulary that is text", bpe(json!("abc"), json!([])), "token ids"),
        ("a kind that is unknown", json!({"model": {"type": "Neural"}}), "`Neural`"),
        ("Unigram without scores", json!({"model": {"type": "Unigram"}}), "model.vocab"),
        (
            "Unigram with an unk_id beyond",
            json!({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 1, "merges": null}}),
            TOKENIZER,
        ),
        ("no model", json!({"model": null}), "invalid type"),
    ]
}

fn added() -> Fields {
    let token = |id: u64, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    };
    let tokens = |list: Vec<Value>| json!({"added_tokens": list});
    vec![
        ("an added token with the id of another", tokens(vec![token(10, "<s>")]), "added_tokens"),
        ("an added id twice", tokens(vec![token(8, "<s>"), token(8, "</s>")]), "added_tokens"),
        ("an added token twice", tokens(vec![token(8, "<s>"), token(9, "<s>")]), "added_tokens"),
        ("an added id of 2^24", tokens(vec![token(1 << 24, "<z>")]), "added_tokens"),
        ("an added id after a gap", tokens(vec![token(1000, "<z>")]), "added_tokens"),
        ("added tokens that are an object", json!({"added_tokens": {"<s>": 8}}), "invalid type"),
    ]
}

/// Normalizers, pre-tokenizers and decoders that explode, or that the library does not survive.
fn parts() -> Fields {
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"});
    let normalizers = json!({"type": "Sequence", "normalizers": vec![double; 30]});
    let split = |regex: &str| {
        json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated",
            "invert": false}})
    };
    let template = |ids: Vec<u64>| {
        json!({"post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": ids, "tokens": ["<s>"]}}}})
    };
    vec![
        ("a normalizer that makes 4^30 of 1", json!({"normalizer": normalizers}), "normalizer"),
        ("a normalizer that is unknown", json!({"normalizer": {"type": "Explode"}}), TOKENIZER),
        ("a normalizer that is a number", json!({"normalizer": 7}), TOKENIZER),
        ("a Precompiled normalizer of nonsense", precompiled(), TOKENIZER),
        ("a regular expression that repeats", split("((a{1000}){1000}){1000}"), "pre_tokenizer"),
        ("a regular expression of 64 KiB", split(&"a".repeat(1 << 16)), "pre_tokenizer"),
        ("a regular expression that is open", split("(a"), TOKENIZER),
        ("a regular expression that is nested", split(&format!("{}a", "(".repeat(4000))), TOKENIZER),
        (
            "pieces of length 0",
            json!({"pre_tokenizer": {"type": "FixedLength", "length": 0}}),
            "pre_tokenizer",
        ),
        ("a post-processor with an id beyond", template(vec![4_000_000]), "post_processor"),
        ("a post-processor with an id of 2^32", template(vec![1 << 32]), TOKENIZER),
        ("a decoder that is unknown", json!({"decoder": {"type": "Telepathy"}}), TOKENIZER),
    ]
}

fn precompiled() -> Value {
    // Base64 of a length that the bytes behind it do not have.
    json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////fwAAAAA="}})
}

fn files() -> Vec<Case> {
    let text = |text: &str| Sample::hf().text(TOKENIZER, text);
    let with = |entry| Sample::hf().with(TOKENIZER, entry);
    let duplicate = r#"{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}}"#;
    let merge = r#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}}"#;
    let values = format!("{{\"normalizer\": [{}0]}}", "0,".repeat(1 << 20));
    let long = format!("{{\"model\": {{\"type\": \"{}\", \"vocab\": {{}}}}}}", "x".repeat(1 << 20));
    vec![
        case("empty", text(""), &[TOKENIZER]),
        case("open", text("{\"model\": {"), &[TOKENIZER]),
        case("a list", text("[]"), &[TOKENIZER]),
        case("without a model", text("{\"version\": \"1.0\"}"), &[TOKENIZER, "`model`"]),
        case("nested", text(&format!("{{\"normalizer\": {}", "[".repeat(1 << 20))), &[TOKENIZER]),
        case("a million values", text(&values), &[TOKENIZER]),
        case("a kind of 1 MiB", text(&long), &[TOKENIZER, "model.type"]),
        case("the merge that panics the library", text(merge), &[TOKENIZER, "model.merges", "`ab`"]),
        case("a token twice", text(duplicate), &[TOKENIZER, "`a`", "twice"]),
        case("not UTF-8", Sample::hf().text(TOKENIZER, b"{\"model\": \"\xff\"}".as_slice()), &[TOKENIZER]),
        case("too long", with(Entry::Sparse(b"{".to_vec(), 1 << 40)), &[TOKENIZER]),
        case("a directory", with(Entry::Directory), &[TOKENIZER]),
        case("a FIFO", with(Entry::Fifo), &[TOKENIZER]),
        case("a device", with(Entry::Link(PathBuf::from("/dev/zero"))), &[TOKENIZER]),
    ]
}

fn configs() -> Vec<Case> {
    let fields = |fields: Value| Sample::hf().fields(TOKENIZER_CONFIG, fields);
    let with = |entry| Sample::hf().with(TOKENIZER_CONFIG, entry);
    let values = format!("{{\"chat_template\": [{}0]}}", "0,".repeat((4 << 20) - 20));
    let rows = [
        ("a list", with(Entry::Bytes(b"[]".to_vec())), TOKENIZER_CONFIG),
        ("empty", with(Entry::Bytes(Vec::new())), TOKENIZER_CONFIG),
        ("millions of values", with(Entry::Bytes(values.into_bytes())), TOKENIZER_CONFIG),
        ("a FIFO", with(Entry::Fifo), TOKENIZER_CONFIG),
        ("a device", with(Entry::Link(PathBuf::from("/dev/zero"))), TOKENIZER_CONFIG),
        ("a bos token that is a number", fields(json!({"bos_token": 8})), "`bos_token`"),
        ("an eos token without content", fields(json!({"eos_token": {"id": 9}})), "`eos_token`"),
        ("a flag that is text", fields(json!({"add_bos_token": "yes"})), "`add_bos_token`"),
        ("a chat template that is a number", fields(json!({"chat_template": 7})), "`chat_template`"),
        ("chat templates without names", fields(json!({"chat_template": ["x"]})), "`chat_template`"),
    ];
    let rows = rows
        .map(|(label, sample, word)| case(&format!("config: {label}"), sample, &[TOKENIZER_CONFIG, word]));
    rows.into()
}

fn gguf() -> Vec<Case> {
    let mut twice = TOKENS;
    twice[1] = "a";
    let rows = [
        ("model", text("telepathy"), "of an unknown kind"),
        ("model", u32_value(1), "of a number"),
        ("pre", text("telepathy"), "of an unknown kind"),
        ("pre", text("\u{1b}[2J"), "with an escape"),
        ("tokens", text("a"), "of text"),
        ("tokens", texts(&twice), "with a token twice"),
        ("tokens", texts(&[]), "of nothing"),
        ("merges", texts(&["a y"]), "that make no token"),
        ("merges", texts(&["z a"]), "of an unknown token"),
        ("merges", texts(&["ab"]), "of one side"),
        ("merges", i32s(&[1]), "of numbers"),
        ("token_type", i32s(&[1, 1]), "of two"),
        ("token_type", text("1"), "of text"),
        ("bos_token_id", u32_value(12), "beyond"),
        ("eos_token_id", u32_value(u32::MAX), "of 2^32 - 1"),
        ("padding_token_id", u32_value(12), "beyond"),
        ("bos_token_id", f32_value(8.0), "of a fraction"),
        ("add_bos_token", u32_value(1), "of a number"),
    ];
    let rows = rows.map(|(key, value, label)| {
        let key = format!("tokenizer.ggml.{key}");
        let mut file = GgufContents::good();
        file.set(&key, value);
        // With no tokens at all it is the first id of a special one that leaves the vocabulary.
        let word = if label == "of nothing" { "tokenizer.ggml." } else { &key };
        case(&format!("GGUF: {key} {label}"), file.sample(), &[GGUF, word])
    });
    rows.into()
}
