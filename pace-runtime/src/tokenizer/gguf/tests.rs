use std::collections::BTreeMap;

use super::{
    super::fixture::{self, Field, SPECIAL},
    *,
};

struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
    merges: Vec<String>,
}

fn vocabulary() -> Vocabulary {
    let (tokens, types) = fixture::tokens();
    Vocabulary { tokens, types, merges: fixture::MERGES.map(str::to_owned).to_vec() }
}

fn build(vocabulary: &Vocabulary, pre: PreKind, rule: AddRule) -> Result<Tokenizer, TokenizerError> {
    let bos = u32::try_from(fixture::tokens().0.len() - 3).ok();
    Fields {
        path: Path::new("model.gguf"),
        tokens: &vocabulary.tokens,
        types: Cow::Borrowed(&vocabulary.types),
        specials: Specials { bos, eos: None, ends: Vec::new(), rule },
        unknown: None,
        templates: Templates::default(),
    }
    .build_bpe(pre, &vocabulary.merges)
}

#[test]
fn the_same_vocabulary_gives_the_same_ids_as_tokenizer_json() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let json = fixture::tokenizer_json(&serde_json::Value::Null);
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).expect("a file");
    let hf = Tokenizer::from_dir(dir.path()).expect("a valid tokenizer").expect("a tokenizer");
    let rule = AddRule::Flags { bos: false, eos: false };
    let gguf = build(&vocabulary(), PreKind::Smollm, rule).expect("a valid tokenizer");
    for text in ["hello world", "12 h 3   x", "é🙂\n\n<|im_start|>a<tool>b", "it's\t'll  world  ", ""] {
        for parse_special in [true, false] {
            let expected = hf.encode(text, true, parse_special).expect("ids");
            assert_eq!(gguf.encode(text, true, parse_special).expect("ids"), expected, "{text:?}");
            assert_eq!(gguf.decode(&expected, false).expect("text"), text);
        }
    }
    assert_eq!(gguf.vocab_size(), hf.vocab_size());
    assert!(gguf.token_to_id(SPECIAL[1]).is_some_and(|id| gguf.is_special(id)));
}

#[test]
fn flags_add_bos() {
    let rule = AddRule::Flags { bos: true, eos: true };
    let tokenizer = build(&vocabulary(), PreKind::Gpt2, rule).expect("a valid tokenizer");
    let ids = tokenizer.encode("12", true, true).expect("ids");
    assert_eq!(
        ids,
        [tokenizer.token_to_id(SPECIAL[0]), tokenizer.token_to_id("12")].map(|id| id.expect("an id"))
    );
}

#[test]
fn a_whole_word_token_needs_no_merges_in_llama_3() {
    let mut vocabulary = vocabulary();
    vocabulary.tokens.push("zebra".to_owned());
    vocabulary.types.push(1);
    let rule = AddRule::Flags { bos: false, eos: false };
    let count = |kind| {
        let tokenizer = build(&vocabulary, kind, rule).expect("a valid tokenizer");
        tokenizer.encode("zebra", true, true).expect("ids").len()
    };
    assert_eq!((count(PreKind::Llama3), count(PreKind::Gpt2)), (1, 5));
}

/// What `from_gguf` makes of the small vocabulary with these fields, which win over its own.
fn open(changes: &[(&str, Option<Field>)]) -> Result<Option<Tokenizer>, TokenizerError> {
    let Vocabulary { tokens, types, merges } = vocabulary();
    let mut fields = BTreeMap::from([
        (MODEL, Field::Text("gpt2".to_owned())),
        (PRE, Field::Text("smollm".to_owned())),
        (TOKENS, Field::Texts(tokens)),
        (MERGES, Field::Texts(merges)),
        (TOKEN_TYPE, Field::Ints(types)),
        ("tokenizer.ggml.bos_token_id", Field::Id(268)),
        ("tokenizer.ggml.eos_token_id", Field::Id(269)),
        ("tokenizer.chat_template", Field::Text("template".to_owned())),
    ]);
    for (name, change) in changes {
        match change {
            Some(field) => fields.insert(name, field.clone()),
            None => fields.remove(name),
        };
    }
    open_fields(&fields)
}

/// What `from_gguf` makes of a file with these fields.
fn open_fields(fields: &BTreeMap<&str, Field>) -> Result<Option<Tokenizer>, TokenizerError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, fixture::gguf(fields)).expect("a file");
    let file = pace_models::weights::gguf::GgufFile::open(&path).expect("a valid container");
    Tokenizer::from_gguf(file.metadata())
}

#[test]
fn the_metadata_is_read() {
    let tokenizer = open(&[]).expect("valid metadata").expect("a tokenizer");
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(268), [269].as_slice()));
    assert_eq!((tokenizer.chat_template(), tokenizer.tool_use_template()), (Some("template"), None));
    let tools = open(&[("tokenizer.chat_template.tool_use", Some(Field::Text("tools".to_owned())))]);
    let tools = tools.expect("valid").expect("a tokenizer");
    assert_eq!((tools.chat_template(), tools.tool_use_template()), (Some("template"), Some("tools")));
    assert_eq!(tokenizer.encode("hello", true, true).expect("ids"), [259]);
    let llama =
        open(&[(PRE, Some(Field::Text("llama-bpe".to_owned())))]).expect("valid").expect("a tokenizer");
    assert_eq!(llama.encode("hello", true, true).expect("ids"), [268, 259]);
    let flags = [("tokenizer.ggml.add_bos_token", true), ("tokenizer.ggml.add_eos_token", true)];
    let both =
        open(&flags.map(|(name, on)| (name, Some(Field::Flag(on))))).expect("valid").expect("a tokenizer");
    assert_eq!(both.encode("hello", true, true).expect("ids"), [268, 259, 269]);
    assert!(open(&[(MODEL, None)]).expect("no error").is_none());
    assert!(open(&[(PRE, None), (TOKEN_TYPE, None)]).expect("defaults").is_some());
}

#[test]
fn the_end_of_a_turn_and_of_a_message_end_an_answer() {
    const EOS: &str = "tokenizer.ggml.eos_token_id";
    const EOT: &str = "tokenizer.ggml.eot_token_id";
    const EOM: &str = "tokenizer.ggml.eom_token_id";
    let id = |id| Some(Field::Id(id));
    let ends = |changes: &[(&str, Option<Field>)]| {
        let tokenizer = open(changes).expect("valid metadata").expect("a tokenizer");
        (tokenizer.eos_token(), tokenizer.eos().to_vec())
    };
    assert_eq!(ends(&[(EOT, id(270)), (EOM, id(5))]), (Some(269), vec![269, 270, 5]));
    assert_eq!(ends(&[(EOT, id(269)), (EOM, id(270))]), (Some(269), vec![269, 270]));
    // A token that ends a turn is not what a text ends with.
    assert_eq!(ends(&[(EOS, None), (EOT, id(270))]), (None, vec![270]));
    for field in [EOT, EOM] {
        let message = open(&[(field, id(99_999))]).expect_err("no such token").to_string();
        assert!(message.contains(&format!("field `{field}`: 99999")), "{message}");
    }
}

#[test]
fn bad_metadata_is_an_error_that_names_the_field() {
    let text = |text: &str| Some(Field::Text(text.to_owned()));
    for (name, change, expected) in [
        (MODEL, text("bert"), "`bert` is not supported; supported: gpt2, llama, gemma4"),
        (PRE, text("telepathy"), "`telepathy` is not known; known: default, gpt-2"),
        (TOKENS, None, "missing"),
        (MERGES, None, "missing"),
        (TOKENS, text("one"), "tokenizer.ggml.tokens"),
        (TOKEN_TYPE, Some(Field::Ints(vec![1; 9])), "9 types for 271 tokens"),
        ("tokenizer.ggml.padding_token_id", Some(Field::Id(271)), "271 is not below the 271 tokens"),
        ("tokenizer.ggml.add_bos_token", Some(Field::Id(1)), "tokenizer.ggml.add_bos_token"),
    ] {
        let message = open(&[(name, change)]).expect_err("bad metadata").to_string();
        assert!(
            message.contains("m.gguf") && message.contains(name) && message.contains(expected),
            "{message}"
        );
    }
}

#[test]
fn bad_vocabularies_are_errors_that_name_the_field() {
    let refusal = |change: fn(&mut Vocabulary)| {
        let mut vocabulary = vocabulary();
        change(&mut vocabulary);
        let rule = AddRule::Flags { bos: false, eos: false };
        build(&vocabulary, PreKind::Gpt2, rule).expect_err("a bad vocabulary").to_string()
    };
    let duplicate = refusal(|vocabulary| vocabulary.tokens[1] = vocabulary.tokens[0].clone());
    assert!(duplicate.starts_with("model.gguf: field `tokenizer.ggml.tokens`"), "{duplicate}");
    assert!(
        refusal(|vocabulary| vocabulary.merges[1] = "ll".to_owned()).contains("merge 1: `ll` is not two")
    );
    assert!(refusal(|vocabulary| vocabulary.merges[0] = "h x".to_owned()).contains("`hx` is not in"));
}

/// The fields of a small SentencePiece vocabulary: unknown, bos, eos, a space, two letters, a word, then all bytes.
fn spm_fields() -> BTreeMap<&'static str, Field> {
    let mut tokens: Vec<String> =
        ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁ab", "ab", "<tool>"].map(str::to_owned).to_vec();
    let mut types = vec![UNKNOWN, CONTROL, CONTROL, 1, 1, 1, 1, 1, USER_DEFINED];
    let mut scores = vec![0.0, 0.0, 0.0, -5.0, -6.0, -7.0, -1.0, -2.0, 0.0];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    types.resize(tokens.len(), BYTE);
    scores.resize(tokens.len(), 0.0);
    BTreeMap::from([
        (MODEL, Field::Text("llama".to_owned())),
        (TOKENS, Field::Texts(tokens)),
        (TOKEN_TYPE, Field::Ints(types)),
        (SCORES, Field::Floats(scores)),
    ])
}

fn open_spm(name: &'static str, change: Option<Field>) -> Result<Tokenizer, TokenizerError> {
    let mut fields = spm_fields();
    match change {
        Some(field) => fields.insert(name, field),
        None => fields.remove(name),
    };
    open_fields(&fields).map(|tokenizer| tokenizer.expect("a tokenizer"))
}

#[test]
fn a_sentencepiece_vocabulary_is_read() {
    let tokenizer = open_spm(PRE, Some(Field::Text("default".to_owned()))).expect("valid metadata");
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), [2].as_slice()), "SentencePiece's own");
    let ids = tokenizer.encode("ab<tool>b\n</s>", true, true).expect("ids");
    assert_eq!(ids, [1, 6, 8, 3, 5, 9 + 10, 2], "bos is added by default");
    assert_eq!(tokenizer.decode(&ids, true).expect("text"), "ab<tool> b\n");
    assert_eq!(
        tokenizer.decode(&ids, false).expect("text"),
        "<s>ab<tool> b\n</s>".replace("<s>ab", "<s> ab")
    );
    assert_eq!(tokenizer.encode("<tool></s>", false, false).expect("ids")[0], 8);
    assert_eq!(tokenizer.encode("", true, true).expect("ids"), [1]);
    let bare = open_spm(ADD_SPACE_PREFIX, Some(Field::Flag(false))).expect("valid metadata");
    assert_eq!(bare.encode("ab", false, true).expect("ids"), [7]);
    let untyped = open_spm(TOKEN_TYPE, None).expect("valid metadata");
    assert_eq!(untyped.decode(&[4, 9 + 10], true).expect("text"), "a\n", "bytes are known by their spelling");
}

#[test]
fn a_bad_sentencepiece_vocabulary_is_an_error_that_names_the_field() {
    let types = |at: usize, kind| {
        let mut types = vec![1; 265];
        types[at] = kind;
        Some(Field::Ints(types))
    };
    let mut nan = vec![0.0; 265];
    nan[7] = f32::NAN;
    for (name, change, expected) in [
        (SCORES, None, "missing"),
        (SCORES, Some(Field::Floats(vec![0.0; 9])), "9 scores for 265 tokens"),
        (SCORES, Some(Field::Floats(nan)), "the score of token 7 is no number"),
        (TOKEN_TYPE, types(4, BYTE), "`a` is not like <0x0A>"),
        (ADD_SPACE_PREFIX, Some(Field::Id(1)), "a truth value is right"),
        ("tokenizer.ggml.unknown_token_id", Some(Field::Id(265)), "265 is not below the 265 tokens"),
    ] {
        let message = open_spm(name, change).expect_err("bad metadata").to_string();
        assert!(message.contains(name) && message.contains(expected), "{message}");
    }
}

#[test]
fn a_stream_of_sentencepiece_tokens_is_what_they_decode_to() {
    let tokenizer = std::sync::Arc::new(open_spm(PRE, None).expect("valid metadata"));
    let ids = tokenizer.encode(" ab é🙂 <tool>a", true, false).expect("ids");
    for skip_special in [true, false] {
        let mut stream = crate::tokenizer::TextStream::new(std::sync::Arc::clone(&tokenizer), skip_special);
        let mut text: String = ids.iter().map(|id| stream.push(*id).expect("text")).collect();
        text += &stream.finish();
        assert_eq!(text, tokenizer.decode(&ids, skip_special).expect("text"));
    }
    assert_eq!(tokenizer.decode(&ids, true).expect("text"), " ab é🙂 <tool> a");
}

#[test]
fn gemma_4_merges_over_whole_lines() {
    let mut fields = spm_fields();
    fields.insert(MODEL, Field::Text("gemma4".to_owned()));
    fields.insert(MERGES, Field::Texts(["a b", "▁ ab"].map(str::to_owned).to_vec()));
    fields.insert("tokenizer.ggml.unknown_token_id", Field::Id(0));
    fields.insert("tokenizer.ggml.bos_token_id", Field::Id(1));
    let tokenizer = open_fields(&fields).expect("valid metadata").expect("a tokenizer");
    let ids = tokenizer.encode("ab ab\né<tool>", true, false).expect("ids");
    assert_eq!(ids, [1, 7, 6, 9 + 10, 9 + 0xC3, 9 + 0xA9, 8]);
    assert_eq!(tokenizer.decode(&ids, true).expect("text"), "ab ab\né<tool>");
}

#[test]
fn added_letters_come_back_as_letters() {
    let mut vocabulary = vocabulary();
    vocabulary.tokens.push("÷".to_owned());
    vocabulary.types.push(USER_DEFINED);
    let error = build(&vocabulary, PreKind::DeepseekCoder, AddRule::Flags { bos: false, eos: false });
    // The byte alphabet spells 0xF7 like this, so the vocabulary has it already.
    assert!(error.expect_err("a duplicate").to_string().contains("`÷` is the token"));
    let at = vocabulary.tokens.iter().position(|token| token == "÷").expect("a byte");
    vocabulary.tokens.pop();
    vocabulary.types.pop();
    vocabulary.types[at] = USER_DEFINED;
    let tokenizer = build(&vocabulary, PreKind::DeepseekCoder, AddRule::Flags { bos: false, eos: false })
        .expect("a valid tokenizer");
    let ids = tokenizer.encode("a÷b", false, false).expect("ids");
    assert_eq!((ids.len(), tokenizer.decode(&ids, false).expect("text")), (3, "a÷b".to_owned()));
}
