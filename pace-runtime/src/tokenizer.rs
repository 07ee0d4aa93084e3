//! Text to token ids and back: [`Tokenizer`], with the streaming parts [`TextStream`] and [`StopStrings`].
//!
//! Most of the work is done by the `tokenizers` crate (`library`); SentencePiece's own merging, which GGUF files
//! need, is here (`spm`). The input is untrusted and the crate panics on some malformed files, so a file is checked
//! first (`validate`), and every call into the crate is caught (`guard`) and becomes a [`TokenizerError`].

mod bytes;
#[cfg(test)]
mod fixture;
mod gguf;
mod guard;
mod hf;
mod library;
mod part;
mod spm;
mod stop;
mod stream;
mod validate;

use std::path::{Path, PathBuf};

use pace_models::{ModelError, file::clip_to, weights::gguf::Metadata};

use self::{library::Library, spm::Spm};

pub use guard::panics_are_caught;
pub use stop::{StopResult, StopStrings};
pub use stream::TextStream;

/// The longest text that [`Tokenizer::encode`] takes, in bytes: several times what the longest context holds,
/// and what the library's alignment tables (about 100 bytes for each byte of text) can afford.
pub const MAX_TEXT_BYTES: usize = 4 << 20;

/// A tokenizer that cannot be loaded, or a text or id sequence that it cannot process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file is not the JSON, or the text, that it should be.
    #[error("{path}: {what}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        what: String,
    },
    /// One field of a file or of the GGUF metadata is missing, malformed or unsupported.
    #[error("{path}: field `{field}`: {what}", path = .path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's name, dotted where nested.
        field: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// A file cannot be opened or is no regular one, or the GGUF metadata cannot be read.
    #[error(transparent)]
    Metadata(#[from] ModelError),
    /// The text is longer than [`MAX_TEXT_BYTES`].
    #[error("text of {bytes} bytes: the tokenizer takes at most {MAX_TEXT_BYTES}")]
    TextTooLong {
        /// The length of the text in bytes.
        bytes: usize,
    },
    /// A text cannot be turned into ids.
    #[error("cannot tokenize the text: {what}")]
    Encode {
        /// What the library said.
        what: String,
    },
    /// Ids cannot be turned into text.
    #[error("cannot decode the token ids: {what}")]
    Decode {
        /// What the library said.
        what: String,
    },
    /// A stop string is empty: it would stop every text at once.
    #[error("a stop string is empty; give at least one character")]
    EmptyStop,
}

/// A model's tokenizer. Immutable and shared behind an [`Arc`](std::sync::Arc).
pub struct Tokenizer {
    core: Core,
    /// One more than the largest id.
    size: usize,
    specials: Specials,
    templates: Templates,
}

/// Who does the work.
enum Core {
    Library(Box<Library>),
    Spm(Box<Spm>),
}

/// The special tokens that a file names, and whether encoding adds them.
#[derive(Clone, Debug, Default)]
struct Specials {
    bos: Option<u32>,
    eos: Option<u32>,
    /// Every token that ends an answer, `eos` first.
    ends: Vec<u32>,
    rule: AddRule,
}

/// The sources of the chat templates that came with a tokenizer.
#[derive(Debug, Default)]
struct Templates {
    default: Option<String>,
    /// In place of `default` where there are tools.
    tool_use: Option<String>,
}

/// Who decides which special tokens surround an encoded text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum AddRule {
    /// The post-processor of `tokenizer.json`.
    #[default]
    PostProcessor,
    /// Explicit flags: GGUF metadata, or a tokenizer configuration beside a file without a post-processor.
    Flags { bos: bool, eos: bool },
}

impl Tokenizer {
    /// The tokenizer of a HF model directory: `tokenizer.json` with `tokenizer_config.json`, `chat_template.jinja`
    /// and `additional_chat_templates/tool_use.jinja` where they exist. `None` if there is no `tokenizer.json`.
    ///
    /// # Errors
    /// A file cannot be read, is too large, malformed, or contradicts itself.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, TokenizerError> {
        hf::load(dir)
    }

    /// The tokenizer in the metadata of a GGUF file (`tokenizer.ggml.*`, kinds `gpt2` and `llama`). `None` if the
    /// metadata names no tokenizer.
    ///
    /// # Errors
    /// A field is missing, malformed, or names a tokenizer or pre-tokenizer that is not supported.
    pub fn from_gguf(metadata: &Metadata) -> Result<Option<Self>, TokenizerError> {
        gguf::load(metadata)
    }

    /// The token ids of `text`. `add_special` adds what the model's own rules put around a text (usually bos);
    /// without `parse_special`, text that reads like a special token stays plain text. Tokens that the model's maker
    /// added and that are not special are found in either case.
    ///
    /// # Errors
    /// The text is longer than [`MAX_TEXT_BYTES`], or the tokenizer has no way to express it.
    pub fn encode(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(TokenizerError::TextTooLong { bytes: text.len() });
        }
        guard::catch(|| self.encode_unguarded(text, add_special, parse_special))
            .map_err(|what| TokenizerError::Encode { what })
    }

    /// The text of `ids`. Ids that no token has decode to nothing, as models pad their vocabulary with such
    /// ids. `skip_special` leaves special tokens out. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        if let Core::Library(library) = &self.core
            && !self.is_bytes()
        {
            return guard::catch(|| library.decode(ids, skip_special))
                .map_err(|what| TokenizerError::Decode { what });
        }
        let mut bytes = Vec::new();
        let mut first = true;
        for id in ids.iter().copied().filter(|id| !skip_special || !self.is_special(*id)) {
            first &= !self.append(id, first, &mut bytes);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// One more than the largest token id. A model's own vocabulary may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.size
    }

    /// The token as the vocabulary spells it (`Ġthe`, `<|im_end|>`), if `id` is one.
    pub fn piece(&self, id: u32) -> Option<String> {
        match &self.core {
            Core::Library(library) => library.piece(id),
            Core::Spm(spm) => spm.piece(id),
        }
    }

    /// The id of the token that the vocabulary spells `token`.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        match &self.core {
            Core::Library(library) => library.token_to_id(token),
            Core::Spm(spm) => spm.token_to_id(token),
        }
    }

    /// Whether `id` is a special token, which `skip_special` leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.core {
            Core::Library(library) => library.is_special(id),
            Core::Spm(spm) => spm.is_special(id),
        }
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.specials.bos
    }

    /// The tokens that end an answer, as far as the tokenizer knows: [`eos_token`](Self::eos_token) first, then those
    /// that end a turn or a message (`eot` and `eom` in GGUF metadata). A generation configuration may name more.
    pub fn eos(&self) -> &[u32] {
        &self.specials.ends
    }

    /// The end-of-sequence token: what ends a text, and `eos_token` in a chat template.
    pub fn eos_token(&self) -> Option<u32> {
        self.specials.eos
    }

    /// The source of the chat template that came with the tokenizer.
    pub fn chat_template(&self) -> Option<&str> {
        self.templates.default.as_deref()
    }

    /// The source of the chat template called `tool_use`, for conversations with tools, where the model has one of its
    /// own.
    pub fn tool_use_template(&self) -> Option<&str> {
        self.templates.tool_use.as_deref()
    }

    /// Puts a tokenizer into service. `size` is one more than the largest id in `path`.
    fn build(
        core: Core,
        size: usize,
        specials: Specials,
        templates: Templates,
        path: &Path,
    ) -> Result<Self, TokenizerError> {
        let tokenizer = Self { core, size, specials, templates };
        let around = guard::catch(|| tokenizer.encode_unguarded("", true, true))
            .map_err(|what| fault(path, "post_processor", what))?;
        match around.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= size)) {
            Some(id) => Err(fault(
                path,
                "post_processor",
                format!("it adds the id {id}, but the vocabulary ends at {}", size.saturating_sub(1)),
            )),
            None => Ok(tokenizer),
        }
    }

    fn encode_unguarded(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> tokenizers::Result<Vec<u32>> {
        let (ids, bos, eos) = match (&self.core, self.specials.rule) {
            (Core::Library(library), AddRule::PostProcessor) => {
                return library.encode_and_post_process(text, add_special, parse_special);
            }
            (Core::Library(library), AddRule::Flags { bos, eos }) => {
                (library.encode(text, parse_special)?, bos, eos)
            }
            (Core::Spm(spm), AddRule::Flags { bos, eos }) => (spm.encode(text, parse_special), bos, eos),
            (Core::Spm(spm), AddRule::PostProcessor) => (spm.encode(text, parse_special), false, false),
        };
        let wanted = |flag: bool, id: Option<u32>| id.filter(|_| flag && add_special);
        let bos = wanted(bos, self.specials.bos);
        let eos = wanted(eos, self.specials.eos);
        Ok(bos.into_iter().chain(ids).chain(eos).collect())
    }

    /// Whether a token stands for bytes that do not depend on its neighbours (but for `first` in
    /// [`append`](Self::append)).
    fn is_bytes(&self) -> bool {
        match &self.core {
            Core::Library(library) => library.byte_level(),
            Core::Spm(_) => true,
        }
    }

    /// Appends the bytes of a token, if [`is_bytes`](Self::is_bytes), and says whether there is such a token.
    /// `first`: no other came before it.
    fn append(&self, id: u32, first: bool, out: &mut Vec<u8>) -> bool {
        match &self.core {
            Core::Library(library) => library.append(id, out),
            Core::Spm(spm) => spm.append(id, first, out),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("size", &self.size)
            .field("specials", &self.specials)
            .finish_non_exhaustive()
    }
}

/// A [`TokenizerError::Field`]. What it quotes from the file is cut to a length that a message can have.
fn fault(path: &Path, field: &str, what: impl AsRef<str>) -> TokenizerError {
    let what = clip_to(what.as_ref(), 800);
    TokenizerError::Field { path: path.to_path_buf(), field: field.to_owned(), what }
}

/// A [`TokenizerError::File`], cut likewise.
fn file_fault(path: &Path, what: impl AsRef<str>) -> TokenizerError {
    TokenizerError::File { path: path.to_path_buf(), what: clip_to(what.as_ref(), 800) }
}

#[cfg(test)]
mod tests;
