//! What must hold of a tokenizer before the `tokenizers` crate sees it. The crate indexes by lengths and ids
//! that it takes from the file, so a file that breaks these rules would make it panic or exhaust the memory.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fmt,
    path::Path,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use super::{TokenizerError, fault, file_fault, part::Part};

/// Ids stay below this: far above any vocabulary, and far below what overflows.
const MAX_ID: u32 = 1 << 24;
/// How many times longer a text may become in a normalizer or a decoder. Real ones reach 3 (`▁` for a space).
const MAX_GROWTH: usize = 64;
/// The longest regular expression; real ones have some hundred bytes.
const MAX_REGEX_BYTES: usize = 8192;
/// The product of a regular expression's repeat counts, which the engine may unroll.
const MAX_REGEX_REPEATS: u64 = 10_000;

/// The parts of `tokenizer.json` that are checked; the rest is left to the library.
#[derive(Deserialize)]
pub(super) struct TokenizerFile {
    model: ModelPart,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Part,
    #[serde(default)]
    pre_tokenizer: Part,
    #[serde(default)]
    post_processor: Part,
    #[serde(default)]
    decoder: Part,
}

#[derive(Deserialize)]
struct ModelPart {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vocab,
    #[serde(default)]
    merges: Vec<Merge>,
    continuing_subword_prefix: Option<String>,
    unk_id: Option<usize>,
}

/// One entry of `added_tokens`.
#[derive(Deserialize)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
}

enum Vocab {
    /// BPE, WordPiece and WordLevel: token to id.
    Map(HashMap<String, u32>),
    /// Unigram: the id is the position.
    List(Vec<(String, f64)>),
}

struct Merge(String, String);

impl TokenizerFile {
    /// Parses and checks `tokenizer.json`. The second value is one more than the largest id.
    pub(super) fn parse(json: &[u8], path: &Path) -> Result<(Self, usize), TokenizerError> {
        let file: Self = serde_json::from_slice(json)
            .map_err(|error| file_fault(path, format!("not a tokenizer file: {error}")))?;
        let mut size = file.check_model(path)?;
        file.check_added(path)?;
        for (field, part) in [
            ("normalizer", &file.normalizer),
            ("pre_tokenizer", &file.pre_tokenizer),
            ("decoder", &file.decoder),
        ] {
            check_part(&part.0).map_err(|what| fault(path, field, what))?;
        }
        for token in &file.added_tokens {
            size = size.max(index(token.id) + 1);
        }
        Ok((file, size))
    }

    /// The tokens of `added_tokens`, whose ids the library may not honour.
    pub(super) fn added_tokens(&self) -> &[AddedToken] {
        &self.added_tokens
    }

    /// Whether the file says what surrounds a text.
    pub(super) fn has_post_processor(&self) -> bool {
        !self.post_processor.0.is_null()
    }

    fn check_model(&self, path: &Path) -> Result<usize, TokenizerError> {
        let model = &self.model;
        let kind = model.kind.as_deref().unwrap_or(if model.merges.is_empty() { "" } else { "BPE" });
        match (kind, &model.vocab) {
            ("BPE", Vocab::Map(vocab)) => {
                let prefix = model.continuing_subword_prefix.as_deref().unwrap_or("");
                let merges = model.merges.iter().map(|Merge(a, b)| (a.as_str(), b.as_str()));
                check_merges(|token| vocab.contains_key(token), merges, prefix)
                    .map_err(|what| fault(path, "model.merges", what))?;
            }
            ("WordPiece" | "WordLevel", Vocab::Map(_)) => {}
            ("Unigram", Vocab::List(vocab)) => check_unigram(vocab, model.unk_id, path)?,
            ("BPE" | "WordPiece" | "WordLevel" | "Unigram", _) => {
                return Err(fault(path, "model.vocab", "an object is right, or for Unigram a list of pairs"));
            }
            (other, _) => {
                let what = format!("`{other}` is not known; known: BPE, WordPiece, WordLevel, Unigram");
                return Err(fault(path, "model.type", what));
            }
        }
        match &model.vocab {
            Vocab::Map(vocab) => check_ids(vocab).map_err(|what| fault(path, "model.vocab", what)),
            Vocab::List(vocab) => Ok(vocab.len()),
        }
    }

    fn check_added(&self, path: &Path) -> Result<(), TokenizerError> {
        let mut seen = (HashSet::new(), HashSet::new());
        for AddedToken { id, content } in &self.added_tokens {
            let what = if *id >= MAX_ID {
                format!("the id {id} of `{content}` is not below {MAX_ID}")
            } else if !seen.0.insert(*id) {
                format!("the id {id} occurs twice")
            } else if !seen.1.insert(content) {
                format!("the token `{content}` occurs twice")
            } else {
                continue;
            };
            return Err(fault(path, "added_tokens", what));
        }
        Ok(())
    }
}

/// Checks BPE merges: both sides and what they make are in the vocabulary.
pub(super) fn check_merges<'a>(
    known: impl Fn(&str) -> bool,
    merges: impl Iterator<Item = (&'a str, &'a str)>,
    prefix: &str,
) -> Result<(), String> {
    let mut merged = String::new();
    for (rank, (left, right)) in merges.enumerate() {
        // The prefix marks a continuation (`##ing`) and is dropped where it meets its left side.
        let Some(tail) = right.strip_prefix(prefix) else {
            return Err(format!("merge {rank}: `{right}` lacks the continuing_subword_prefix `{prefix}`"));
        };
        merged.clear();
        merged.push_str(left);
        merged.push_str(tail);
        if let Some(missing) = [left, right, merged.as_str()].into_iter().find(|token| !known(token)) {
            return Err(format!("merge {rank} (`{left}` + `{right}`): `{missing}` is not in the vocabulary"));
        }
    }
    Ok(())
}

/// Splits a merge in its one-string form, `left right`.
pub(super) fn split_merge(merge: &str) -> Option<(&str, &str)> {
    merge
        .split_once(' ')
        .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '))
}

fn check_ids(vocab: &HashMap<String, u32>) -> Result<usize, String> {
    let mut owner: HashMap<u32, &str> = HashMap::with_capacity(vocab.len());
    let mut size = 0;
    for (token, id) in vocab {
        if *id >= MAX_ID {
            return Err(format!("the id {id} of `{token}` is not below {MAX_ID}"));
        }
        if let Some(other) = owner.insert(*id, token) {
            return Err(format!("`{token}` and `{other}` share the id {id}"));
        }
        size = size.max(index(*id) + 1);
    }
    Ok(size)
}

fn check_unigram(vocab: &[(String, f64)], unk: Option<usize>, path: &Path) -> Result<(), TokenizerError> {
    if let Some(unk) = unk.filter(|unk| *unk >= vocab.len()) {
        return Err(fault(path, "model.unk_id", format!("{unk} is not below the {} tokens", vocab.len())));
    }
    let mut seen = HashSet::new();
    match vocab.iter().position(|(token, score)| !score.is_finite() || !seen.insert(token.as_str())) {
        Some(at) => {
            Err(fault(path, "model.vocab", format!("token {at}: a duplicate, or its score is no number")))
        }
        None => Ok(()),
    }
}

/// Checks a normalizer, pre-tokenizer or decoder: bounded growth of the text, bounded regular expressions.
fn check_part(part: &Value) -> Result<(), String> {
    let mut growth: usize = 1;
    // The JSON parser bounds the depth, this stack only holds borrowed nodes.
    let mut open = vec![part];
    while let Some(node) = open.pop() {
        match node {
            Value::Array(items) => open.extend(items),
            Value::Object(fields) => {
                open.extend(fields.values());
                for key in ["content", "prepend"] {
                    let added = fields.get(key).and_then(Value::as_str).map_or(1, |text| text.len().max(1));
                    growth = growth.saturating_mul(added);
                }
                if let Some(regex) = fields.get("Regex").and_then(Value::as_str) {
                    check_regex(regex)?;
                }
                if let Some(map) = fields.get("precompiled_charsmap").and_then(Value::as_str) {
                    check_charsmap(map)?;
                }
                if fields.get("type").and_then(Value::as_str) == Some("FixedLength")
                    && fields.get("length").and_then(Value::as_u64) == Some(0)
                {
                    return Err("FixedLength: a length of 0 cuts nothing; at least 1 is right".to_owned());
                }
            }
            _ => {}
        }
    }
    if growth > MAX_GROWTH {
        return Err(format!("it makes a text {growth} times longer; at most {MAX_GROWTH} times is accepted"));
    }
    Ok(())
}

/// Bounds what compiling a regular expression may cost: its length, and the product of its repeat counts.
fn check_regex(regex: &str) -> Result<(), String> {
    if regex.len() > MAX_REGEX_BYTES {
        return Err(format!("a regular expression of {} bytes; at most {MAX_REGEX_BYTES}", regex.len()));
    }
    let counts = regex.split('{').skip(1).filter_map(|rest| {
        let (inside, _) = rest.split_once('}')?;
        inside.split(',').filter_map(|count| count.trim().parse::<u64>().ok()).max()
    });
    let product = counts.fold(1u64, |product, count| product.saturating_mul(count.max(1)));
    if product > MAX_REGEX_REPEATS {
        return Err(format!("a regular expression repeats {product} times; at most {MAX_REGEX_REPEATS}"));
    }
    Ok(())
}

/// Checks a SentencePiece normalizer: base64 of a trie's length in bytes, the trie, and replacements that each end
/// with a zero byte. The library asks for the memory of the length that it finds there.
fn check_charsmap(base64: &str) -> Result<(), String> {
    let mut bytes = base64_bytes(base64);
    let length: Vec<u8> = bytes.by_ref().take(4).collect();
    let Ok(length) = <[u8; 4]>::try_from(length) else {
        return Err("precompiled_charsmap: shorter than the length that it begins with".to_owned());
    };
    let trie = u32::from_le_bytes(length) as usize;
    if trie > base64.len() / 4 * 3 {
        return Err(format!(
            "precompiled_charsmap: a trie of {trie} bytes; there are {}",
            base64.len() / 4 * 3
        ));
    }
    let mut run = 0;
    for byte in bytes.skip(trie) {
        run = if byte == 0 { 0 } else { run + 1 };
        if run > MAX_GROWTH {
            return Err(format!("precompiled_charsmap: a replacement of more than {MAX_GROWTH} bytes"));
        }
    }
    Ok(())
}

/// The bytes that `text` stands for, up to the first character that is none of base64's.
fn base64_bytes(text: &str) -> impl Iterator<Item = u8> {
    let sixes = text.bytes().map_while(|c| {
        Some(match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        })
    });
    let (mut held, mut bits) = (0u32, 0);
    sixes.filter_map(move |six| {
        held = held << 6 | u32::from(six);
        bits += 6;
        (bits >= 8).then(|| {
            bits -= 8;
            (held >> bits) as u8
        })
    })
}

/// An id below [`MAX_ID`] as an index.
fn index(id: u32) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX - 1)
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct VocabVisitor;
        impl<'de> Visitor<'de> for VocabVisitor {
            type Value = Vocab;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of token ids, or a list of [token, score]")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Vocab, A::Error> {
                let mut vocab = HashMap::new();
                while let Some(token) = entries.next_key::<String>()? {
                    match vocab.entry(token) {
                        Entry::Occupied(entry) => {
                            return Err(A::Error::custom(format!(
                                "the token `{}` occurs twice",
                                entry.key()
                            )));
                        }
                        Entry::Vacant(entry) => entry.insert(entries.next_value()?),
                    };
                }
                Ok(Vocab::Map(vocab))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vocab, A::Error> {
                let mut vocab = Vec::new();
                while let Some(item) = items.next_element()? {
                    vocab.push(item);
                }
                Ok(Vocab::List(vocab))
            }
        }
        deserializer.deserialize_any(VocabVisitor)
    }
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MergeVisitor;
        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: \"left right\" or [\"left\", \"right\"]")
            }

            fn visit_str<E: Error>(self, merge: &str) -> Result<Merge, E> {
                let (left, right) = split_merge(merge).ok_or_else(|| {
                    E::custom(format!("the merge `{merge}` is not two tokens and one space"))
                })?;
                Ok(Merge(left.to_owned(), right.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sides: A) -> Result<Merge, A::Error> {
                let merge = (sides.next_element()?, sides.next_element()?);
                let ((Some(left), Some(right)), None) = (merge, sides.next_element::<IgnoredAny>()?) else {
                    return Err(A::Error::custom("a merge has two sides"));
                };
                Ok(Merge(left, right))
            }
        }
        deserializer.deserialize_any(MergeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(file: &Value) -> String {
        let json = serde_json::to_vec(file).expect("a JSON value");
        match TokenizerFile::parse(&json, Path::new("tokenizer.json")) {
            Ok(_) => panic!("accepted: {file}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn faults_are_named() {
        let bpe =
            |vocab: Value, merges: Value| json!({"model": {"type": "BPE", "vocab": vocab, "merges": merges}});
        for (file, expected) in [
            (bpe(json!({"a": 0, "b": 1}), json!([["a", "b"]])), "merge 0 (`a` + `b`): `ab` is not in"),
            (bpe(json!({"a": 0, "ab": 1}), json!(["a b"])), "`b` is not in the vocabulary"),
            (bpe(json!({"a": 0}), json!(["a  b"])), "not two tokens and one space"),
            (bpe(json!({"a": 0}), json!([["a"]])), "a merge has two sides"),
            (bpe(json!({"a": 0, "b": 0}), json!([])), "share the id 0"),
            (bpe(json!({"a": 1 << 24}), json!([])), "is not below 16777216"),
            (bpe(json!({"a": -1}), json!([])), "invalid value"),
            (bpe(json!([["a", 0.5]]), json!([])), "model.vocab"),
            (bpe(json!("a"), json!([])), "an object of token ids"),
            (json!({"model": {"type": "Neural", "vocab": {}}}), "`Neural` is not known; known: BPE"),
            (json!({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 1}}), "model.unk_id"),
            (json!({"version": "1.0"}), "missing field `model`"),
        ] {
            let message = refusal(&file);
            assert!(message.starts_with("tokenizer.json: ") && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn duplicate_keys_are_refused() {
        let json = br#"{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}}"#;
        let error = TokenizerFile::parse(json, Path::new("t")).err().expect("a duplicate token");
        assert!(error.to_string().contains("`a` occurs twice"), "{error}");
    }

    #[test]
    fn parts_that_explode_are_refused() {
        let with = |field: &str, part: Value| {
            let mut file = json!({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}});
            file[field] = part;
            refusal(&file)
        };
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let seven = json!({"type": "Sequence", "normalizers": vec![double; 7]});
        assert!(with("normalizer", seven).contains("128 times longer"));
        let split =
            |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"});
        assert!(
            with("pre_tokenizer", split("((a{1000}){1,1000}){1000}")).contains("repeats 1000000000 times")
        );
        assert!(with("pre_tokenizer", split(&"a".repeat(9000))).contains("9000 bytes"));
        assert!(with("pre_tokenizer", json!({"type": "FixedLength", "length": 0})).contains("FixedLength"));
    }

    #[test]
    fn a_charsmap_is_no_longer_than_it_is_and_expands_little() {
        assert_eq!(base64_bytes("AP9hYmM=").collect::<Vec<_>>(), b"\0\xffabc");
        check_charsmap("BAAAAAAAAABhAGIA").expect("a trie of one word, then `a` and `b`");
        for (map, expected) in [
            ("", "shorter than the length"),
            ("AAAA", "shorter than the length"),
            ("////fwAAAAA=", "a trie of 2147483647 bytes"),
            (&format!("AAAAAA{}", "YWFh".repeat(30)), "a replacement of more than 64"),
        ] {
            let what = check_charsmap(map).expect_err(map);
            assert!(what.contains(expected), "{what}");
        }
    }

    #[test]
    fn gaps_and_prefixes_are_fine() {
        let file = json!({
            "model": {"type": "BPE", "vocab": {"a": 0, "##b": 7, "ab": 3}, "merges": [["a", "##b"]],
                      "continuing_subword_prefix": "##"},
            "added_tokens": [{"id": 9, "content": "<s>"}],
        });
        let json = serde_json::to_vec(&file).expect("a JSON value");
        let (file, size) = TokenizerFile::parse(&json, Path::new("t")).expect("a valid file");
        assert_eq!((size, file.added_tokens().len()), (10, 1));
    }
}
