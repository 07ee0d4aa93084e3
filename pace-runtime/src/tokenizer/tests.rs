use std::{fs, sync::Arc, time::Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    fixture::{ADDED, SPECIAL, adds_bos, tokenizer_json, tokens},
    *,
};

/// Loads a directory with these files.
fn load(files: &[(&str, &str)]) -> Result<Option<Tokenizer>, TokenizerError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a file has a directory")).expect("a directory");
        fs::write(path, text).expect("a file in it");
    }
    Tokenizer::from_dir(dir.path())
}

fn from_json(file: &Value, config: &Value) -> Result<Tokenizer, TokenizerError> {
    let files = [("tokenizer.json", &*file.to_string()), ("tokenizer_config.json", &*config.to_string())];
    load(&files).map(|tokenizer| tokenizer.expect("the directory has a tokenizer"))
}

fn small() -> Tokenizer {
    let config = json!({"bos_token": SPECIAL[0], "eos_token": {"content": SPECIAL[1]}, "pad_token": null});
    from_json(&tokenizer_json(&adds_bos()), &config).expect("a valid tokenizer")
}

fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|id| tokenizer.piece(*id).expect("an id of the vocabulary")).collect()
}

fn refusal(file: &Value) -> String {
    from_json(file, &json!({})).expect_err("a bad tokenizer").to_string()
}

#[test]
fn text_becomes_the_tokens_that_merges_make() {
    let tokenizer = small();
    let ids = tokenizer.encode("hello world 12  é", false, true).expect("ids");
    assert_eq!(pieces(&tokenizer, &ids), ["hello", "Ġworld", "Ġ", "1", "2", "Ġ", "Ġ", "Ã", "©"]);
    assert_eq!(tokenizer.decode(&ids, true).expect("text"), "hello world 12  é");
    assert_eq!(tokenizer.vocab_size(), tokens().0.len());
    assert_eq!(tokenizer.token_to_id("hello"), Some(ids[0]));
}

#[test]
fn the_post_processor_adds_bos_and_truncation_is_off() {
    let tokenizer = small();
    let bos = tokenizer.bos().expect("a bos token");
    let long = tokenizer.encode("abcdefgh", true, true).expect("ids");
    assert_eq!((long[0], long.len()), (bos, 9));
    assert_eq!(tokenizer.encode("", true, true).expect("ids"), [bos]);
    assert_eq!(tokenizer.encode("", false, true).expect("ids"), [0u32; 0]);
    assert_eq!(tokenizer.eos(), [bos + 1]);
}

#[test]
fn flags_rule_where_there_is_no_post_processor() {
    let config = json!({"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "add_bos_token": true, "add_eos_token": true});
    let tokenizer = from_json(&tokenizer_json(&Value::Null), &config).expect("a valid tokenizer");
    let ids = tokenizer.encode("a", true, true).expect("ids");
    assert_eq!(pieces(&tokenizer, &ids), [SPECIAL[0], "a", SPECIAL[1]]);
    assert_eq!(tokenizer.encode("a", false, true).expect("ids").len(), 1);
}

#[test]
fn special_text_is_parsed_only_on_request() {
    let tokenizer = small();
    let text = "<|im_start|>a<tool>";
    let parsed = tokenizer.encode(text, false, true).expect("ids");
    assert_eq!(pieces(&tokenizer, &parsed), [SPECIAL[0], "a", ADDED]);
    let plain = tokenizer.encode(text, false, false).expect("ids");
    assert_eq!(plain.len(), SPECIAL[0].len() + 2, "the special token letter by letter");
    assert_eq!(tokenizer.decode(&plain, true).expect("text"), text);
    assert_eq!(tokenizer.decode(&parsed, true).expect("text"), "a<tool>");
    assert_eq!(tokenizer.decode(&parsed, false).expect("text"), text);
    assert!(tokenizer.is_special(parsed[0]) && !tokenizer.is_special(parsed[2]));
}

#[test]
fn unknown_ids_decode_to_nothing() {
    let tokenizer = small();
    let a = tokenizer.token_to_id("a").expect("an id");
    assert_eq!(tokenizer.decode(&[a, 99_999, u32::MAX, a], false).expect("text"), "aa");
    assert_eq!(tokenizer.piece(99_999), None);
}

#[test]
fn a_directory_without_a_tokenizer_has_none() {
    assert!(load(&[("tokenizer_config.json", "{}")]).expect("no error").is_none());
}

#[test]
fn the_template_file_wins_over_the_configuration() {
    let file = tokenizer_json(&Value::Null).to_string();
    let templates = |config: Value, jinja: &[(&'static str, &'static str)]| {
        let config = config.to_string();
        let mut files = vec![("tokenizer.json", &*file), ("tokenizer_config.json", &*config)];
        files.extend(jinja.iter().copied());
        let tokenizer = load(&files).expect("a valid tokenizer").expect("a tokenizer");
        (tokenizer.chat_template().map(str::to_owned), tokenizer.tool_use_template().map(str::to_owned))
    };
    let both =
        |default: Option<&str>, tools: Option<&str>| (default.map(str::to_owned), tools.map(str::to_owned));
    let (file_of, tools_of) = ("chat_template.jinja", "additional_chat_templates/tool_use.jinja");
    let one = || json!({"chat_template": "one"});
    let named = json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
    assert_eq!(templates(one(), &[]), both(Some("one"), None));
    assert_eq!(templates(one(), &[(file_of, "file")]), both(Some("file"), None));
    assert_eq!(templates(one(), &[(tools_of, "tools")]), both(Some("one"), Some("tools")));
    assert_eq!(templates(named.clone(), &[]), both(Some("d"), Some("t")));
    // All of the configuration gives way, also what has no file of its own.
    assert_eq!(templates(named.clone(), &[(file_of, "file")]), both(Some("file"), None));
    assert_eq!(
        templates(named, &[(file_of, "file"), (tools_of, "tools")]),
        both(Some("file"), Some("tools"))
    );
    let only = json!({"chat_template": [{"name": "tool_use", "template": "t"}]});
    assert_eq!(templates(only, &[]), both(Some("t"), None));
    assert_eq!(templates(json!({}), &[]), both(None, None));
}

#[test]
fn bad_files_are_errors_that_name_the_field() {
    let good = tokenizer_json(&Value::Null);
    let with = |path: &str, value: Value| {
        let mut file = good.clone();
        *file.pointer_mut(path).expect("a field of the file") = value;
        refusal(&file)
    };
    assert!(with("/model/vocab", json!({"a": 0, "b": 1})).contains("field `model.merges`: merge 0"));
    assert!(with("/model/vocab/a", json!("one")).contains("invalid type"));
    assert!(with("/model/vocab/a", json!(1)).contains("share the id 1"));
    assert!(with("/model/merges/0", json!(["h", "e", "x"])).contains("two sides"));
    assert!(with("/pre_tokenizer", json!({"type": "Telepathy"})).contains("tokenizer.json"));
    assert!(
        with("/added_tokens/0/id", json!(9999)).contains("field `added_tokens`: `<|im_start|>` says id 9999")
    );
    assert!(with("/version", json!("7")).contains("version"));
    let mut bos = adds_bos();
    bos["special_tokens"][SPECIAL[0]]["ids"] = json!([70_000]);
    assert!(with("/post_processor", bos).contains("field `post_processor`: it adds the id 70000"));
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let text = tokenizer_json(&adds_bos()).to_string();
    for end in (0..text.len()).step_by(97).filter(|end| text.is_char_boundary(*end)) {
        assert!(load(&[("tokenizer.json", &text[..end])]).is_err(), "cut at {end}");
    }
}

#[test]
fn a_bad_configuration_is_an_error() {
    let file = tokenizer_json(&Value::Null).to_string();
    for (config, expected) in [
        (r#"{"bos_token": 3}"#, "field `bos_token`"),
        (r#"{"add_bos_token": "yes"}"#, "field `add_bos_token`"),
        (r#"{"chat_template": {"name": 1}}"#, "field `chat_template`"),
        (r#"{"chat_template": [{"name": "default"}]}"#, "field `chat_template`"),
        ("[]", "not a JSON object"),
        ("{", "not a JSON object"),
    ] {
        let result = load(&[("tokenizer.json", &file), ("tokenizer_config.json", config)]);
        let message = result.expect_err("a bad configuration").to_string();
        assert!(message.contains("tokenizer_config.json") && message.contains(expected), "{message}");
    }
    let unknown =
        from_json(&tokenizer_json(&Value::Null), &json!({"bos_token": "<none>"})).expect("tolerated");
    assert_eq!(unknown.bos(), None);
}

#[test]
fn a_panic_inside_the_library_is_an_error() {
    let mut file = tokenizer_json(&Value::Null);
    // `stop` larger than the token: the decoder counts below zero.
    file["decoder"] = json!({"type": "Strip", "content": "a", "start": 0, "stop": 5});
    let tokenizer = from_json(&file, &json!({})).expect("a tokenizer that loads");
    let a = tokenizer.token_to_id("a").expect("an id");
    let error = tokenizer.decode(&[a], false).expect_err("the decoder fails");
    assert!(matches!(error, TokenizerError::Decode { .. }), "{error}");
}

#[test]
fn long_texts_take_bounded_time() {
    let tokenizer = small();
    let bytes = 1 << 18;
    for unit in ["a", " ", "h", "1", "\n", "東", "hello world ", " x", "<|im_start|>", "'"] {
        let text = unit.repeat(bytes / unit.len());
        let start = Instant::now();
        let ids = tokenizer.encode(&text, false, true).expect("ids");
        let took = start.elapsed();
        assert!(took.as_secs() < 20, "{unit:?}: {took:?}");
        assert_eq!(tokenizer.decode(&ids, false).expect("text"), text);
    }
    let error = tokenizer.encode(&"a".repeat(MAX_TEXT_BYTES + 1), false, true).expect_err("too long");
    assert!(matches!(error, TokenizerError::TextTooLong { bytes } if bytes == MAX_TEXT_BYTES + 1));
}

/// The stream's pieces for `ids`.
fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip_special: bool) -> Vec<String> {
    let mut stream = TextStream::new(Arc::clone(tokenizer), skip_special);
    let mut pieces: Vec<_> = ids.iter().map(|id| stream.push(*id).expect("text")).collect();
    pieces.push(stream.finish());
    pieces
}

#[test]
fn a_stream_never_cuts_a_character() {
    let tokenizer = Arc::new(small());
    let ids = tokenizer.encode("é🙂東hello", false, true).expect("ids");
    let expected = ["", "é", "", "", "", "🙂", "", "", "東", "hello", ""];
    assert_eq!(streamed(&tokenizer, &ids, true), expected);
    assert_eq!(streamed(&tokenizer, &ids[..5], true), ["", "é", "", "", "", "\u{FFFD}"]);
}

/// A tokenizer of the SentencePiece kind: `▁` for a space, `<0xE6>` for a byte, the first space dropped.
fn sentencepiece() -> Arc<Tokenizer> {
    let mut vocab = json!({"<unk>": 0, "<s>": 1, "▁": 2, "▁a": 3, "b": 4, "▁é": 5, "a": 262, "é": 263});
    for byte in 0..=255 {
        vocab[format!("<0x{byte:02X}>")] = json!(6 + byte);
    }
    let file = json!({
        "version": "1.0",
        "added_tokens": [{"id": 1, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["▁", "a"], ["▁", "é"]], "byte_fallback": true},
    });
    Arc::new(from_json(&file, &json!({"bos_token": "<s>"})).expect("a valid tokenizer"))
}

#[test]
fn a_stream_keeps_spaces_and_byte_tokens() {
    let tokenizer = sentencepiece();
    let ids = tokenizer.encode("a a🙂b é", false, true).expect("ids");
    assert_eq!(streamed(&tokenizer, &ids, true), ["a", " a", "", "", "", "🙂", "b", " é", ""]);
    let a = tokenizer.token_to_id("▁a").expect("an id");
    assert_eq!(streamed(&tokenizer, &[1, a, 1, a], true), ["", "a", "", " a", ""]);
    assert_eq!(streamed(&tokenizer, &[1, a, 1, a], false).concat(), "<s> a<s> a");
}

proptest! {
    #[test]
    fn a_stream_is_decode(raw in prop::collection::vec(0u32..300, 0..40), skip in any::<bool>()) {
        let tokenizer = Arc::new(small());
        let whole = tokenizer.decode(&raw, skip).expect("text");
        prop_assert_eq!(streamed(&tokenizer, &raw, skip).concat(), whole);
    }

    #[test]
    fn a_window_stream_is_decode(text in "[ab é🙂東]{0,20}", skip in any::<bool>()) {
        let tokenizer = sentencepiece();
        let ids = tokenizer.encode(&text, true, true).expect("ids");
        let whole = tokenizer.decode(&ids, skip).expect("text");
        prop_assert_eq!(streamed(&tokenizer, &ids, skip).concat(), whole);
    }

    #[test]
    fn any_text_comes_back(text in any::<String>()) {
        let tokenizer = small();
        let ids = tokenizer.encode(&text, false, false).expect("ids");
        prop_assert_eq!(tokenizer.decode(&ids, false).expect("text"), text);
    }
}
