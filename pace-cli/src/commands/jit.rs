//! `pace-cli jit dump`: generated kernels, listed and disassembled.

use anyhow::Result;
use pace_kernels::{Isa, IsaError, Jit, JitCapacity, JitEntry, JitError, Kernels};
use pace_ops::{Backend, OpError, Operator};
use pace_runtime::config::Env;
use pace_runtime::{EngineConfig, Request, RuntimeError};
use serde_json::json;

use super::answer;
use crate::args::{Format, JitArgs, JitCommand, JitDumpArgs};
use crate::exit::Usage;
use crate::output::{self, bytes, table};
use crate::session::Session;

/// Tokens of the prompt for a list: more than a block of rows, and a last one that is not full.
const PROMPT: u32 = 40;

pub(crate) fn run(env: &Env, args: &JitArgs) -> Result<()> {
    match &args.command {
        JitCommand::Dump(args) => match &args.key {
            Some(key) => disassemble(env, args, key),
            None => list(env, args),
        },
    }
}

/// The instructions of a kernel.
fn disassemble(env: &Env, args: &JitDumpArgs, key: &str) -> Result<()> {
    let kernels = kernels(&args.engine.config(env)?)?;
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
    let kernels = kernels(&config)?;
    // Without generated code the rest would only take time.
    Jit::new(kernels, JitCapacity::default()).map_err(RuntimeError::from)?;
    set_jit(&mut config, kernels)?;
    let (session, ()) = Session::start_configured(env, &args.engine, config, |_| Ok(()))?;
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

fn kernels(config: &EngineConfig) -> Result<Kernels> {
    Ok(Kernels::new(config.isa).ok_or(RuntimeError::from(IsaError::Unsupported(config.isa)))?)
}

/// Gives every operator that was left to `auto` generated code, if it has any for its type.
fn set_jit(config: &mut EngineConfig, kernels: Kernels) -> Result<()> {
    let build = config.load.build_cx(kernels);
    let (weights, kv) = (config.load.weights.into(), config.load.kv.into());
    let mut refused = None;
    let configured = config.load.operators.iter();
    for (op, _) in configured.filter(|(op, b)| *b == Backend::Auto && op.backends().contains(&Backend::Jit)) {
        match build.check(op, Backend::Jit, if op == Operator::Attention { kv } else { weights }) {
            Ok(()) => config.load.operators.set(op.name(), Backend::Jit.name())?,
            Err(error) => refused = Some(error),
        }
    }
    let some = config.load.operators.iter().any(|(_, backend)| backend == Backend::Jit);
    match refused.filter(|_| !some) {
        Some(OpError::Unavailable { .. }) => {
            let missing = JitError::Isa { needed: Isa::Avx512Bf16, actual: kernels.isa() };
            Err(RuntimeError::from(missing).into())
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
