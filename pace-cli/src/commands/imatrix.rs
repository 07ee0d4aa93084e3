//! `pace-cli imatrix`.

use std::fs::{File, Permissions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use pace_models::Importance;
use pace_runtime::config::Env;
use pace_runtime::{EngineConfig, EngineHandle, ModelFiles, RuntimeError, ScoreRequest};
use serde_json::json;

use crate::args::{Format, ImatrixArgs, ScoreTextArgs};
use crate::exit::Usage;
use crate::output;
use crate::session::{self, Session, encode, read_text};

/// Tokens of a window, where the model's context allows it.
const WINDOW: usize = 512;

pub(crate) fn run(env: &Env, args: ImatrixArgs) -> Result<()> {
    check_target(&args.output)?;
    args.engine.platform.expect_one_instance()?;
    let config = EngineConfig { observe_inputs: true, ..args.engine.config(env)? };
    let files = session::open(env, args.engine.model.as_deref())?;
    let mut tokens = ids(&files, args.text)?;
    tokens.truncate(max_tokens(args.max_tokens)?);
    let window = window(args.window, files.spec().max_positions)?;
    tokens.chunks(window).try_for_each(|part| request(part).check(files.spec()))?;
    if tokens.is_empty() {
        return Err(RuntimeError::EmptyPrompt.into());
    }
    config.choose(&files)?;
    let importance = collect(&Session::with(files, config)?.engine, &tokens, window)?;
    write(&args.output, &importance.to_bytes())
        .with_context(|| format!("{} cannot be written", args.output.display()))?;
    let (file, tokens, matrices) =
        (args.output.display().to_string(), importance.tokens(), importance.means().len());
    match args.format {
        Format::Json => output::json(&json!({"file": file, "tokens": tokens, "matrices": matrices}))?,
        Format::Text => {
            output::line(&format!("{file}: the inputs of {matrices} products over {tokens} tokens"))?;
        }
    }
    Ok(())
}

fn ids(files: &ModelFiles, text: ScoreTextArgs) -> Result<Vec<u32>> {
    match text {
        ScoreTextArgs { tokens: Some(ids), .. } => Ok(ids),
        ScoreTextArgs { file: Some(path), .. } => encode(files, &read_text(&path)?, "--tokens"),
        ScoreTextArgs { text, .. } => encode(files, &text.unwrap_or_default(), "--tokens"),
    }
}

fn max_tokens(asked: Option<usize>) -> Result<usize> {
    match asked {
        Some(0) => Err(Usage("--max-tokens 0: give 1 or more".to_owned()).into()),
        asked => Ok(asked.unwrap_or(usize::MAX)),
    }
}

/// Tokens of a window.
fn window(asked: Option<usize>, context: usize) -> Result<usize> {
    match asked {
        Some(n) if n == 0 || n > context => {
            Err(Usage(format!("--window {n}: give 1 to the context's {context} tokens")).into())
        }
        asked => Ok(asked.unwrap_or_else(|| WINDOW.min(context))),
    }
}

/// Logits of every token are computed, because their product has inputs, too.
fn request(tokens: &[u32]) -> ScoreRequest {
    ScoreRequest { tokens: tokens.to_vec(), top: 0, from: 0 }
}

/// Reads window after window.
fn collect(engine: &EngineHandle, tokens: &[u32], window: usize) -> Result<Importance> {
    let bar = progress_bar(tokens.len());
    for (i, part) in tokens.chunks(window).enumerate() {
        engine.score(request(part))?.wait(|done| bar.set_position((i * window + done) as u64))?;
    }
    bar.finish_and_clear();
    engine.importance()?.context("the engine saw no inputs")
}

/// On a terminal only.
fn progress_bar(tokens: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("reading {bar:30} {pos}/{len} tokens, {per_sec}, {eta}");
    ProgressBar::new(tokens as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Refuses a place that cannot be written before a text is read for it.
fn check_target(path: &Path) -> Result<()> {
    let wrong = |what: &str| Err(Usage(format!("--output {}: {what}", path.display())).into());
    if !folder(path).is_dir() {
        return wrong("the folder is not there");
    }
    match path.metadata() {
        Ok(meta) if !meta.is_file() => wrong("is there already, and no regular file"),
        _ => Ok(()),
    }
}

/// The folder of a file.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut builder = tempfile::Builder::new();
    // Others may read it as far as the umask lets them, as any file that a program writes.
    let builder = builder.prefix(".imatrix-").permissions(Permissions::from_mode(0o666));
    let mut file = builder.tempfile_in(folder(path))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder(path))?.sync_all()
}
