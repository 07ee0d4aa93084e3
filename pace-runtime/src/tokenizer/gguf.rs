//! A tokenizer from GGUF metadata: byte-level BPE (`tokenizer.ggml.model` = `gpt2`), SentencePiece BPE (`llama`), or
//! Gemma 4's BPE over whole lines (`gemma4`). All carry a vocabulary; the first adds merges and the name of a way to
//! cut words ([`PreKind`]), the second a score for each token, the third merges.

mod pre;

use std::{borrow::Cow, collections::HashSet, path::Path};

use pace_models::weights::gguf::Metadata;
use tokenizers::{
    AddedToken, SplitDelimiterBehavior,
    decoders::{self, byte_fallback::ByteFallback, fuse::Fuse},
    models::bpe::{BPE, Merges, Vocab},
    normalizers::Replace,
    pre_tokenizers::{
        byte_level::ByteLevel,
        split::{Split, SplitPattern},
    },
};

use self::pre::PreKind;
use super::{
    AddRule, Core, Specials, Templates, Tokenizer, TokenizerError, fault, guard,
    library::Library,
    spm::{Kind, SPACE, Spm, SpmOptions, Token, spelt_byte},
    validate,
};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";

/// `tokenizer.ggml.token_type` of the token for what cannot be spelt.
const UNKNOWN: i32 = 2;
/// `tokenizer.ggml.token_type` of a special token (`<|im_end|>`).
const CONTROL: i32 = 3;
/// `tokenizer.ggml.token_type` of a token that the model's maker added and that is not special.
const USER_DEFINED: i32 = 4;
/// `tokenizer.ggml.token_type` of a token that is never made.
const UNUSED: i32 = 5;
/// `tokenizer.ggml.token_type` of a token for one byte, `<0x00>` to `<0xFF>`.
const BYTE: i32 = 6;

/// The metadata's fields that both kinds have, borrowed.
struct Fields<'m> {
    path: &'m Path,
    tokens: &'m [String],
    /// Empty where the file has none.
    types: Cow<'m, [i32]>,
    specials: Specials,
    unknown: Option<u32>,
    templates: Templates,
}

/// What a kind assumes where the file does not say.
struct Defaults {
    adds_bos: bool,
    bos: Option<u64>,
    eos: Option<u64>,
    unknown: Option<u64>,
}

/// Loads the tokenizer of a GGUF file, if it has one.
pub(super) fn load(metadata: &Metadata) -> Result<Option<Tokenizer>, TokenizerError> {
    let path = metadata.path();
    match metadata.str(MODEL)? {
        None => Ok(None),
        Some("gpt2") => load_bpe(metadata).map(Some),
        Some("llama") => load_spm(metadata).map(Some),
        Some("gemma4") => load_gemma4(metadata).map(Some),
        Some(other) => {
            Err(fault(path, MODEL, format!("`{other}` is not supported; supported: gpt2, llama, gemma4")))
        }
    }
}

fn load_bpe(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
    let path = metadata.path();
    let name = metadata.str(PRE)?.unwrap_or("default");
    let pre = PreKind::from_name(name).map_err(|what| fault(path, PRE, what))?;
    let defaults = Defaults { adds_bos: pre.adds_bos(), bos: None, eos: None, unknown: None };
    let merges = metadata.strings(MERGES)?.ok_or_else(|| fault(path, MERGES, "missing"))?;
    Fields::read(metadata, &defaults)?.build_bpe(pre, merges)
}

fn load_gemma4(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
    let defaults = Defaults { adds_bos: true, bos: None, eos: None, unknown: None };
    let merges = metadata.strings(MERGES)?.ok_or_else(|| fault(metadata.path(), MERGES, "missing"))?;
    Fields::read(metadata, &defaults)?.build_gemma4(merges)
}

fn load_spm(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
    let path = metadata.path();
    let defaults = Defaults { adds_bos: true, bos: Some(1), eos: Some(2), unknown: Some(0) };
    let scores = metadata.f32s(SCORES)?.ok_or_else(|| fault(path, SCORES, "missing"))?;
    let space_prefix = metadata.bool(ADD_SPACE_PREFIX)?.unwrap_or(true);
    // Phi-3's tokenizer.json strips the white space after its tokens; the GGUF file does not say so.
    let phi3 = metadata.str("general.architecture")? == Some("phi3");
    Fields::read(metadata, &defaults)?.build_spm(scores, space_prefix, phi3)
}

impl<'m> Fields<'m> {
    fn read(metadata: &'m Metadata, defaults: &Defaults) -> Result<Self, TokenizerError> {
        let path = metadata.path();
        let tokens = metadata.strings(TOKENS)?.ok_or_else(|| fault(path, TOKENS, "missing"))?;
        let types = metadata.i32s(TOKEN_TYPE)?.unwrap_or_default();
        if !types.is_empty() && types.len() != tokens.len() {
            return Err(fault(
                path,
                TOKEN_TYPE,
                format!("{} types for {} tokens", types.len(), tokens.len()),
            ));
        }
        let id = |name: &str, default: Option<u64>| -> Result<Option<u32>, TokenizerError> {
            let field = format!("tokenizer.ggml.{name}_token_id");
            let default = default.filter(|id| usize::try_from(*id).is_ok_and(|id| id < tokens.len()));
            metadata.u64(&field)?.or(default).map(|id| check_id(id, tokens, path, &field)).transpose()
        };
        let flag = |name: &str, default| -> Result<bool, TokenizerError> {
            Ok(metadata.bool(&format!("tokenizer.ggml.add_{name}_token"))?.unwrap_or(default))
        };
        let rule = AddRule::Flags { bos: flag("bos", defaults.adds_bos)?, eos: flag("eos", false)? };
        let eos = id("eos", defaults.eos)?;
        // The end of a turn, and of a message that waits for a tool's answer.
        let mut ends: Vec<u32> = [eos, id("eot", None)?, id("eom", None)?].into_iter().flatten().collect();
        let mut seen = HashSet::new();
        ends.retain(|&end| seen.insert(end));
        let specials = Specials { bos: id("bos", defaults.bos)?, eos, ends, rule };
        id("padding", None)?;
        let unknown = id("unknown", defaults.unknown)?;
        let template = |key: &str| Ok::<_, TokenizerError>(metadata.str(key)?.map(str::to_owned));
        let default = template("tokenizer.chat_template")?;
        let templates = Templates { default, tool_use: template("tokenizer.chat_template.tool_use")? };
        Ok(Self { path, tokens, types, specials, unknown, templates })
    }

    fn build_bpe(self, pre: PreKind, merges: &[String]) -> Result<Tokenizer, TokenizerError> {
        let (vocab, merges) = (self.vocab()?, self.merges(merges)?);
        let library = guard::catch(|| {
            let model = BPE::builder().vocab_and_merges(vocab, merges);
            let model = model.ignore_merges(pre.ignores_merges()).build()?;
            let mut inner = tokenizers::Tokenizer::new(model);
            inner.with_normalizer(pre.normalizer())?;
            inner.with_pre_tokenizer(Some(pre.pre_tokenizer()?));
            inner.with_decoder(Some(ByteLevel::new(false, true, true)));
            inner.add_tokens(self.added_tokens())?;
            Library::new(inner)
        })
        .map_err(|what| fault(self.path, TOKENS, what))?;
        self.finish(Core::Library(Box::new(library)))
    }

    /// Merges over whole lines: `▁` for a space, bytes for what no token spells, as in Gemma's `tokenizer.json`.
    fn build_gemma4(self, merges: &[String]) -> Result<Tokenizer, TokenizerError> {
        let (vocab, merges) = (self.vocab()?, self.merges(merges)?);
        let unknown = self.unknown.and_then(|id| self.tokens.get(usize::try_from(id).ok()?)).cloned();
        let library = guard::catch(|| {
            let mut model = BPE::builder().vocab_and_merges(vocab, merges).byte_fallback(true);
            if let Some(unknown) = unknown {
                model = model.unk_token(unknown).fuse_unk(true);
            }
            let mut inner = tokenizers::Tokenizer::new(model.build()?);
            inner.with_normalizer(Some(Replace::new(" ", SPACE)?))?;
            let lines = SplitPattern::Regex("\\n+".to_owned());
            inner.with_pre_tokenizer(Some(Split::new(lines, SplitDelimiterBehavior::Isolated, false)?));
            let decoders =
                vec![Replace::new(SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
            inner.with_decoder(Some(decoders::sequence::Sequence::new(decoders)));
            inner.add_tokens(self.added_tokens())?;
            Library::new(inner)
        })
        .map_err(|what| fault(self.path, TOKENS, what))?;
        self.finish(Core::Library(Box::new(library)))
    }

    fn build_spm(
        self,
        scores: &[f32],
        space_prefix: bool,
        added_strip_right: bool,
    ) -> Result<Tokenizer, TokenizerError> {
        let wrong = |what| Err(fault(self.path, SCORES, what));
        if scores.len() != self.tokens.len() {
            return wrong(format!("{} scores for {} tokens", scores.len(), self.tokens.len()));
        }
        if let Some(at) = scores.iter().position(|score| score.is_nan()) {
            return wrong(format!("the score of token {at} is no number"));
        }
        let ids = self.vocab()?;
        let mut tokens = Vec::with_capacity(scores.len());
        for (id, (text, score)) in self.tokens.iter().zip(scores).enumerate() {
            let kind = self.kind(id, text)?;
            // -0.0 and 0.0 are one score: they must tie.
            tokens.push(Token { text: text.clone(), score: score + 0.0, kind });
        }
        let options = SpmOptions { unknown: self.unknown, space_prefix, added_strip_right };
        let spm = guard::catch(|| Spm::new(tokens, ids, &options))
            .map_err(|what| fault(self.path, TOKENS, what))?;
        self.finish(Core::Spm(Box::new(spm)))
    }

    fn finish(self, core: Core) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::build(core, self.tokens.len(), self.specials, self.templates, self.path)
    }

    /// What the token `id` is for. Without types, only byte tokens can be told from their spelling.
    fn kind(&self, id: usize, text: &str) -> Result<Kind, TokenizerError> {
        Ok(match (self.types.get(id), spelt_byte(text)) {
            (Some(&BYTE) | None, Some(byte)) => Kind::Byte(byte),
            (Some(&BYTE), None) => {
                let what = format!("token {id} is of type {BYTE}, a byte, but `{text}` is not like <0x0A>");
                return Err(fault(self.path, TOKEN_TYPE, what));
            }
            (Some(&UNKNOWN), _) => Kind::Unknown,
            (Some(&CONTROL), _) => Kind::Control,
            (Some(&USER_DEFINED), _) => Kind::UserDefined,
            (Some(&UNUSED), _) => Kind::Unused,
            _ => Kind::Normal,
        })
    }

    fn vocab(&self) -> Result<Vocab, TokenizerError> {
        let mut vocab = Vocab::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            let id = u32::try_from(id).map_err(|_| fault(self.path, TOKENS, "more than 2^32 tokens"))?;
            if let Some(first) = vocab.insert(token.clone(), id) {
                return Err(fault(
                    self.path,
                    TOKENS,
                    format!("`{token}` is the token {first} and again {id}"),
                ));
            }
        }
        Ok(vocab)
    }

    fn merges(&self, lines: &[String]) -> Result<Merges, TokenizerError> {
        let wrong = |what: String| fault(self.path, MERGES, what);
        let known: HashSet<&str> = self.tokens.iter().map(String::as_str).collect();
        let mut merges = Vec::with_capacity(lines.len());
        for (rank, merge) in lines.iter().enumerate() {
            let pair = validate::split_merge(merge)
                .ok_or_else(|| wrong(format!("merge {rank}: `{merge}` is not two tokens and one space")))?;
            merges.push(pair);
        }
        validate::check_merges(|token| known.contains(token), merges.iter().copied(), "").map_err(wrong)?;
        Ok(merges.into_iter().map(|(left, right)| (left.to_owned(), right.to_owned())).collect())
    }

    fn added_tokens(&self) -> impl Iterator<Item = AddedToken> {
        self.tokens.iter().zip(self.types.iter()).filter_map(|(token, kind)| match *kind {
            CONTROL | UNKNOWN => Some(AddedToken::from(token.clone(), true)),
            USER_DEFINED => Some(AddedToken::from(token.clone(), false)),
            _ => None,
        })
    }
}

/// A token id of the metadata, which must be one of `tokens`.
fn check_id(id: u64, tokens: &[String], path: &Path, field: &str) -> Result<u32, TokenizerError> {
    match (u32::try_from(id), usize::try_from(id)) {
        (Ok(short), Ok(index)) if index < tokens.len() => Ok(short),
        _ => Err(fault(path, field, format!("{id} is not below the {} tokens", tokens.len()))),
    }
}

#[cfg(test)]
mod tests;
