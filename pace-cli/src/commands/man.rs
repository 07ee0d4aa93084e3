//! `pace-cli man`.

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::args::{Cli, ManArgs};

pub(crate) fn run(args: &ManArgs) -> Result<()> {
    match &args.dir {
        Some(dir) => {
            let pages = clap_mangen::generate_to(Cli::command(), dir);
            pages.with_context(|| format!("cannot write to {}", dir.display()))
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            Ok(crate::output::stream(&String::from_utf8_lossy(&page))?)
        }
    }
}
