//! Token ids to text, one at a time: [`TextStream`].

use std::sync::Arc;

use super::{Tokenizer, TokenizerError};

/// How many tokens of a broken character a window-decoded stream holds back: a character has at most four bytes.
const MAX_BROKEN: usize = 3;
/// How many tokens the window grows to when they decode to nothing, before the oldest are forgotten.
const MAX_WINDOW: usize = 64;

/// Turns a stream of token ids into text without ever cutting a character.
///
/// All pieces together are what [`Tokenizer::decode`] makes of all ids. (One exception: where a tokenizer spells
/// bytes as `<0xE6>` tokens and those bytes are no UTF-8, `decode` marks the whole run of such tokens as broken,
/// which a stream cannot know in time.)
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Tokens that are bytes: those of a character that is not complete yet.
    Bytes { pending: Vec<u8>, first: bool },
    /// Other decoders look at neighbours (leading spaces, byte tokens): a window is decoded again each time.
    Window(Window),
}

/// The last tokens: first those whose text has been given out, then those still held back.
#[derive(Debug, Default)]
struct Window {
    ids: Vec<u32>,
    /// How many of `ids` have been given out.
    given: usize,
    /// The text of the given ids, decoded alone.
    given_text: String,
    /// The text of the ids held back.
    held: String,
    /// How many tokens in a row have left a broken character at the end.
    broken: usize,
}

impl TextStream {
    /// A stream at its beginning. `skip_special` leaves special tokens out.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let state = if tokenizer.is_bytes() {
            State::Bytes { pending: Vec::new(), first: true }
        } else {
            State::Window(Window::default())
        };
        Self { tokenizer, skip_special, state }
    }

    /// Takes the next token and gives the text that is certain now, which is empty while a character is not
    /// complete.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        match &mut self.state {
            State::Bytes { pending, first } => {
                *first &= !self.tokenizer.append(id, *first, pending);
                Ok(take_complete(pending))
            }
            State::Window(_) if self.tokenizer.piece(id).is_none() => Ok(String::new()),
            State::Window(window) => window.push(&self.tokenizer, id),
        }
    }

    /// The text still held back, at the end of the stream.
    pub fn finish(self) -> String {
        match self.state {
            State::Bytes { pending, .. } => String::from_utf8_lossy(&pending).into_owned(),
            State::Window(window) => window.held,
        }
    }
}

impl Window {
    fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = tokenizer.decode(&self.ids, false)?;
        // A decoder that tidies up (spaces before punctuation) may change text that is already out.
        let common = common_prefix(&text, &self.given_text);
        self.held = text[common..].to_owned();
        self.broken = if self.held.ends_with('\u{FFFD}') { self.broken + 1 } else { 0 };
        let waiting = (1..=MAX_BROKEN).contains(&self.broken);
        if waiting || (self.held.is_empty() && self.ids.len() < MAX_WINDOW) {
            return Ok(String::new());
        }
        // What was held is the context of what comes: it keeps the next token from being decoded as a first one.
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        self.broken = 0;
        self.given_text = tokenizer.decode(&self.ids, false)?;
        Ok(std::mem::take(&mut self.held))
    }
}

/// Takes the text off the front of `pending`, up to a character that more bytes could complete. Broken bytes
/// become U+FFFD exactly as in [`String::from_utf8_lossy`].
fn take_complete(pending: &mut Vec<u8>) -> String {
    let tail = pending
        .utf8_chunks()
        .last()
        .map(|chunk| chunk.invalid())
        .filter(|invalid| std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none()))
        .map_or(0, <[u8]>::len);
    let rest = pending.split_off(pending.len() - tail);
    String::from_utf8_lossy(&std::mem::replace(pending, rest)).into_owned()
}

/// How many bytes two texts share at the front, at a character border.
fn common_prefix(a: &str, b: &str) -> usize {
    a.char_indices()
        .zip(b.chars())
        .find(|((_, x), y)| x != y)
        .map_or_else(|| a.len().min(b.len()), |((at, _), _)| at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn complete_text_is_taken_and_a_cut_character_waits() {
        let mut pending = "é東".as_bytes()[..4].to_vec();
        assert_eq!(take_complete(&mut pending), "é");
        assert_eq!(pending, "東".as_bytes()[..2]);
        pending.push(b'a');
        assert_eq!(take_complete(&mut pending), "\u{FFFD}a");
        assert!(pending.is_empty());
    }

    #[test]
    fn the_common_prefix_is_at_a_character() {
        assert_eq!(common_prefix("aé", "aè"), 1);
        assert_eq!(common_prefix("aé", "aéb"), 3);
        assert_eq!(common_prefix("", "a"), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..12)) {
            let mut pending = Vec::new();
            let mut out = String::new();
            for piece in &pieces {
                pending.extend_from_slice(piece);
                out += &take_complete(&mut pending);
                prop_assert!(pending.len() < 4);
            }
            out += &String::from_utf8_lossy(&pending);
            let whole = pieces.concat();
            prop_assert_eq!(out, String::from_utf8_lossy(&whole));
        }
    }
}
