//! `pace-cli completions`.

use anyhow::Result;
use clap::CommandFactory;

use crate::args::{Cli, CompletionsArgs};

pub(crate) fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pace-cli", &mut script);
    crate::output::stream(&String::from_utf8_lossy(&script))?;
    Ok(())
}
