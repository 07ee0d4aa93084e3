//! SentencePiece BPE as GGUF files carry it: pieces with scores, `▁` for a space, bytes for what no piece spells.
//!
//! A text is cut at added tokens first. What is left gets `▁` for each space (and one in front, if the model was
//! trained so), is taken apart into characters, and neighbours are joined for as long as two of them make a piece:
//! first the pair whose piece has the highest score, of equals the leftmost. Characters that stay alone and are
//! no piece become the byte tokens of their UTF-8, or the unknown token.
//!
//! The merges of the `tokenizers` crate cannot say this: they rank pairs of pieces, where the score ranks the
//! result, so that equal results tie and the position decides. Source: SentencePiece's `bpe::Model::Encode`.

use std::{cmp::Ordering, collections::BinaryHeap};

use tokenizers::{
    AddedToken, AddedVocabulary, NormalizerWrapper, OffsetReferential, OffsetType,
    models::{bpe::Vocab, wordlevel::WordLevel},
};

/// What SentencePiece writes for a space.
pub(super) const SPACE: &str = "\u{2581}";
/// The longest piece that characters may be joined to, in bytes: many times what real ones have. It bounds the
/// work a hostile vocabulary can cause.
const MAX_PIECE_BYTES: usize = 4096;

/// A vocabulary of scored pieces.
pub(super) struct Spm {
    tokens: Vec<Token>,
    ids: Vocab,
    /// The token of each byte, as a byte token or else the unknown token.
    bytes: Box<[u32; 256]>,
    /// The tokens that are cut out of a text first; in `plain` those that are special are left unrecognised.
    added: AddedVocabulary,
    plain: AddedVocabulary,
    space_prefix: bool,
}

/// What [`Spm::new`] is made from, besides the vocabulary.
pub(super) struct SpmOptions {
    /// The token of characters that cannot be spelt.
    pub(super) unknown: Option<u32>,
    /// Whether a text, and what follows an added token, begins with a space.
    pub(super) space_prefix: bool,
    /// Whether added tokens swallow the white space after them (Phi-3).
    pub(super) added_strip_right: bool,
}

/// One piece of the vocabulary.
pub(super) struct Token {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: Kind,
}

/// What a token is for: `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte(u8),
}

impl Kind {
    const fn is_special(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }

    /// Whether characters may be joined to it.
    const fn is_piece(self) -> bool {
        matches!(self, Self::Normal | Self::UserDefined)
    }
}

impl Spm {
    /// A tokenizer of `tokens`, whose ids are `ids`.
    ///
    /// The error says what the vocabulary lacks.
    pub(super) fn new(tokens: Vec<Token>, ids: Vocab, options: &SpmOptions) -> tokenizers::Result<Self> {
        let long = tokens.iter().position(|t| t.kind.is_piece() && t.text.len() > MAX_PIECE_BYTES);
        if let Some(at) = long {
            let length = tokens[at].text.len();
            return Err(
                format!("token {at} has {length} bytes; at most {MAX_PIECE_BYTES} are accepted").into()
            );
        }
        let bytes = byte_tokens(&tokens, &ids, options.unknown)?;
        let added = added_tokens(&tokens, &ids, options.added_strip_right)?;
        let mut plain = added.clone();
        plain.set_encode_special_tokens(true);
        Ok(Self { tokens, ids, bytes, added, plain, space_prefix: options.space_prefix })
    }

    /// The ids of `text`, without what surrounds it.
    pub(super) fn encode(&self, text: &str, parse_special: bool) -> Vec<u32> {
        let added = if parse_special { &self.added } else { &self.plain };
        let split = added.extract_and_normalize(None::<&NormalizerWrapper>, text);
        let mut ids = Vec::new();
        let mut prefix = self.space_prefix;
        for (part, _, tokens) in split.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            if let Some(tokens) = tokens {
                ids.extend(tokens.iter().map(|token| token.id));
                prefix = self.space_prefix;
            } else if !part.is_empty() {
                let spaced = part.replace(' ', SPACE);
                self.join(&if prefix { [SPACE, &spaced].concat() } else { spaced }, &mut ids);
                prefix = false;
            }
        }
        ids
    }

    /// Appends the bytes of a token, and says whether there is such a token. The space that encoding puts before a
    /// text is dropped from its `first` token.
    pub(super) fn append(&self, id: u32, first: bool, out: &mut Vec<u8>) -> bool {
        let Some(token) = self.token(id) else { return false };
        match token.kind {
            Kind::Byte(byte) => out.push(byte),
            Kind::Normal => {
                let text = token.text.replace(SPACE, " ");
                let text =
                    if first && self.space_prefix { text.strip_prefix(' ') } else { None }.unwrap_or(&text);
                out.extend_from_slice(text.as_bytes());
            }
            Kind::Unknown | Kind::Control | Kind::UserDefined | Kind::Unused => {
                out.extend_from_slice(token.text.as_bytes());
            }
        }
        true
    }

    pub(super) fn piece(&self, id: u32) -> Option<String> {
        self.token(id).map(|token| token.text.clone())
    }

    pub(super) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| token.kind.is_special())
    }

    fn token(&self, id: u32) -> Option<&Token> {
        self.tokens.get(usize::try_from(id).ok()?)
    }

    /// The piece that `text` spells.
    fn find(&self, text: &str) -> Option<(u32, &Token)> {
        if text.len() > MAX_PIECE_BYTES {
            return None;
        }
        let id = *self.ids.get(text)?;
        self.token(id).filter(|token| token.kind.is_piece()).map(|token| (id, token))
    }

    /// Joins the characters of `text` to pieces and appends their ids.
    fn join(&self, text: &str, ids: &mut Vec<u32>) {
        let mut symbols = Symbols::new(text);
        let mut queue: BinaryHeap<Pair> =
            (1..symbols.0.len()).filter_map(|right| self.pair(&symbols, text, right - 1, right)).collect();
        while let Some(pair) = queue.pop() {
            if symbols.join(&pair) {
                let Symbol { before, after, .. } = symbols.0[pair.left];
                queue.extend(before.and_then(|before| self.pair(&symbols, text, before, pair.left)));
                queue.extend(after.and_then(|after| self.pair(&symbols, text, pair.left, after)));
            }
        }
        for symbol in symbols.0.iter().filter(|symbol| !symbol.is_gone()) {
            let part = &text[symbol.start..symbol.end];
            match self.find(part) {
                Some((id, _)) => ids.push(id),
                None => ids.extend(part.bytes().map(|byte| self.bytes[usize::from(byte)])),
            }
        }
    }

    /// Two neighbours, if together they make a piece.
    fn pair(&self, symbols: &Symbols, text: &str, left: usize, right: usize) -> Option<Pair> {
        let (start, end) = (symbols.0[left].start, symbols.0[right].end);
        let (_, token) = self.find(&text[start..end])?;
        Some(Pair { score: token.score, left, right, bytes: end - start })
    }
}

/// A text in parts that are joined step by step.
struct Symbols(Vec<Symbol>);

/// A part of the text, in bytes, and its neighbours; empty once it has been joined to the one before.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    before: Option<usize>,
    after: Option<usize>,
}

/// Two neighbours that make a piece; the greatest is joined first.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    bytes: usize,
}

impl Symbol {
    const fn is_gone(&self) -> bool {
        self.start == self.end
    }

    const fn len(&self) -> usize {
        self.end - self.start
    }
}

impl Symbols {
    /// One symbol a character.
    fn new(text: &str) -> Self {
        let mut symbols: Vec<_> = text
            .char_indices()
            .enumerate()
            .map(|(at, (start, c))| Symbol {
                start,
                end: start + c.len_utf8(),
                before: at.checked_sub(1),
                after: Some(at + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.after = None;
        }
        Self(symbols)
    }

    /// Joins a pair, unless one of the two has been joined to another since the pair was found.
    fn join(&mut self, pair: &Pair) -> bool {
        let (left, right) = (self.0[pair.left], self.0[pair.right]);
        if left.is_gone() || right.is_gone() || left.len() + right.len() != pair.bytes {
            return false;
        }
        self.0[pair.left].end = right.end;
        self.0[pair.left].after = right.after;
        self.0[pair.right].start = right.end;
        if let Some(after) = right.after {
            self.0[after].before = Some(pair.left);
        }
        true
    }
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

/// The byte that a token spelt like `<0x0A>` stands for.
pub(super) fn spelt_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let plain = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| plain)
}

/// The token of each byte: its byte token, or the unknown token.
fn byte_tokens(tokens: &[Token], ids: &Vocab, unknown: Option<u32>) -> tokenizers::Result<Box<[u32; 256]>> {
    let mut bytes = [unknown; 256];
    for token in tokens {
        if let Kind::Byte(byte) = token.kind {
            bytes[usize::from(byte)] = ids.get(&token.text).copied();
        }
    }
    let mut all = Box::new([0; 256]);
    for (byte, (id, slot)) in bytes.into_iter().zip(all.iter_mut()).enumerate() {
        *slot =
            id.ok_or_else(|| format!("neither the byte token <0x{byte:02X}> nor an unknown token is there"))?;
    }
    Ok(all)
}

/// The tokens that are matched in the text as they are. The longest wins, from left to right.
fn added_tokens(tokens: &[Token], ids: &Vocab, strip_right: bool) -> tokenizers::Result<AddedVocabulary> {
    // Text goes on after these three, even where the other tokens are layout.
    let strips = |text: &str| strip_right && !matches!(text, "<unk>" | "<s>" | "<|endoftext|>");
    let wanted = tokens.iter().filter(|token| token.kind.is_special() || token.kind == Kind::UserDefined);
    let added: Vec<_> = wanted
        .map(|token| {
            AddedToken::from(token.text.clone(), token.kind.is_special())
                .normalized(false)
                .rstrip(strips(&token.text))
        })
        .collect();
    let names = added.iter().filter_map(|token| Some((token.content.clone(), *ids.get(&token.content)?)));
    let model = WordLevel::builder().vocab(names.collect()).unk_token(String::new()).build()?;
    let mut vocabulary = AddedVocabulary::new();
    vocabulary.add_tokens(added, &model, None::<&NormalizerWrapper>)?;
    Ok(vocabulary)
}

#[cfg(test)]
mod tests;
