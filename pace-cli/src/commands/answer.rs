//! Running one request: streamed as text, or collected into the JSON object that `generate` and `chat` share.

use anyhow::Result;
use pace_runtime::generation_config::SamplingOverrides;
use pace_runtime::{EngineHandle, Finish, ModelFiles, Request, TokenEvent};
use serde_json::{Value, json};

use crate::args::{Format, LengthArgs, SamplingArgs};
use crate::operators;
use crate::output;
use crate::session::{Session, tokenizer};

/// An answer that is complete.
pub(crate) struct Answer {
    pub(crate) tokens: Vec<u32>,
    pub(crate) text: String,
    pub(crate) finish: Finish,
}

/// How answers are made, whatever the prompt.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) max_new_tokens: usize,
    pub(crate) ctx_size: Option<usize>,
    pub(crate) sampling: SamplingOverrides,
    stop: Vec<String>,
    ignore_eos: bool,
}

impl Options {
    /// What the flags say; `default_length` new tokens where they say nothing.
    pub(crate) fn new(length: &LengthArgs, sampling: &SamplingArgs, default_length: usize) -> Self {
        Self {
            max_new_tokens: length.max_new_tokens.unwrap_or(default_length),
            ctx_size: length.ctx_size,
            sampling: sampling.overrides(),
            stop: sampling.stop.clone(),
            ignore_eos: sampling.ignore_eos,
        }
    }

    /// The request for `prompt`, checked against the model.
    pub(crate) fn request(&self, files: &ModelFiles, prompt: Vec<u32>) -> Result<Request> {
        if !self.stop.is_empty() {
            tokenizer(files, "--stop needs one")?;
        }
        let request = Request {
            prompt,
            max_new_tokens: self.max_new_tokens,
            ctx_size: self.ctx_size,
            sampling: files.generation_config().apply(&self.sampling),
            stop: self.stop.clone(),
            eos: if self.ignore_eos { Vec::new() } else { files.eos().to_vec() },
            reuse: None,
            keep_cache: false,
        };
        request.check(files.spec())?;
        Ok(request)
    }
}

/// Runs `request`, handing every piece of the answer to `show` as it is made.
pub(crate) fn run(
    engine: &EngineHandle,
    request: Request,
    mut show: impl FnMut(u32, &str) -> Result<()>,
) -> Result<Answer> {
    let (mut tokens, mut all) = (Vec::new(), String::new());
    for event in engine.submit(request)? {
        match event {
            TokenEvent::Token { id, text } => {
                show(id, &text)?;
                tokens.push(id);
                all.push_str(&text);
            }
            TokenEvent::Finished(finish) => {
                all.push_str(&finish.text);
                return Ok(Answer { tokens, text: all, finish: *finish });
            }
            TokenEvent::Failed(error) => return Err(error.into()),
        }
    }
    Err(pace_runtime::RuntimeError::Stopped.into())
}

/// Runs `request` and writes the answer in `format`.
pub(crate) fn write(session: &Session, request: Request, format: Format) -> Result<()> {
    let prompt = request.prompt.clone();
    match format {
        Format::Json => {
            let answer = run(&session.engine, request, |_, _| Ok(()))?;
            output::json(&to_json(session, &prompt, &answer))?;
        }
        Format::Text => {
            let answer = write_text(session, request)?;
            tracing::info!("{}", summary(&answer.finish));
        }
    }
    Ok(())
}

/// Streams the answer as text, or as ids where the model has no tokenizer, and ends the line.
fn write_text(session: &Session, request: Request) -> Result<Answer> {
    let by_id = session.files.tokenizer().is_none();
    let mut first = true;
    let answer = run(&session.engine, request, |id, text| {
        if by_id {
            output::stream(&if first { id.to_string() } else { format!(" {id}") })?;
            first = false;
        } else {
            output::stream(text)?;
        }
        Ok(())
    })?;
    output::line(&answer.finish.text)?;
    Ok(answer)
}

/// One line of speeds.
pub(crate) fn summary(finish: &Finish) -> String {
    format!(
        "prompt {} tokens, {:.1} tokens/s; answer {} tokens, {:.1} tokens/s",
        finish.prompt_n,
        rate(finish.prompt_n - finish.reused_n, finish.prompt_time.as_secs_f64()),
        finish.predicted_n,
        rate(finish.predicted_n, finish.predicted_time.as_secs_f64()),
    )
}

fn to_json(session: &Session, prompt: &[u32], answer: &Answer) -> Value {
    let (finish, info) = (&answer.finish, session.engine.info());
    let (prompt_s, predicted_s) = (finish.prompt_time.as_secs_f64(), finish.predicted_time.as_secs_f64());
    json!({
        "model": session.files.name(),
        "prompt_tokens": prompt,
        "tokens": answer.tokens,
        "text": answer.text,
        "finish_reason": finish.reason.name(),
        "seed": finish.seed,
        "threads": info.threads,
        "operators": operators::to_json(&info.operators),
        "demotions": operators::demotions(info),
        "formats": operators::formats_json(&info.formats, &info.spec),
        "losses": operators::losses_json(&info.losses),
        "bit_equal": info.bit_equal,
        "prefill_steps": finish.prefill_steps,
        "kv_cache": {
            "kind": finish.kv.kind,
            "allocations": finish.kv.allocations,
            "capacity_rows": finish.kv.capacity_rows,
            "bytes": finish.kv.bytes,
            "bytes_copied": finish.kv.bytes_copied,
        },
        "timings": {
            "load_ms": info.load_time.as_secs_f64() * 1e3,
            "prompt_n": finish.prompt_n,
            "prompt_ms": prompt_s * 1e3,
            "prompt_per_second": rate(finish.prompt_n, prompt_s),
            "predicted_n": finish.predicted_n,
            "predicted_ms": predicted_s * 1e3,
            "predicted_per_second": rate(finish.predicted_n, predicted_s),
        },
    })
}

/// `n` per second; 0 when there was no time to measure.
fn rate(n: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { n as f64 / seconds } else { 0.0 }
}
