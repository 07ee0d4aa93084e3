//! `pace-cli rm`.

use std::io::IsTerminal;

use anyhow::{Result, bail};
use pace_runtime::config::Env;

use crate::args::RmArgs;
use crate::exit::Usage;
use crate::hub::{Models, Reference, Removal, Wanted, ask};
use crate::output::{self, bytes};

pub(crate) fn run(env: &Env, args: &RmArgs) -> Result<()> {
    let Some(wanted) = Wanted::new(&Reference::parse(&args.name)?)? else {
        let what = "rm takes a name of the catalogue, hf:... or pypi:..., never a path";
        return Err(Usage(format!("'{}': {what}; `pace-cli list` names what is here", args.name)).into());
    };
    let removal = Removal::plan(&Models::new(env)?, &wanted)?;
    if removal.paths().next().is_none() {
        bail!("{} is not in a cache", wanted.title);
    }
    let size = bytes(usize::try_from(removal.bytes()).unwrap_or(usize::MAX));
    if !args.yes {
        if !std::io::stdin().is_terminal() {
            return Err(Usage("rm asks on a terminal; elsewhere give --yes".into()).into());
        }
        removal.paths().for_each(|path| eprintln!("{}", path.display()));
        if !ask(&format!("Remove {} ({size})?", wanted.title))? {
            return Ok(output::line("nothing removed")?);
        }
    }
    removal.run()?;
    Ok(output::line(&format!("removed {} ({size})", wanted.title))?)
}
