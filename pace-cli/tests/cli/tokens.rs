//! `tokenize` and `detokenize`.

use serde_json::{Value, json};

use super::common::{Call, arg, copy, fixture, pace};
use super::{expected, list};

fn json(args: &[&str]) -> Value {
    serde_json::from_str(pace(&[args, &["--format", "json"]].concat()).text()).expect("JSON")
}

#[test]
fn a_text_has_the_ids_that_transformers_gives_it_and_comes_back() {
    let model = fixture("gqa-tied");
    let texts = expected("gqa-tied").texts;
    assert!(!texts.is_empty());
    for text in texts {
        let answer = json(&["tokenize", "-m", arg(&model), "--text", &text.text]);
        assert_eq!(answer["tokens"], json!(text.tokens), "{:?}", text.text);
        assert_eq!(answer["pieces"].as_array().map(Vec::len), Some(text.tokens.len()));
        let back = json(&["detokenize", "-m", arg(&model), "--tokens", &list(&text.tokens)]);
        assert_eq!((&back["text"], &back["tokens"]), (&json!(text.text), &json!(text.tokens)));
        assert_eq!(back["pieces"], answer["pieces"]);
    }
}

#[test]
fn a_file_is_taken_byte_for_byte_and_comes_back_so() {
    let dir = copy("gqa-tied");
    let file = dir.path().join("text");
    let text = "\u{FEFF} a\r\n\tb  \n\n";
    std::fs::write(&file, text).expect("writing a file");
    // No configuration, no weights: the tokenizer is enough.
    for other in ["config.json", "model.safetensors"] {
        std::fs::remove_file(dir.path().join(other)).expect("removing a file");
    }
    let model = arg(dir.path());
    let ids = pace(&["tokenize", "-m", model, "--file", arg(&file), "--no-special"]).text().to_owned();
    assert!(ids.starts_with('[') && ids.ends_with("]\n"), "{ids}");
    let back = Call::new(&["detokenize", "-m", model, "--file", "-"]).stdin(&ids).run();
    assert_eq!(back.text(), text);
    let piped = Call::new(&["tokenize", "-m", model, "--file", "-", "--no-special"]).stdin(text).run();
    assert_eq!(piped.text(), ids);
    std::fs::write(&file, b"a\xFF").expect("writing a file");
    pace(&["tokenize", "-m", model, "--file", arg(&file)]).assert_refused(2, &["text", "UTF-8"]);
}

#[test]
fn no_text_has_no_tokens() {
    let model = fixture("gqa-tied");
    for special in [[].as_slice(), &["--no-special"]] {
        let args = [&["tokenize", "-m", arg(&model), "--text", ""], special].concat();
        assert_eq!(pace(&args).text(), "[]\n");
        assert_eq!(json(&args), json!({"tokens": [], "pieces": []}));
    }
    assert_eq!(pace(&["detokenize", "-m", arg(&model), "--tokens", "[]"]).text(), "");
}

#[test]
fn special_tokens_are_read_and_written_only_if_wanted() {
    let model = fixture("gqa-tied");
    let chat = expected("gqa-tied").chat.expect("the fixture has a chat");
    let text = json(&["detokenize", "-m", arg(&model), "--tokens", &list(&chat.tokens)])["text"].clone();
    let text = text.as_str().expect("a text");
    let parsed = json(&["tokenize", "-m", arg(&model), "--text", text]);
    assert_eq!(parsed["tokens"], json!(chat.tokens), "{text}");
    let plain = json(&["tokenize", "-m", arg(&model), "--text", text, "--no-special"]);
    assert!(plain["tokens"].as_array().map(Vec::len) > Some(chat.tokens.len()), "{plain}");
    let bare = pace(&["detokenize", "-m", arg(&model), "--tokens", &list(&chat.tokens), "--no-special"]);
    assert!(bare.text().len() < text.len());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let model = fixture("gqa-tied");
    let model = arg(&model);
    pace(&["tokenize", "-m", model]).assert_refused(2, &["--text", "--file"]);
    pace(&["detokenize", "-m", model]).assert_refused(2, &["--tokens", "--file"]);
    pace(&["detokenize", "-m", model, "--tokens", "1,-2"]).assert_refused(2, &["`-2`"]);
    pace(&["detokenize", "-m", model, "--tokens", "1,99999"]).assert_refused(2, &["99999", "position 1"]);
    for args in [&["tokenize", "--text", "a"], &["detokenize", "--tokens", "1"]] {
        pace(&[&args[..], &["-m", "random:tiny"]].concat())
            .assert_refused(2, &["random:tiny has no tokenizer: name a directory with tokenizer.json"]);
    }
    let bare = fixture("gguf-quant").join("model.gguf");
    pace(&["tokenize", "-m", arg(&bare), "--text", "a"]).assert_refused(2, &["no tokenizer"]);
}
