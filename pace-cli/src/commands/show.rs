//! `pace-cli show`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};
use pace_runtime::config::Env;
use pace_runtime::{ModelFiles, ModelRef, RuntimeError};
use serde_json::{Value, json};

use super::{info, list};
use crate::args::{Format, ShowArgs};
use crate::exit::Usage;
use crate::hub::{Models, OnDisk, Reference, Wanted, models_in};
use crate::output::{self, bytes};

/// What is known of a model.
struct Known {
    wanted: Option<Wanted>,
    path: Option<String>,
    files: Vec<(String, u64)>,
    opened: Option<Result<ModelFiles>>,
}

pub(crate) fn run(env: &Env, args: &ShowArgs) -> Result<()> {
    let known = look(env, &args.name)?;
    let verified = args.verify.then(|| verify(&args.name, &known)).transpose()?;
    match args.format {
        Format::Json => {
            let mut out = to_json(&args.name, &known);
            out["verified_bytes"] = json!(verified);
            output::json(&out)?;
        }
        Format::Text => {
            let mut out = to_text(&args.name, &known);
            if let Some(verified) = verified {
                let size = bytes(usize::try_from(verified).unwrap_or(usize::MAX));
                let _ = writeln!(out, "{:<15}{size} of weights have the checksums of pace.json", "verified");
            }
            output::stream(&out)?;
        }
    }
    Ok(())
}

fn look(env: &Env, name: &str) -> Result<Known> {
    let reference = Reference::parse(name)?;
    let wanted = Wanted::new(&reference)?;
    let path = match (&reference, &wanted) {
        (Reference::Local(path), _) => Some(path.clone()),
        (_, Some(wanted)) => Models::new(env)?.find(wanted).map(|path| path.to_string_lossy().into_owned()),
        _ => None,
    };
    if path.is_none() && wanted.as_ref().is_none_or(|wanted| wanted.entry.is_none()) {
        bail!("{name} is not here; `pace-cli pull {name}` gets it");
    }
    let opened = path.as_ref().map(|path| Ok(ModelFiles::open(&ModelRef::parse(path)?)?));
    let opened = match (opened, &reference) {
        // Nothing else is known of a path.
        (Some(Err(error)), Reference::Local(_)) => return Err(error),
        (opened, _) => opened,
    };
    let files = path.as_deref().map(files).unwrap_or_default();
    Ok(Known { wanted, path, files, opened })
}

/// Compares a packed model with its checksums; says how many bytes were read.
fn verify(name: &str, known: &Known) -> Result<u64> {
    let opened = known.opened.as_ref().and_then(|opened| opened.as_ref().ok());
    let packed = opened.and_then(|files| files.source().packed());
    let packed =
        packed.ok_or_else(|| Usage(format!("--verify: {name} is no packed model, and has no checksums")))?;
    let read = AtomicU64::new(0);
    let verified = packed.verify(&|bytes| {
        read.fetch_add(bytes, Ordering::Relaxed);
    });
    verified.map_err(RuntimeError::from)?;
    Ok(read.into_inner())
}

/// The files of a model, with their sizes.
fn files(path: &str) -> Vec<(String, u64)> {
    let path = PathBuf::from(path);
    let dir = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(&path) };
    let models = models_in(dir);
    let of = |model: &OnDisk| model.path == path;
    let Some(model) = models.into_iter().find(of) else { return Vec::new() };
    let file = |file: PathBuf| {
        let name = file.strip_prefix(dir).unwrap_or(&file).to_string_lossy().into_owned();
        (name, file.metadata().map_or(0, |meta| meta.len()))
    };
    model.files.into_iter().map(file).collect()
}

fn to_json(name: &str, known: &Known) -> Value {
    let files: Vec<Value> =
        known.files.iter().map(|(name, bytes)| json!({"name": name, "bytes": bytes})).collect();
    let error = known.opened.as_ref().and_then(|opened| opened.as_ref().err());
    json!({
        "name": name,
        "catalogue": known.wanted.as_ref().and_then(|wanted| wanted.entry).map(list::entry_to_json),
        "path": known.path,
        "files": files,
        "bytes": known.files.iter().map(|(_, bytes)| bytes).sum::<u64>(),
        "info": known.opened.as_ref().and_then(|opened| opened.as_ref().ok()).map(info::to_json),
        "error": error.map(crate::exit::message),
    })
}

fn to_text(name: &str, known: &Known) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<15}{value}");
    };
    row("name", name);
    if let Some(entry) = known.wanted.as_ref().and_then(|wanted| wanted.entry) {
        row("title", &format!("{} by {}", entry.title, entry.author));
        row("", &entry.description);
        row("also called", &entry.aliases.join(", "));
        row("licence", &entry.licence);
        entry.sources.iter().for_each(|source| row("source", &source.from));
    }
    row("path", known.path.as_deref().unwrap_or("not here; `pull` gets it"));
    for (name, size) in &known.files {
        let size = bytes(usize::try_from(*size).unwrap_or(usize::MAX));
        row("file", &format!("{name}, {size}"));
    }
    match &known.opened {
        Some(Ok(files)) => out.push_str(&info::to_text(files)),
        Some(Err(error)) => row("cannot be run", &crate::exit::message(error)),
        None => {}
    }
    out
}
