//! Chat templates: a conversation to the text that a model was trained on.
//!
//! A template is a Jinja program that comes with the model, so it is untrusted: its source, its output, its
//! running time and its memory are bounded. The environment is the one that HF's `apply_chat_template` offers.

mod json;
mod message;
mod python;
mod sandbox;
mod strftime;

use std::sync::{Arc, atomic::AtomicBool};

use minijinja::{Environment, Error, ErrorKind, Value, syntax::SyntaxConfig};
use pace_models::file::clip_to;
use serde_json::{Map, Value as Json};

use self::message::to_value;
pub use self::message::{Content, Message};
use crate::tokenizer::Tokenizer;

/// The longest template, in bytes; real ones reach some 20 KiB.
pub const MAX_SOURCE_BYTES: usize = 256 << 10;
/// The longest prompt that a template may produce, in bytes.
pub const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// The template's name in the engine and in messages.
const NAME: &str = "chat template";

/// A template that cannot be compiled or rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The template's source is longer than [`MAX_SOURCE_BYTES`].
    #[error("chat template: {bytes} bytes; at most {MAX_SOURCE_BYTES} are accepted")]
    SourceTooLong {
        /// The source's length in bytes.
        bytes: usize,
    },
    /// The rendered conversation is longer than [`MAX_OUTPUT_BYTES`].
    #[error("chat template: the conversation becomes longer than {MAX_OUTPUT_BYTES} bytes")]
    OutputTooLong,
    /// Compiling or rendering the template took more than ten seconds; it is not tried again.
    #[error("chat template: it does not come to an end")]
    Deadline,
    /// The system refuses the thread that renders.
    #[error("chat template: no thread to render it: {0}")]
    Thread(std::io::Error),
    /// The template is no valid Jinja, fails on this conversation, or refuses it.
    #[error("chat template: {}{what}", .line.map_or_else(String::new, |line| format!("line {line}: ")))]
    Template {
        /// The line of the template at fault, from 1, where it is known.
        line: Option<usize>,
        /// What is wrong, or the template's own message.
        what: String,
    },
}

/// What a template is given beside the messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenderOptions {
    /// The prompt ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// The tools that the model may call, each a JSON schema in the form of chat APIs; `tools` in the template,
    /// none if `None`.
    pub tools: Option<Vec<Json>>,
    /// The documents that the model may quote, each an object with `title` and `text`; `documents` in the template,
    /// none if `None`.
    pub documents: Option<Vec<Json>>,
    /// Further variables, such as `enable_thinking`. They go before `bos_token` and `eos_token`, but not before the
    /// messages and the fields above.
    pub variables: Map<String, Json>,
}

/// A compiled chat template. Immutable, can be shared between threads.
#[derive(Debug)]
pub struct ChatTemplate {
    default: Program,
    /// In place of `default` where there are tools.
    tool_use: Option<Program>,
    bos: Option<String>,
    eos: Option<String>,
}

/// One compiled source.
#[derive(Debug)]
struct Program {
    environment: Arc<Environment<'static>>,
    /// Set once a rendering has missed its deadline.
    exhausted: AtomicBool,
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of those tokens (`bos_token` and `eos_token` in the
    /// template), undefined if `None`.
    ///
    /// # Errors
    /// The source is too long or no valid Jinja.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, ChatError> {
        let default = Program::compile(source)?;
        Ok(Self { default, tool_use: None, bos: bos.map(str::to_owned), eos: eos.map(str::to_owned) })
    }

    /// The same, with another template for conversations with tools, as models have it under the name `tool_use`.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn with_tool_use(self, source: &str) -> Result<Self, ChatError> {
        Ok(Self { tool_use: Some(Program::compile(source)?), ..self })
    }

    /// The template that came with `tokenizer`, and the one for tools, with its bos and eos tokens; `None` if none
    /// did.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn from_tokenizer(tokenizer: &Tokenizer) -> Result<Option<Self>, ChatError> {
        let piece = |id: Option<u32>| id.and_then(|id| tokenizer.piece(id));
        let (bos, eos) = (piece(tokenizer.bos()), piece(tokenizer.eos_token()));
        let Some(source) = tokenizer.chat_template() else { return Ok(None) };
        let template = Self::new(source, bos.as_deref(), eos.as_deref())?;
        Ok(Some(match tokenizer.tool_use_template() {
            Some(source) => template.with_tool_use(source)?,
            None => template,
        }))
    }

    /// The prompt for `messages`; with `add_generation_prompt` it ends where the assistant's answer begins.
    /// Special tokens are spelt out: tokenize it with `parse_special` and without `add_special`.
    ///
    /// # Errors
    /// The template refuses the conversation (`raise_exception`), fails, or takes too much time or memory.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ChatError> {
        self.render_with(messages, &RenderOptions { add_generation_prompt, ..RenderOptions::default() })
    }

    /// The prompt for `messages` with tools, documents and further variables; otherwise as
    /// [`ChatTemplate::render`].
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with(&self, messages: &[Message], options: &RenderOptions) -> Result<String, ChatError> {
        let list = |items: &Option<Vec<Json>>| {
            items.as_ref().map_or_else(|| Value::from(()), |items| items.iter().map(to_value).collect())
        };
        let tokens = [("bos_token", &self.bos), ("eos_token", &self.eos)];
        let tokens =
            tokens.into_iter().filter_map(|(name, token)| Some((name, Value::from(token.as_deref()?))));
        let variables = options.variables.iter().map(|(name, value)| (name.as_str(), to_value(value)));
        let fixed = [
            ("messages", messages.iter().map(Message::to_value).collect()),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            ("tools", list(&options.tools)),
            ("documents", list(&options.documents)),
        ];
        let context = Value::from_pairs(tokens.chain(variables).chain(fixed));
        let program = self.tool_use.as_ref().filter(|_| options.tools.is_some()).unwrap_or(&self.default);
        sandbox::render(&program.environment, context, &program.exhausted)
    }
}

impl Program {
    fn compile(source: &str) -> Result<Self, ChatError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(ChatError::SourceTooLong { bytes: source.len() });
        }
        let environment = environment().map_err(|error| fault(&error))?;
        let environment =
            sandbox::compile(environment, without_generation_tags(&with_unix_newlines(source)))?;
        Ok(Self { environment: Arc::new(environment), exhausted: AtomicBool::new(false) })
    }
}

/// What HF's `apply_chat_template` gives a template.
fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    sandbox::limit(&mut environment);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    python::install(&mut environment);
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| {
        strftime::now(&format).map_err(|what| Error::new(ErrorKind::InvalidOperation, what))
    });
    Ok(environment)
}

/// Jinja reads every kind of line end as `\n`, also within strings.
fn with_unix_newlines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// HF marks the assistant's text with `{% generation %}` blocks, for training. They print their body, as an `if`
/// that is always true does; whitespace control and line numbers stay.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        rest = after;
        let word_at = after.len() - after.trim_start_matches(['-', '+']).trim_start().len();
        let (lead, tag) = after.split_at(word_at);
        for (word, replacement) in [("generation", "if true"), ("endgeneration", "endif")] {
            let Some(tail) = tag.strip_prefix(word) else { continue };
            if tail.trim_start().trim_start_matches(['-', '+']).starts_with("%}") {
                out.push_str(lead);
                out.push_str(replacement);
                rest = tail;
            }
        }
    }
    out.push_str(rest);
    out
}

fn fault(error: &Error) -> ChatError {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "it takes too long or too much memory".to_owned(),
        // The kind says nothing beside a message of the template itself.
        ErrorKind::InvalidOperation => error.detail().unwrap_or("invalid operation").to_owned(),
        kind => error.detail().map_or_else(|| kind.to_string(), |detail| format!("{kind}: {detail}")),
    };
    // A template may quote a whole conversation.
    ChatError::Template { line: error.line(), what: clip_to(&what, 800) }
}

#[cfg(test)]
mod tests;
