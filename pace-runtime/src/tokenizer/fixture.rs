//! A small byte-level BPE vocabulary for tests: the 256 bytes, a few merges, three added tokens.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::bytes::byte_of;

/// Merges in order of rank.
pub(super) const MERGES: [&str; 12] =
    ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "l d", "Ġw or", "Ġwor ld", "Ġ Ġ", "ĠĠ ĠĠ", "1 2"];
/// The special tokens, after the merged ones; then the token that is added but not special.
pub(super) const SPECIAL: [&str; 2] = ["<|im_start|>", "<|im_end|>"];
pub(super) const ADDED: &str = "<tool>";

/// Every token in the order of ids, and its type as in `tokenizer.ggml.token_type`.
pub(super) fn tokens() -> (Vec<String>, Vec<i32>) {
    let mut bytes: Vec<_> =
        (0..0x400).filter_map(char::from_u32).filter_map(|c| Some((byte_of(c)?, c))).collect();
    bytes.sort_unstable();
    let mut tokens: Vec<String> = bytes.into_iter().map(|(_, c)| c.to_string()).collect();
    tokens.extend(MERGES.iter().map(|merge| merge.replace(' ', "")));
    let mut types = vec![1; tokens.len()];
    tokens.extend(SPECIAL.into_iter().chain([ADDED]).map(str::to_owned));
    types.extend([3, 3, 4]);
    (tokens, types)
}

/// The same as `tokenizer.json`, with the pre-tokenizer of SmolLM2. `post_processor` may add bos.
pub(super) fn tokenizer_json(post_processor: &Value) -> Value {
    let (tokens, types) = tokens();
    let vocab: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added: Vec<_> = types
        .iter()
        .enumerate()
        .filter(|(_, kind)| **kind != 1)
        .map(|(id, kind)| {
            json!({"id": id, "content": tokens[id], "special": *kind == 3, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false})
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level]},
        "post_processor": post_processor, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "vocab": vocab, "merges": MERGES},
    })
}

/// A post-processor that puts `<|im_start|>` before the text.
pub(super) fn adds_bos() -> Value {
    let id = tokens().0.len() - 3;
    json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": SPECIAL[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {SPECIAL[0]: {"id": SPECIAL[0], "ids": [id], "tokens": [SPECIAL[0]]}}})
}

/// A metadata value of [`gguf`].
#[derive(Clone)]
pub(super) enum Field {
    Text(String),
    Texts(Vec<String>),
    Ints(Vec<i32>),
    Floats(Vec<f32>),
    Id(u32),
    Flag(bool),
}

/// A GGUF file (version 3) with these metadata and no tensors.
pub(super) fn gguf(fields: &BTreeMap<&str, Field>) -> Vec<u8> {
    fn length(out: &mut Vec<u8>, length: usize) {
        out.extend(u64::try_from(length).expect("a small length").to_le_bytes());
    }
    fn text(out: &mut Vec<u8>, text: &str) {
        length(out, text.len());
        out.extend(text.as_bytes());
    }
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    length(&mut out, 0);
    length(&mut out, fields.len());
    for (name, field) in fields {
        text(&mut out, name);
        match field {
            Field::Text(value) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, value);
            }
            Field::Texts(values) => {
                out.extend([9u32, 8].map(u32::to_le_bytes).concat());
                length(&mut out, values.len());
                values.iter().for_each(|value| text(&mut out, value));
            }
            Field::Ints(values) => {
                out.extend([9u32, 5].map(u32::to_le_bytes).concat());
                length(&mut out, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Field::Floats(values) => {
                out.extend([9u32, 6].map(u32::to_le_bytes).concat());
                length(&mut out, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Field::Id(value) => out.extend([4, *value].map(u32::to_le_bytes).concat()),
            Field::Flag(value) => {
                out.extend(7u32.to_le_bytes());
                out.push(u8::from(*value));
            }
        }
    }
    out
}
