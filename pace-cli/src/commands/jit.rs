//! `pace-cli jit dump`: generated kernels, listed and disassembled.

use anyhow::Result;
use pace_kernels::{Isa, Jit, JitCapacity, JitEntry, JitError};
use pace_ops::{Backend, OpError};
use pace_runtime::config::Env;
use pace_runtime::{EngineConfig, ModelFiles, Request, RuntimeError};
use serde_json::json;

use super::answer;
use crate::args::{Format, JitArgs, JitCommand, JitDumpArgs};
use crate::exit::Usage;
use crate::output::{self, bytes, table};
use crate::session::{Session, open};

/// Tokens of the prompt for a list: more than a block of rows, and a last one that is not full.
const PROMPT: u32 = 40;

pub(crate) fn run(env: &Env, args: &JitArgs) -> Result<()> {
    let JitCommand::Dump(args) = &args.command;
    args.engine.platform.expect_one_instance()?;
    match &args.key {
        Some(key) => disassemble(env, args, key),
        None => list(env, args),
    }
}

/// The instructions of a kernel.
fn disassemble(env: &Env, args: &JitDumpArgs, key: &str) -> Result<()> {
    let kernels = args.engine.config(env)?.kernels()?;
    let (needed, actual) =
        (Jit::requires(key).map_err(JitError::from).map_err(RuntimeError::from)?, kernels.isa());
    if actual < needed {
        return Err(RuntimeError::from(JitError::Isa { needed, actual }).into());
    }
    let jit = Jit::new(kernels, JitCapacity::default()).map_err(RuntimeError::from)?;
    let text = jit.dump(key).map_err(RuntimeError::from)?;
    match args.format {
        Format::Json => {
            let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
            output::json(&json!({"isa": kernels.isa().name(), "name": key, "instructions": lines}))?;
        }
        Format::Text => output::stream(&text)?,
    }
    Ok(())
}

/// What is generated for a model.
fn list(env: &Env, args: &JitDumpArgs) -> Result<()> {
    let mut config = args.engine.config(env)?;
    let kernels = config.kernels()?;
    let files = open(env, args.engine.model.as_deref())?;
    set_jit(&mut config, &files)?;
    // Without generated code the rest would only take time.
    config.choose(&files)?;
    let session = Session::with(files, config)?;
    let spec = session.files.spec();
    let vocab = u32::try_from(spec.vocab_size).unwrap_or(u32::MAX);
    let tokens = (PROMPT as usize).min(spec.max_positions.saturating_sub(2)).max(1);
    let prompt = (0..PROMPT).map(|id| id % vocab).take(tokens).collect();
    answer::run(&session.engine, Request { prompt, max_new_tokens: 2, ..Request::default() }, |_, _| Ok(()))?;
    let kept = session.engine.jit().map_or_else(Vec::new, |jit| jit.list());
    match args.format {
        Format::Json => {
            let kernel = |entry: &JitEntry| json!({"name": entry.name, "bytes": entry.bytes});
            output::json(&json!({
                "model": session.files.name(),
                "isa": kernels.isa().name(),
                "kernels": kept.iter().map(kernel).collect::<Vec<_>>(),
            }))?;
        }
        Format::Text => output::stream(&to_text(&kept))?,
    }
    Ok(())
}

/// Gives every operator that was left to `auto` generated code, if there is any for its shape and type.
fn set_jit(config: &mut EngineConfig, files: &ModelFiles) -> Result<()> {
    let kernels = config.kernels()?;
    let build = config.load.build_cx(kernels);
    let (mut some, mut refused) = (false, None);
    for shape in config.operator_shapes(files) {
        let op = shape.op;
        if config.load.operators.get(op) == Backend::Auto && op.backends().contains(&Backend::Jit) {
            match build.resolve(shape, Backend::Jit.into()) {
                Ok(_) => config.load.operators.set(op.name(), Backend::Jit.name())?,
                Err(error) => refused = Some(error),
            }
        }
        some |= config.load.operators.get(op) == Backend::Jit;
    }
    match refused.filter(|_| !some) {
        Some(OpError::Unavailable { .. }) if config.isa < Isa::Avx512Bf16 => {
            let missing = JitError::Isa { needed: Isa::Avx512Bf16, actual: config.isa };
            Err(RuntimeError::from(missing).into())
        }
        Some(OpError::Unavailable { .. }) if let Err(error) = Jit::new(kernels, JitCapacity::default()) => {
            Err(RuntimeError::from(error).into())
        }
        Some(error) => Err(Usage(error.to_string()).into()),
        None => Ok(()),
    }
}

fn to_text(kept: &[JitEntry]) -> String {
    if kept.is_empty() {
        return "nothing was generated: no operator has the backend jit\n".to_owned();
    }
    let mut rows = vec![vec!["kernel".to_owned(), "bytes".to_owned()]];
    rows.extend(kept.iter().map(|entry| vec![entry.name.clone(), entry.bytes.to_string()]));
    let all = kept.iter().map(|entry| entry.bytes).sum();
    format!("{}\n{} kernels, {}\n", table(rows), kept.len(), bytes(all))
}
