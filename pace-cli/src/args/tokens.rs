//! `tokenize` and `detokenize`.

use std::path::PathBuf;

use clap::Args;

use super::Format;

/// Text to token ids.
///
/// Needs the model's tokenizer only: a GGUF file without tensors or a directory with tokenizer.json is enough.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli tokenize --text 'Hello world'
  pace-cli tokenize -m vocab.gguf --file prompt.txt --no-special --format json
  pace-cli tokenize --text 'Hello' | pace-cli detokenize --file -")]
pub(crate) struct TokenizeArgs {
    /// The model: a directory, a .gguf file or random:NAME [default: SmolLM2-135M-Instruct].
    #[arg(short, long)]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    /// Add no special tokens around the text, and take what reads like one for plain text.
    #[arg(long)]
    pub(crate) no_special: bool,
    /// How the ids are written: as a list, or as JSON with the tokens as the vocabulary spells them.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct TextArgs {
    /// The text.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) text: Option<String>,
    /// A file with the text, byte for byte; - is standard input.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

/// Token ids to text.
///
/// The text is written byte for byte; on a terminal the line is ended.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli detokenize --tokens 19556,905
  pace-cli detokenize -m vocab.gguf --file ids.txt --no-special --format json")]
pub(crate) struct DetokenizeArgs {
    /// The model: a directory, a .gguf file or random:NAME [default: SmolLM2-135M-Instruct].
    #[arg(short, long)]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) ids: IdArgs,
    /// Leave special tokens out of the text.
    #[arg(long)]
    pub(crate) no_special: bool,
    /// How the text is written: as it is, or as JSON with ids and tokens.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct IdArgs {
    /// Token ids, separated by commas or white space, as tokenize writes them.
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    pub(crate) tokens: Option<String>,
    /// A file with token ids; - is standard input.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}
