//! The command line: what can be typed, and its help.

mod bench;
mod compare;
mod engine;
mod imatrix;
mod kv;
mod models;
mod operators;
mod pack;
mod platform;
mod quant;
mod sampling;
mod throughput;
mod tokens;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use self::bench::{BenchArgs, BenchFormat, spell_out};
pub(crate) use self::compare::CompareArgs;
pub(crate) use self::engine::{EngineArgs, OperatorArgs, WeightChoice};
pub(crate) use self::imatrix::ImatrixArgs;
pub(crate) use self::kv::{KindChoice, KvArgs, KvPlanArgs};
pub(crate) use self::models::{ListArgs, PullArgs, RmArgs, ShowArgs};
pub(crate) use self::operators::{JitArgs, JitCommand, JitDumpArgs, OpsArgs, PlanArgs};
pub(crate) use self::pack::{PackArgs, PackFloatsArgs, QuantizeArgs};
pub(crate) use self::platform::{
    Allocator, DoctorArgs, EnvArgs, HugePageChoice, LaunchArgs, NumaChoice, PlatformArgs,
};
pub(crate) use self::quant::{ActQuantChoice, Quant, QuantArgs, RoundingChoice};
pub(crate) use self::sampling::SamplingArgs;
pub(crate) use self::throughput::ThroughputArgs;
pub(crate) use self::tokens::{DetokenizeArgs, TokenizeArgs};

/// Run large language models on CPUs, straight from HF safetensors and GGUF.
#[derive(Debug, Parser)]
#[command(name = "pace-cli", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Generate(GenerateArgs),
    Chat(ChatArgs),
    Score(ScoreArgs),
    Compare(CompareArgs),
    Imatrix(ImatrixArgs),
    Tokenize(TokenizeArgs),
    Detokenize(DetokenizeArgs),
    Info(InfoArgs),
    Bench(BenchArgs),
    Throughput(ThroughputArgs),
    Ops(OpsArgs),
    Jit(JitArgs),
    Plan(PlanArgs),
    Doctor(DoctorArgs),
    Env(EnvArgs),
    Launch(LaunchArgs),
    KvPlan(KvPlanArgs),
    Quantize(QuantizeArgs),
    Pack(PackFloatsArgs),
    Pull(PullArgs),
    List(ListArgs),
    Show(ShowArgs),
    Rm(RmArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Continue a prompt, streamed to stdout.
///
/// Greedy unless a sampling flag or the model's generation_config.json says otherwise.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli generate --prompt 'Once upon a time' --max-new-tokens 64
  pace-cli generate -m ./SmolLM2 --prompt-file story.txt --temperature 0.7 --seed 1
  pace-cli generate -m random:llama-1b --prompt-tokens 1,2,3 --format json")]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) prompt: PromptArgs,
    #[command(flatten)]
    pub(crate) length: LengthArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct PromptArgs {
    /// The prompt.
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,
    /// A file with the prompt, byte for byte; - is standard input.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// The prompt as token ids, separated by commas.
    #[arg(long, value_name = "IDS", value_delimiter = ',', allow_negative_numbers = true)]
    pub(crate) prompt_tokens: Option<Vec<u32>>,
}

#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Length")]
pub(crate) struct LengthArgs {
    /// New tokens at most [default: 128 for generate, 1024 for chat]; cut to what the context leaves.
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) max_new_tokens: Option<usize>,
    /// Room in the KV cache, in tokens, if more than prompt and answer need.
    #[arg(long, value_name = "N")]
    pub(crate) ctx_size: Option<usize>,
}

/// Talk to a model: one answer to MESSAGE, or a conversation without it.
///
/// In a conversation Ctrl-C stops the answer, Ctrl-D or /quit ends the program, /help lists commands.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli chat 'What is the capital of France?'
  pace-cli chat --system 'You answer in French.' --temperature 0.7
  echo 'Summarise: ...' | pace-cli chat")]
pub(crate) struct ChatArgs {
    /// What to say; without it, a conversation.
    #[arg(value_name = "MESSAGE")]
    pub(crate) message: Option<String>,
    /// Instructions for the model [default: what its template says].
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) length: LengthArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// How the answer to MESSAGE is written; a conversation is always text.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// The log-probability of every token of a text.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli score --text 'The capital of France is Paris.'
  pace-cli score --file article.txt --format json
  pace-cli score --file book.txt --stride 512 --window 2048
  pace-cli score -m random:tiny --tokens 1,2,3 --top 3")]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    pub(crate) text: ScoreTextArgs,
    /// How many of the most likely next tokens to report.
    #[arg(long, value_name = "K", default_value_t = 5)]
    pub(crate) top: usize,
    /// Score a long text in windows, each N tokens further on; the tokens before are context.
    #[arg(long, value_name = "N")]
    pub(crate) stride: Option<usize>,
    /// Tokens of a window [default: the model's context].
    #[arg(long, value_name = "N", requires = "stride")]
    pub(crate) window: Option<usize>,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ScoreTextArgs {
    /// The text.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) text: Option<String>,
    /// A file with the text, byte for byte; - is standard input.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Token ids, separated by commas.
    #[arg(long, value_name = "IDS", value_delimiter = ',', allow_negative_numbers = true)]
    pub(crate) tokens: Option<Vec<u32>>,
}

/// What a model is: shape, formats, memory that a run needs, tokenizer, chat template, backends of its operators.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli info
  pace-cli info ./SmolLM2 --format json
  pace-cli info random:llama-8b --quant int4:64
  pace-cli info random:llama-8b --dtype f32 --op mlp=native")]
pub(crate) struct InfoArgs {
    /// The model: a directory, a .gguf file, random:NAME, or a name that `pull` takes [default: smollm2-135m].
    #[arg(value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// The weights and activations to choose backends for [default: auto, of the default model bf16].
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<WeightChoice>,
    /// The threads to choose backends for [default: one a core, within affinity mask and CPU quota].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) threads: Option<u16>,
    #[command(flatten)]
    pub(crate) quant: QuantArgs,
    #[command(flatten)]
    pub(crate) operators: OperatorArgs,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// Completions for a shell, to stdout.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  pace-cli completions bash > ~/.local/share/bash-completion/completions/pace-cli")]
pub(crate) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// Manual pages: this program's to stdout, or one for each command into a folder.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli man | man -l -
  pace-cli man --dir ~/.local/share/man/man1")]
pub(crate) struct ManArgs {
    /// The folder, which must exist.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{} says what it does", command.get_name());
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("pace-cli "), "{} has an example", command.get_name());
        }
    }

    #[test]
    fn exactly_one_prompt_is_needed() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["pace-cli", "generate"], args].concat());
        assert!(parse(&[]).is_err());
        assert!(parse(&["--prompt", "a", "--prompt-tokens", "1"]).is_err());
        let Command::Generate(args) = parse(&["--prompt-tokens", "1,2,3"]).unwrap().command else {
            panic!("generate was asked for")
        };
        assert_eq!(args.prompt.prompt_tokens, Some(vec![1, 2, 3]));
    }
}
