//! [`PreKind`]: how byte-level BPE vocabularies cut a text before merging. A GGUF file only names it
//! (`tokenizer.ggml.pre`); the meaning of a name is that of the model's own `tokenizer.json`.

use tokenizers::{
    NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    normalizers::NFC,
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

/// GPT-2's word pattern.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's word pattern.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's word pattern.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What llama.cpp cuts by, one after the other, where a file names no kind: punctuation, words, numbers of three.
const DEFAULT: &[&str] = &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];
/// Falcon: punctuation, words, numbers of three.
const FALCON: &[&str] = &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"];
/// DeepSeek-Coder: line ends, words, punctuation, Chinese and Korean.
const DEEPSEEK_CODER: &[&str] = &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_AND_HANGUL];
/// DeepSeek LLM: line ends, words in cased scripts, punctuation, white space at the end, Chinese and Korean.
const DEEPSEEK_LLM: &[&str] =
    &[r"[\r\n]", CASED_WORD, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", HAN_AND_HANGUL];
/// DeepSeek's Chinese and Korean, and by the width of its second range what lies between Samaritan and Chinese.
const HAN_AND_HANGUL: &str = "[一-龥ࠀ-一가-퟿]+";
/// DeepSeek LLM's words: the cased letters of the Unicode version that it was trained with. Letters that an editor
/// could replace by an equivalent are written as numbers.
const CASED_WORD: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ",
    r"Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1F7D}ᾀ-ᾴᾶ-ᾼ\u{1FBE}ῂ-ῄῆ-ῌῐ-\u{1FD3}ῖ-\u{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄ",
    r"Ⰰ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
);

/// How a text is cut before merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreKind {
    CommandR,
    DeepseekCoder,
    DeepseekLlm,
    Default,
    Falcon,
    Gpt2,
    Llama3,
    Mpt,
    Qwen2,
    Smollm,
}

/// The names that files use. Kinds that cut alike share one: StarCoder's and Refact's words and digits are SmolLM's.
const NAMES: [(&str, PreKind); 17] = [
    ("default", PreKind::Default),
    ("gpt-2", PreKind::Gpt2),
    ("llama-bpe", PreKind::Llama3),
    ("llama3", PreKind::Llama3),
    ("llama-v3", PreKind::Llama3),
    ("smollm", PreKind::Smollm),
    ("qwen2", PreKind::Qwen2),
    ("deepseek-r1-qwen", PreKind::Qwen2),
    ("deepseek-llm", PreKind::DeepseekLlm),
    ("deepseek-coder", PreKind::DeepseekCoder),
    ("starcoder", PreKind::Smollm),
    ("refact", PreKind::Smollm),
    ("command-r", PreKind::CommandR),
    ("falcon", PreKind::Falcon),
    ("mpt", PreKind::Mpt),
    ("phi", PreKind::Gpt2),
    ("phi-2", PreKind::Gpt2),
];

impl PreKind {
    /// The kind that a file calls `name`, or what is wrong with it.
    pub(super) fn from_name(name: &str) -> Result<Self, String> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind).ok_or_else(|| {
            let known = NAMES.map(|(known, _)| known).join(", ");
            format!("the kind `{name}` is not known; known: {known}")
        })
    }

    pub(super) fn pre_tokenizer(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let bytes = |use_regex| PreTokenizerWrapper::from(ByteLevel::new(false, true, use_regex));
        let digits = || PreTokenizerWrapper::from(Digits::new(true));
        let (patterns, digits): (&[&str], _) = match self {
            Self::Gpt2 | Self::Mpt => return Ok(bytes(true)),
            Self::Smollm | Self::CommandR => return Ok(Sequence::new(vec![digits(), bytes(true)]).into()),
            Self::Llama3 => (&[LLAMA3], None),
            Self::Qwen2 => (&[QWEN2], None),
            Self::Default => (DEFAULT, None),
            Self::Falcon => (FALCON, None),
            Self::DeepseekCoder => (DEEPSEEK_CODER, Some(digits())),
            Self::DeepseekLlm => (DEEPSEEK_LLM, Some(digits())),
        };
        let splits = patterns.iter().map(|pattern| split(pattern));
        let mut steps = splits.collect::<tokenizers::Result<Vec<_>>>()?;
        steps.extend(digits);
        steps.push(bytes(false));
        Ok(Sequence::new(steps).into())
    }

    pub(super) fn normalizer(self) -> Option<NormalizerWrapper> {
        matches!(self, Self::Qwen2 | Self::Mpt | Self::CommandR).then(|| NFC.into())
    }

    /// Whether a word that is a token as a whole is taken as it is, even if merges would not make it.
    pub(super) fn ignores_merges(self) -> bool {
        self == Self::Llama3
    }

    /// What `add_bos_token` means where the file does not say.
    pub(super) fn adds_bos(self) -> bool {
        self == Self::Llama3
    }
}

/// Cuts out what matches; what lies between stays whole.
fn split(regex: &str) -> tokenizers::Result<PreTokenizerWrapper> {
    let pattern = SplitPattern::Regex(regex.to_owned());
    Ok(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a kind cuts a text.
    fn words(kind: PreKind, text: &str) -> String {
        let normalized = tokenizers::NormalizedString::from(text);
        let mut split = tokenizers::PreTokenizedString::from(normalized);
        let pre_tokenizer = kind.pre_tokenizer().expect("a valid kind");
        tokenizers::PreTokenizer::pre_tokenize(&pre_tokenizer, &mut split).expect("words");
        let words = split.get_splits(tokenizers::OffsetReferential::Original, tokenizers::OffsetType::Byte);
        let words: Vec<_> = words.into_iter().map(|(_, (from, to), _)| &text[from..to]).collect();
        words.join("|")
    }

    #[test]
    fn kinds_cut_words_as_their_models_do() {
        let text = "It'S a1234 b\n\n !!\nx";
        for (kind, expected) in [
            (PreKind::Gpt2, "It|'|S| a|1234| b|\n\n| !!|\n|x"),
            (PreKind::Mpt, "It|'|S| a|1234| b|\n\n| !!|\n|x"),
            (PreKind::Smollm, "It|'|S| a|1|2|3|4| b|\n\n| !!|\n|x"),
            (PreKind::CommandR, "It|'|S| a|1|2|3|4| b|\n\n| !!|\n|x"),
            (PreKind::Llama3, "It|'S| a|123|4| b|\n\n| !!\n|x"),
            (PreKind::Qwen2, "It|'S| a|1|2|3|4| b|\n\n| !!\n|x"),
            (PreKind::Default, "It|'|S| a|123|4| b|\n\n |!!|\n|x"),
            (PreKind::Falcon, "It|'|S| a|123|4| b|\n\n |!!|\n|x"),
            (PreKind::DeepseekCoder, "It|'|S| a|1|2|3|4| b|\n|\n| !!|\n|x"),
            (PreKind::DeepseekLlm, "It|'|S| a|1|2|3|4| b|\n|\n| !!|\n|x"),
        ] {
            assert_eq!(words(kind, text), expected, "{kind:?}");
        }
        // `:-~` of the punctuation holds a to z, and the Chinese range holds the ideographic full stop.
        assert_eq!(words(PreKind::DeepseekLlm, "aя中文한 。  "), "a|я|中文한| |。|  ");
        assert_eq!(words(PreKind::DeepseekCoder, "a中，b"), "a|中|，|b");
        assert_eq!(words(PreKind::Falcon, "a`b"), "a|`|b");
    }

    #[test]
    fn every_name_has_a_kind_and_no_other_does() {
        for (name, kind) in NAMES {
            assert_eq!(PreKind::from_name(name), Ok(kind));
            kind.pre_tokenizer().expect("a valid kind");
        }
        let error = PreKind::from_name("Qwen2").expect_err("names are exact");
        assert!(error.contains("`Qwen2` is not known; known: default, gpt-2,"), "{error}");
    }
}
