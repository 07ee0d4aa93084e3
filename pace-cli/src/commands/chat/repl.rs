//! The conversation: line editing, commands, an answer that Ctrl-C stops.

mod input;
mod transcript;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use pace_runtime::chat::Message;
use pace_runtime::{Canceller, Finish, FinishReason, SequenceCache, TokenEvent, TokenStream};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use self::input::{HELP, Input, parse, set, settings};
use crate::commands::answer::{self, Options};
use crate::exit;
use crate::interrupt;
use crate::output::{self, Style};
use crate::session::Session;

/// Room in the KV cache at first, in tokens, where neither flag nor model says less: later turns go on in it.
const CONTEXT: usize = 8192;

/// A conversation on a terminal.
pub(super) struct Repl<'a> {
    session: &'a Session,
    options: Options,
    system: Option<String>,
    /// Everything said, without the system message.
    messages: Vec<Message>,
    last: Option<Finish>,
    /// The conversation's keys and values: a new turn costs only its own tokens.
    cache: Option<SequenceCache>,
    /// The answer that Ctrl-C stops; none: Ctrl-C is the line editor's.
    running: Arc<Mutex<Option<Canceller>>>,
    style: Style,
    _watching: interrupt::Guard,
}

impl<'a> Repl<'a> {
    pub(super) fn new(
        session: &'a Session,
        mut options: Options,
        system: Option<String>,
        style: Style,
    ) -> Result<Self> {
        let running = Arc::new(Mutex::new(None::<Canceller>));
        let shared = Arc::clone(&running);
        let watching = interrupt::on_ctrl_c(move || {
            if let Some(answer) = &*shared.lock().unwrap_or_else(PoisonError::into_inner) {
                answer.cancel();
            }
        })?;
        options.ctx_size.get_or_insert_with(|| CONTEXT.min(session.files.spec().max_positions));
        Ok(Self {
            session,
            options,
            system,
            messages: Vec::new(),
            last: None,
            cache: None,
            running,
            style,
            _watching: watching,
        })
    }

    /// Reads and answers until the user leaves.
    pub(super) fn run(mut self) -> Result<()> {
        let mut editor = DefaultEditor::new().context("cannot read from the terminal")?;
        output::line(&self.style.dim(&format!("{}. /help lists commands.", self.session.files.name())))?;
        loop {
            let entry = match self.read(&mut editor) {
                Ok(entry) => entry,
                Err(ReadlineError::Interrupted) => {
                    output::line(&self.style.dim("Ctrl-D or /quit leaves."))?;
                    continue;
                }
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error).context("cannot read from the terminal"),
            };
            match parse(&entry) {
                Input::Quit => return Ok(()),
                Input::Say(text) => self.say(text)?,
                command => {
                    let reply =
                        self.command(&command).unwrap_or_else(|e| format!("error: {}", exit::message(&e)));
                    if !reply.is_empty() {
                        output::line(&self.style.dim(&reply))?;
                    }
                }
            }
        }
    }

    /// One entry: a line, lines that end with a backslash, or everything between two `"""`.
    fn read(&self, editor: &mut DefaultEditor) -> rustyline::Result<String> {
        let mut entry = input::Entry::default();
        loop {
            let prompt = self.style.prompt(if entry.is_empty() { "> " } else { ". " });
            if let Some(text) = entry.push(&editor.readline(&prompt)?) {
                editor.add_history_entry(text.as_str())?;
                return Ok(text);
            }
        }
    }

    /// Runs a command; gives what it prints.
    fn command(&mut self, input: &Input<'_>) -> Result<String> {
        Ok(match *input {
            Input::Help => HELP.to_owned(),
            Input::Reset => {
                self.forget();
                "The conversation is forgotten.".to_owned()
            }
            Input::Stats => self.stats(),
            Input::Set(None) => settings(&self.options),
            Input::Set(Some(text)) => set(&mut self.options, self.session.files.generation_config(), text)?,
            Input::System(None) => {
                self.system.clone().unwrap_or_else(|| "What the template says.".to_owned())
            }
            Input::System(Some(text)) => {
                self.system = Some(text.to_owned());
                "The model's instructions are changed.".to_owned()
            }
            Input::Save(path) => {
                transcript::save(Path::new(path), self.session.files.name(), &self.system, &self.messages)?;
                format!("{} messages are saved to {path}.", self.messages.len())
            }
            Input::Load(path) => {
                let (system, messages) = transcript::load(Path::new(path))?;
                self.forget();
                (self.system, self.messages) = (system, messages);
                format!("{} messages are loaded from {path}.", self.messages.len())
            }
            Input::Wrong(ref what) => what.clone(),
            Input::Nothing | Input::Quit | Input::Say(_) => String::new(),
        })
    }

    fn forget(&mut self) {
        self.messages.clear();
        self.last = None;
        self.cache = None;
    }

    /// Answers `text`; what fails is said and forgotten, the conversation goes on.
    fn say(&mut self, text: &str) -> Result<()> {
        self.messages.push(Message::user(text));
        match self.answer() {
            Ok(reply) => {
                self.messages.push(Message::assistant(reply));
                Ok(())
            }
            Err(error) if error.is::<std::io::Error>() => Err(error),
            Err(error) => {
                self.messages.pop();
                eprintln!("error: {}", exit::message(&error));
                Ok(())
            }
        }
    }

    fn answer(&mut self) -> Result<String> {
        let system = self.system.clone().map(Message::system);
        let messages: Vec<Message> = system.into_iter().chain(self.messages.iter().cloned()).collect();
        let mut request = super::request(&self.session.files, &self.options, &messages)?;
        request.reuse = self.cache.take();
        request.keep_cache = true;
        let stream = self.session.engine.submit(request)?;
        self.set_running(Some(stream.canceller()));
        let result = self.show(stream);
        self.set_running(None);
        result
    }

    fn show(&mut self, stream: TokenStream) -> Result<String> {
        let mut reply = String::new();
        for event in stream {
            match event {
                TokenEvent::Token { text, .. } => {
                    output::stream(&text)?;
                    reply += &text;
                }
                TokenEvent::Finished(mut finish) => {
                    reply += &finish.text;
                    let note = match finish.reason {
                        FinishReason::Cancelled => self.style.dim(" [stopped]"),
                        FinishReason::Length => self.style.dim(" [cut: /set max_new_tokens N]"),
                        FinishReason::Stop => String::new(),
                    };
                    output::line(&format!("{}{note}", finish.text))?;
                    self.cache = finish.cache.take();
                    self.last = Some(*finish);
                }
                TokenEvent::Failed(error) => return Err(error.into()),
            }
        }
        Ok(reply)
    }

    fn set_running(&self, answer: Option<Canceller>) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }

    fn stats(&self) -> String {
        let Some(last) = &self.last else { return "Nothing has been answered yet.".to_owned() };
        format!(
            "{}\nfirst token after {:.0} ms, {} prompt tokens were cached\nconversation {} tokens, KV cache {} of {} rows",
            answer::summary(last),
            last.prompt_time.as_secs_f64() * 1e3,
            last.reused_n,
            last.prompt_n + last.predicted_n,
            output::bytes(last.kv.bytes),
            last.kv.capacity_rows,
        )
    }
}
