//! `pace-cli generate`.

use anyhow::Result;
use pace_runtime::ModelFiles;
use pace_runtime::config::Env;

use super::answer::{self, Options};
use crate::args::{GenerateArgs, PromptArgs};
use crate::session::{Session, encode, read_text};

const DEFAULT_NEW_TOKENS: usize = 128;
/// The flag for prompts that need no tokenizer.
const BY_IDS: &str = "--prompt-tokens";

pub(crate) fn run(env: &Env, args: GenerateArgs) -> Result<()> {
    let (session, request) = Session::start(env, &args.engine, |files| {
        let prompt = prompt_ids(files, args.prompt)?;
        Options::new(&args.length, &args.sampling, DEFAULT_NEW_TOKENS).request(files, prompt)
    })?;
    answer::write(&session, request, args.format)?;
    session.log_profile()
}

fn prompt_ids(files: &ModelFiles, prompt: PromptArgs) -> Result<Vec<u32>> {
    match prompt {
        PromptArgs { prompt_tokens: Some(ids), .. } => Ok(ids),
        PromptArgs { prompt_file: Some(path), .. } => encode(files, &read_text(&path)?, BY_IDS),
        PromptArgs { prompt, .. } => encode(files, &prompt.unwrap_or_default(), BY_IDS),
    }
}
