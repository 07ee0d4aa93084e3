//! `imatrix`.

use std::path::PathBuf;

use clap::Args;

use super::{EngineArgs, Format, ScoreTextArgs};

/// Collect how much each input of a model's matrices counts, for --imatrix.
///
/// The model reads a text, and the mean square of each input of each matrix product over all tokens is written to a file.
/// With --quant and --imatrix, weights are rounded so that the error is small where inputs are large.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli imatrix --file tools/quality/text.txt -o smollm2.imatrix
  pace-cli generate --quant int4:128 --imatrix smollm2.imatrix -p 'Once upon a time'
  pace-cli imatrix -m ./SmolLM2 --file book.txt --max-tokens 20000 -o smollm2.imatrix --format json")]
pub(crate) struct ImatrixArgs {
    #[command(flatten)]
    pub(crate) text: ScoreTextArgs,
    /// The file to write, as safetensors.
    #[arg(short, long, value_name = "FILE", default_value = "imatrix.safetensors")]
    pub(crate) output: PathBuf,
    /// Tokens of a window [default: 512, or the model's context if that is less]. The text is cut into windows that know
    /// nothing of each other.
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<usize>,
    /// Stop after so many tokens [default: the whole text].
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}
