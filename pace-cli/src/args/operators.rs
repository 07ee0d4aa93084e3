//! `ops`.

use clap::Args;

use super::Format;

/// Which operators have which backends, for which types, and what is missing on this machine and why.
///
/// $PACE_ISA caps the instruction sets, as for every command.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli ops
  pace-cli ops --format json
  PACE_ISA=avx2 pace-cli ops")]
pub(crate) struct OpsArgs {
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}
