//! `pace-cli list`.

use anyhow::Result;
use pace_runtime::config::Env;
use serde_json::{Value, json};

use crate::args::{Format, ListArgs};
use crate::hub::{Entry, Installed, Models, entries, installed};
use crate::output::{self, bytes, table};

pub(crate) fn run(env: &Env, args: &ListArgs) -> Result<()> {
    if args.available {
        match args.format {
            Format::Json => output::json(&entries().iter().map(entry_to_json).collect())?,
            Format::Text => output::stream(&table(entries().iter().map(entry_to_row).collect()))?,
        }
        return Ok(());
    }
    let found = installed(&Models::new(env)?);
    match args.format {
        Format::Json => output::json(&found.iter().map(to_json).collect())?,
        Format::Text if found.is_empty() => {
            output::line(
                "no models yet; `pace-cli list --available` names some, `pace-cli pull NAME` gets one",
            )?;
        }
        Format::Text => output::stream(&table(found.iter().map(to_row).collect()))?,
    }
    Ok(())
}

/// An entry of the catalogue, for programs.
pub(crate) fn entry_to_json(entry: &Entry) -> Value {
    json!({
        "name": entry.name,
        "aliases": entry.aliases,
        "title": entry.title,
        "description": entry.description,
        "author": entry.author,
        "licence": entry.licence,
        "sources": entry.sources.iter().map(|source| &*source.from).collect::<Vec<_>>(),
    })
}

fn entry_to_row(entry: &Entry) -> Vec<String> {
    vec![entry.name.clone(), entry.licence.clone(), entry.description.clone()]
}

fn to_json(found: &Installed) -> Value {
    json!({
        "name": found.name,
        "source": found.source,
        "path": found.model.path.to_string_lossy(),
        "bytes": found.model.bytes(),
        "format": found.model.kind.name(),
    })
}

fn to_row(found: &Installed) -> Vec<String> {
    let size = bytes(usize::try_from(found.model.bytes()).unwrap_or(usize::MAX));
    let path = found.model.path.to_string_lossy().into_owned();
    vec![found.name.clone(), size, found.model.kind.name().to_owned(), path]
}
