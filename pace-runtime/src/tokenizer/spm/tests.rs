use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A small vocabulary: the unknown token, bos and eos, an added token, the bytes, pieces with scores.
fn tokens() -> Vec<Token> {
    let token = |text: &str, score, kind| Token { text: text.to_owned(), score, kind };
    let mut tokens = vec![
        token("<unk>", 0.0, Kind::Unknown),
        token("<s>", 0.0, Kind::Control),
        token("</s>", 0.0, Kind::Control),
        token("<tool>", 0.0, Kind::UserDefined),
    ];
    tokens.extend((0..=255).map(|byte| token(&format!("<0x{byte:02X}>"), 0.0, Kind::Byte(byte))));
    let pieces = [
        ("▁", -9.0),
        ("a", -10.0),
        ("b", -11.0),
        ("c", -12.0),
        ("é", -13.0),
        ("▁a", -1.0),
        ("ab", -3.0),
        ("bc", -2.0),
        ("aa", -4.0),
        ("aaaa", -5.0),
        ("abc", -6.0),
        ("<s", -7.0),
        ("<", -14.0),
        ("s", -15.0),
        (">", -16.0),
    ];
    tokens.extend(pieces.map(|(text, score)| token(text, score, Kind::Normal)));
    tokens
}

fn ids(tokens: &[Token]) -> Vocab {
    (0..).zip(tokens).map(|(id, token)| (token.text.clone(), id)).collect()
}

fn spm(space_prefix: bool, added_strip_right: bool) -> Spm {
    let tokens = tokens();
    let ids = ids(&tokens);
    Spm::new(tokens, ids, &SpmOptions { unknown: Some(0), space_prefix, added_strip_right })
        .expect("a valid vocabulary")
}

fn pieces(spm: &Spm, text: &str, parse_special: bool) -> String {
    let ids = spm.encode(text, parse_special);
    let pieces: Vec<_> = ids.into_iter().map(|id| spm.piece(id).expect("an id of the vocabulary")).collect();
    pieces.join(" ")
}

fn decode(spm: &Spm, ids: &[u32]) -> String {
    let mut bytes = Vec::new();
    let mut first = true;
    for id in ids {
        first &= !spm.append(*id, first, &mut bytes);
    }
    String::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn the_highest_score_is_joined_first_and_of_equals_the_leftmost() {
    let spm = spm(false, false);
    assert_eq!(pieces(&spm, "abc", false), "abc", "a + bc, as bc scores more than ab");
    assert_eq!(pieces(&spm, "aaa", false), "aa a");
    assert_eq!(pieces(&spm, "aaaaaaa", false), "aaaa aa a");
    assert_eq!(pieces(&spm, " ab", false), "▁a b", "▁a scores more than ab");
    assert_eq!(pieces(&spm, "", false), "");
}

#[test]
fn what_no_piece_spells_becomes_bytes_or_unknown() {
    let spm = spm(false, false);
    assert_eq!(pieces(&spm, "aé東\n", false), "a é <0xE6> <0x9D> <0xB1> <0x0A>");
    let tokens: Vec<_> = tokens().into_iter().filter(|token| !matches!(token.kind, Kind::Byte(_))).collect();
    let ids = ids(&tokens);
    let options = SpmOptions { unknown: Some(0), space_prefix: false, added_strip_right: false };
    let spm = Spm::new(tokens, ids, &options).expect("a valid vocabulary");
    assert_eq!(pieces(&spm, "a\n", false), "a <unk>");
}

#[test]
fn a_space_begins_a_text_and_what_follows_an_added_token() {
    let spm = spm(true, false);
    assert_eq!(pieces(&spm, "a<tool>a a", false), "▁a <tool> ▁a ▁a");
    assert_eq!(pieces(&spm, " a", false), "▁ ▁a");
    assert_eq!(decode(&spm, &spm.encode(" a  a", false)), " a  a");
    assert_eq!(pieces(&spm, "", false), "");
}

#[test]
fn special_tokens_are_never_made_from_plain_text() {
    let spm = spm(false, false);
    assert_eq!(pieces(&spm, "<s>a</s>", true), "<s> a </s>");
    assert_eq!(pieces(&spm, "<s>a", false), "<s > a");
    assert_eq!(pieces(&spm, "<0x61>", false), "< <0x30> <0x78> <0x36> <0x31> >");
    assert!(spm.is_special(0) && spm.is_special(1) && !spm.is_special(3) && !spm.is_special(4));
}

#[test]
fn phi_3_strips_what_follows_its_tokens() {
    let spm = spm(false, true);
    assert_eq!(pieces(&spm, "<tool> \n a", false), "<tool> a");
    assert_eq!(pieces(&spm, "<s>\na", true), "<s> <0x0A> a");
}

#[test]
fn a_vocabulary_that_cannot_spell_is_refused() {
    let refusal = |tokens: Vec<Token>, unknown| {
        let ids = ids(&tokens);
        let options = SpmOptions { unknown, space_prefix: true, added_strip_right: false };
        Spm::new(tokens, ids, &options).err().expect("a bad vocabulary").to_string()
    };
    let without: Vec<_> = tokens().into_iter().filter(|token| token.kind != Kind::Byte(10)).collect();
    assert!(refusal(without, None).contains("neither the byte token <0x0A> nor"));
    let mut long = tokens();
    long.push(Token { text: "a".repeat(5000), score: 0.0, kind: Kind::Normal });
    assert!(refusal(long, None).contains("5000 bytes; at most 4096"));
}

#[test]
fn bytes_are_spelt_in_one_way() {
    assert_eq!((spelt_byte("<0x0A>"), spelt_byte("<0xff>")), (Some(10), Some(255)));
    for other in ["<0x+A>", "<0x0>", "<0x00A>", "0x0A", "<0x0A", "<0x>"] {
        assert_eq!(spelt_byte(other), None, "{other}");
    }
}

/// The definition: join the best pair of neighbours until there is none.
fn by_definition(spm: &Spm, text: &str) -> Vec<u32> {
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let pairs: BTreeMap<usize, f32> = (1..parts.len())
            .filter_map(|at| Some((at, spm.find(&parts[at - 1..=at].concat())?.1.score)))
            .collect();
        let Some(best) = pairs.values().copied().reduce(f32::max) else { break };
        let at = *pairs.iter().find(|(_, score)| **score == best).expect("the best is one of them").0;
        let right = parts.remove(at);
        parts[at - 1] += &right;
    }
    let ids = parts.iter().map(|part| match spm.find(part) {
        Some((id, _)) => vec![id],
        None => part.bytes().map(|byte| spm.bytes[usize::from(byte)]).collect(),
    });
    ids.flatten().collect()
}

proptest! {
    #[test]
    fn joining_is_what_it_is_defined_as(text in "[abc▁<s>é🙂]{0,24}") {
        let spm = spm(false, false);
        let mut ids = Vec::new();
        spm.join(&text, &mut ids);
        prop_assert_eq!(ids, by_definition(&spm, &text));
    }

    #[test]
    fn any_text_comes_back(text in any::<String>(), prefix in any::<bool>()) {
        let spm = spm(prefix, false);
        // The vocabulary cannot tell ▁ from a space, and a space follows an added token.
        let text = text.replace(SPACE, "").replace("<tool>", "");
        prop_assert_eq!(decode(&spm, &spm.encode(&text, false)), text);
    }
}
