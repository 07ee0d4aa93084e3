//! `pace-cli pull`.

use anyhow::Result;
use pace_runtime::config::Env;
use pace_runtime::{ModelFiles, ModelRef};
use serde_json::json;

use crate::args::{Format, PullArgs};
use crate::exit::{Usage, message};
use crate::hub::{Reference, resolve};
use crate::output;

pub(crate) fn run(env: &Env, args: &PullArgs) -> Result<()> {
    if args.name.starts_with("random:") {
        return Err(Usage(format!("{} is made in memory; there is nothing to get", args.name)).into());
    }
    let path = resolve(env, Some(&args.name))?;
    let opened = ModelRef::parse(&path).and_then(|model| ModelFiles::open(&model));
    match (opened, Reference::parse(&args.name)?) {
        (Ok(_), _) => {}
        (Err(error), Reference::Local(_)) => return Err(error.into()),
        // It may be for another program, or for a later version of this one.
        (Err(error), _) => tracing::warn!("it is here, but cannot be run: {}", message(&error.into())),
    }
    match args.format {
        Format::Json => output::json(&json!({"name": args.name, "path": path}))?,
        Format::Text => output::line(&path)?,
    }
    Ok(())
}
