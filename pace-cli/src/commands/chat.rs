//! `pace-cli chat`: one answer, or a conversation.

mod repl;

use std::io::IsTerminal;

use anyhow::Result;
use pace_runtime::chat::Message;
use pace_runtime::config::Env;
use pace_runtime::{ModelFiles, Request, RuntimeError};

use self::repl::Repl;
use super::answer::{self, Options};
use crate::args::{ChatArgs, Format};
use crate::exit::Usage;
use crate::output::Style;
use crate::session::{Session, read_stdin, tokenizer};

const DEFAULT_NEW_TOKENS: usize = 1024;
/// For models without a tokenizer.
const ADVICE: &str = "a chat needs one; generate works by token ids, too";

pub(crate) fn run(env: &Env, mut args: ChatArgs) -> Result<()> {
    let message = match args.message.take() {
        Some(message) => Some(message),
        None if std::io::stdin().is_terminal() => None,
        None => Some(piped()?),
    };
    let options = Options::new(&args.length, &args.sampling, DEFAULT_NEW_TOKENS);
    let Some(message) = message else { return converse(env, &args, options) };
    let (session, request) = Session::start(env, &args.engine, |files| {
        let messages = [args.system.clone().map(Message::system), Some(Message::user(message))]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>();
        request(files, &options, &messages)
    })?;
    answer::write(&session, request, args.format)?;
    session.log_profile()
}

fn converse(env: &Env, args: &ChatArgs, options: Options) -> Result<()> {
    if args.format == Format::Json {
        return Err(Usage("--format json needs a MESSAGE".to_owned()).into());
    }
    let (session, ()) = Session::start(env, &args.engine, |files| {
        tokenizer(files, ADVICE)?;
        files.require_chat_template()?;
        // One token stands for the prompts to come: flags that no answer can use are refused now.
        options.request(files, vec![0])?;
        Ok(())
    })?;
    Repl::new(&session, options, args.system.clone(), Style::of_stdout(env))?.run()?;
    session.log_profile()
}

/// The message that another program wrote.
fn piped() -> Result<String> {
    let text = read_stdin()?;
    let text = text.trim();
    if text.is_empty() {
        return Err(Usage("standard input is empty: give a message".to_owned()).into());
    }
    Ok(text.to_owned())
}

/// The request for the next answer of `messages`.
fn request(files: &ModelFiles, options: &Options, messages: &[Message]) -> Result<Request> {
    let tokenizer = tokenizer(files, ADVICE)?;
    let text = files.require_chat_template()?.render(messages, true).map_err(RuntimeError::from)?;
    // The template writes the special tokens itself, the first one included.
    let prompt = tokenizer.encode(&text, false, true).map_err(RuntimeError::from)?;
    options.request(files, prompt)
}
