//! The commands that write packed models.

use std::path::PathBuf;

use clap::Args;

use super::{Format, QuantArgs, WeightChoice};

/// Quantise a model once, and write it in the form in which it is computed: it loads without packing.
///
/// DST is a directory that --model takes like any other. Beside the weights it holds pace.json, which says what was packed
/// and how, with checksums (`show --verify` compares them), and the tokenizer and configuration of the model.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli quantize ./SmolLM2 ./SmolLM2-int8 --quant int8:64
  pace-cli quantize smollm2-135m smollm2-int4 --quant int4:64 --quant-lm-head int8
  pace-cli generate -m ./SmolLM2-int8 --mmap --prompt 'Once upon a time'")]
pub(crate) struct QuantizeArgs {
    #[command(flatten)]
    pub(crate) target: PackArgs,
    #[command(flatten)]
    pub(crate) quant: QuantArgs,
}

/// Write a model in the form in which it is computed: it loads without packing.
///
/// As `quantize`, with floating-point weights, or with --dtype auto with the integers of a GGUF file as they are.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli pack ./SmolLM2 ./SmolLM2-packed
  pace-cli pack model.gguf ./model-packed --dtype auto
  pace-cli pack ./SmolLM2 ./SmolLM2-f32 --dtype f32 --force")]
pub(crate) struct PackFloatsArgs {
    #[command(flatten)]
    pub(crate) target: PackArgs,
    /// Weights: bf16, f32 (run it with --dtype f32), or auto: bf16, but integers of a GGUF file stay what they are.
    #[arg(long, value_enum, default_value = "bf16")]
    pub(crate) dtype: WeightChoice,
}

/// What is packed, and where it goes.
#[derive(Clone, Debug, Args)]
pub(crate) struct PackArgs {
    /// The model: a directory, a .gguf file, random:NAME, or a name that `pull` takes.
    #[arg(value_name = "SRC")]
    pub(crate) source: String,
    /// The directory to be made.
    #[arg(value_name = "DST")]
    pub(crate) target: PathBuf,
    /// Replace a packed model that is there.
    #[arg(long)]
    pub(crate) force: bool,
    /// Pack weights that are NaN, infinite, absurdly large or nothing but zeros; by default the file counts as damaged.
    #[arg(long)]
    pub(crate) allow_nonfinite: bool,
    /// The threads to pack on [default: one a core, within affinity mask and CPU quota].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) threads: Option<u16>,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}
