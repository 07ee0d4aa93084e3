//! A tokenizer of the `tokenizers` crate: every kind but SentencePiece's own.

use tokenizers::{
    AddedVocabulary, Encoding, Model, OffsetType, PostProcessor, PreTokenizer, decoders::DecoderWrapper,
};

use super::bytes::append_bytes;

/// The crate's tokenizer, and how its tokens are turned back into text.
pub(super) struct Library {
    inner: tokenizers::Tokenizer,
    /// The added tokens again, with those that are special left unrecognised: for text that must stay text.
    plain: AddedVocabulary,
    byte_level: bool,
}

impl Library {
    /// Puts a loaded tokenizer into service.
    pub(super) fn new(mut inner: tokenizers::Tokenizer) -> tokenizers::Result<Self> {
        // Lengths are the engine's business: a file that was saved with truncation on must not cut prompts.
        inner.with_padding(None);
        inner.with_truncation(None)?;
        let mut plain = inner.get_added_vocabulary().clone();
        plain.set_encode_special_tokens(true);
        let byte_level = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        Ok(Self { inner, plain, byte_level })
    }

    /// The ids of `text`, without what surrounds it.
    pub(super) fn encode(&self, text: &str, parse_special: bool) -> tokenizers::Result<Vec<u32>> {
        Ok(self.encoding(text, parse_special)?.get_ids().to_vec())
    }

    /// The ids of `text` after the post-processor, which adds special tokens if `add_special`.
    pub(super) fn encode_and_post_process(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> tokenizers::Result<Vec<u32>> {
        let encoding = self.encoding(text, parse_special)?;
        Ok(match self.inner.get_post_processor() {
            Some(processor) => processor.process(encoding, None, add_special)?.get_ids().to_vec(),
            None => encoding.get_ids().to_vec(),
        })
    }

    /// The text of `ids` where tokens are not simply bytes one after the other.
    pub(super) fn decode(&self, ids: &[u32], skip_special: bool) -> tokenizers::Result<String> {
        self.inner.decode(ids, skip_special)
    }

    /// Whether a token stands for bytes, whatever its neighbours.
    pub(super) const fn byte_level(&self) -> bool {
        self.byte_level
    }

    /// Appends the bytes of a token of a byte-level vocabulary, and says whether there is such a token. Added tokens
    /// stand for their own text: some are single letters that the byte alphabet would read as bytes.
    pub(super) fn append(&self, id: u32, out: &mut Vec<u8>) -> bool {
        if let Some(token) = self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id) {
            out.extend_from_slice(token.content.as_bytes());
        } else if let Some(token) = self.inner.get_model().id_to_token(id) {
            append_bytes(&token, out);
        } else {
            return false;
        }
        true
    }

    pub(super) fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    pub(super) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.inner
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .get(&id)
            .is_some_and(|token| token.special)
    }

    fn encoding(&self, text: &str, parse_special: bool) -> tokenizers::Result<Encoding> {
        let added = if parse_special { self.inner.get_added_vocabulary() } else { &self.plain };
        let mut split = added.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut split)?;
        }
        let model = self.inner.get_model();
        split.tokenize(|piece| model.tokenize(piece.get()))?;
        split.into_encoding(None, 0, OffsetType::None)
    }
}
