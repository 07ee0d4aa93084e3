//! What is asked of an engine, and the streams that answer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use pace_models::DecoderSpec;
use pace_ops::{KvCache, KvUsage};

use crate::RuntimeError;
use crate::sampler::SamplingParams;
use crate::scheduler::KvLease;

/// A completion to generate.
#[derive(Debug, Default)]
pub struct Request {
    /// The prompt's token ids; at least one.
    pub prompt: Vec<u32>,
    /// New tokens at most; 0 only fills the cache.
    pub max_new_tokens: usize,
    /// Room in the KV cache, in tokens, if more than prompt and answer need.
    pub ctx_size: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the answer; none: only length and stop texts do.
    pub eos: Vec<u32>,
    /// The cache of an earlier answer of the same engine: what its tokens and the prompt begin with in common is
    /// not computed again.
    pub reuse: Option<SequenceCache>,
    /// Whether the answer brings its cache with it, for [`reuse`](Self::reuse). It counts towards the memory of all
    /// caches until it is dropped.
    pub keep_cache: bool,
}

/// Keys and values of a finished answer, with the tokens that they belong to.
pub struct SequenceCache {
    pub(crate) tokens: Vec<u32>,
    pub(crate) kv: Box<dyn KvCache>,
    /// The engine that filled it.
    pub(crate) owner: Arc<()>,
    /// The memory that is set aside for it.
    pub(crate) lease: Option<KvLease>,
    /// The tokens that it may come to hold.
    pub(crate) max_len: usize,
}

impl SequenceCache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.kv.len()
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.kv.is_empty()
    }

    /// What the cache costs.
    pub fn usage(&self) -> KvUsage {
        self.kv.usage()
    }
}

impl fmt::Debug for SequenceCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SequenceCache({} tokens)", self.len())
    }
}

impl Request {
    /// Tokens that its cache may come to hold, in a model of shape `spec` that it was [checked](Self::check) for.
    pub(crate) fn room(&self, spec: &DecoderSpec) -> usize {
        let both = self.prompt.len().saturating_add(self.max_new_tokens).min(spec.max_positions);
        both.max(self.ctx_size.unwrap_or(0))
    }

    /// Checks what can be checked before a model of shape `spec` is loaded.
    ///
    /// # Errors
    /// The prompt is empty, too long or holds ids beyond the vocabulary; the context asked for is longer than the
    /// model's; a sampling parameter is out of range.
    pub fn check(&self, spec: &DecoderSpec) -> Result<(), RuntimeError> {
        check_prompt(&self.prompt, usize::from(self.max_new_tokens > 0), spec)?;
        self.sampling.validate()?;
        let max = spec.max_positions;
        match self.ctx_size.filter(|&asked| asked > max) {
            Some(asked) => Err(RuntimeError::ContextTooLong { asked, max }),
            None => Ok(()),
        }
    }
}

/// One step of an answer.
#[derive(Debug)]
pub enum TokenEvent {
    /// A new token.
    Token {
        /// Its id.
        id: u32,
        /// Text that has become certain with it: whole characters, nothing that may belong to a stop text. May be
        /// empty; always empty when the model has no tokenizer.
        text: String,
    },
    /// The answer is complete. Nothing follows.
    Finished(Box<Finish>),
    /// The request failed. Nothing follows.
    Failed(RuntimeError),
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-sequence token or a stop text.
    Stop,
    /// The number of tokens asked for, or the end of the context.
    Length,
    /// The caller cancelled.
    Cancelled,
}

impl FinishReason {
    /// The name used in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How an answer ended and what it took.
#[derive(Debug)]
pub struct Finish {
    /// Why it ended.
    pub reason: FinishReason,
    /// Text that was held back until the end.
    pub text: String,
    /// Tokens of the prompt.
    pub prompt_n: usize,
    /// Tokens of the prompt that a reused cache held already.
    pub reused_n: usize,
    /// From the first forward to the logits of the prompt's last token.
    pub prompt_time: Duration,
    /// New tokens.
    pub predicted_n: usize,
    /// From the logits of the prompt's last token to the last new token.
    pub predicted_time: Duration,
    /// Forwards that held tokens of the prompt.
    pub prefill_steps: usize,
    /// What the KV cache used.
    pub kv: KvUsage,
    /// The seed that tokens were drawn with; the same seed gives the same text.
    pub seed: u64,
    /// The cache, if [`Request::keep_cache`] asked for it. Its memory is free when this is dropped.
    pub cache: Option<SequenceCache>,
}

/// A text to score.
#[derive(Clone, Debug, Default)]
pub struct ScoreRequest {
    /// Token ids; at least one.
    pub tokens: Vec<u32>,
    /// How many of the most likely next tokens to report.
    pub top: usize,
    /// The first token whose log-probability is wanted; the ones before it are context only. 0 and 1 are the same.
    pub from: usize,
}

impl ScoreRequest {
    /// Checks what can be checked before a model of shape `spec` is loaded.
    ///
    /// # Errors
    /// There are no tokens, too many, or ids beyond the vocabulary.
    pub fn check(&self, spec: &DecoderSpec) -> Result<(), RuntimeError> {
        check_prompt(&self.tokens, 0, spec)
    }
}

/// Log-probabilities of given tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The natural log-probability of each token after the ones before it; the first has none, nor have those
    /// before [`ScoreRequest::from`].
    pub logprobs: Vec<Option<f64>>,
    /// The most likely next tokens after the last one, most likely first, with their log-probabilities.
    pub next: Vec<(u32, f64)>,
}

impl Score {
    /// `exp` of the mean negative log-probability; `None` for a single token.
    pub fn perplexity(&self) -> Option<f64> {
        let known: Vec<f64> = self.logprobs.iter().flatten().copied().collect();
        (!known.is_empty()).then(|| (-known.iter().sum::<f64>() / known.len() as f64).exp())
    }
}

/// One step of a score.
#[derive(Debug)]
pub enum ScoreUpdate {
    /// Tokens scored so far.
    Progress(usize),
    /// The result. Nothing follows.
    Finished(Score),
    /// The request failed. Nothing follows.
    Failed(RuntimeError),
}

/// The answer to a [`Request`], token by token. Dropping it cancels the request.
///
/// An answer that is not read stops after about a thousand tokens and goes on when it is: a slow reader holds up
/// nobody but itself.
pub struct TokenStream {
    pub(crate) events: Receiver<TokenEvent>,
    pub(crate) cancelled: Arc<AtomicBool>,
    /// Tokens taken so far, for the engine to see.
    pub(crate) read: Arc<AtomicUsize>,
    pub(crate) done: bool,
}

/// Stops an answer from elsewhere, another thread say.
#[derive(Clone, Debug)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// As [`TokenStream::cancel`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl TokenStream {
    /// Asks the engine to stop after the current step; a [`TokenEvent::Finished`] still follows.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// The next event if it is there already; `None` also after the last.
    pub fn try_next(&mut self) -> Option<TokenEvent> {
        if self.done {
            return None;
        }
        match self.events.try_recv() {
            Ok(event) => Some(self.took(event)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(self.took(TokenEvent::Failed(RuntimeError::Stopped))),
        }
    }

    fn took(&mut self, event: TokenEvent) -> TokenEvent {
        self.read.fetch_add(1, Ordering::Release);
        self.done = !matches!(event, TokenEvent::Token { .. });
        event
    }

    /// A handle that cancels this answer.
    pub fn canceller(&self) -> Canceller {
        Canceller(Arc::clone(&self.cancelled))
    }
}

impl Iterator for TokenStream {
    type Item = TokenEvent;

    /// Blocks until the next event; `None` after the last.
    fn next(&mut self) -> Option<TokenEvent> {
        if self.done {
            return None;
        }
        let event = self.events.recv().unwrap_or(TokenEvent::Failed(RuntimeError::Stopped));
        Some(self.took(event))
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The answer to a [`ScoreRequest`]. Dropping it cancels the request.
pub struct ScoreStream {
    pub(crate) updates: Receiver<ScoreUpdate>,
    pub(crate) cancelled: Arc<AtomicBool>,
}

impl ScoreStream {
    /// Blocks until the score is complete, calling `progress` with the number of tokens scored so far.
    ///
    /// # Errors
    /// The request failed, or the engine stopped.
    pub fn wait(self, mut progress: impl FnMut(usize)) -> Result<Score, RuntimeError> {
        loop {
            match self.updates.recv().unwrap_or(ScoreUpdate::Failed(RuntimeError::Stopped)) {
                ScoreUpdate::Progress(n) => progress(n),
                ScoreUpdate::Finished(score) => return Ok(score),
                ScoreUpdate::Failed(error) => return Err(error),
            }
        }
    }
}

impl Drop for ScoreStream {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// Checks a prompt that `new` tokens at least shall follow.
fn check_prompt(prompt: &[u32], new: usize, spec: &DecoderSpec) -> Result<(), RuntimeError> {
    let (vocab, max) = (spec.vocab_size, spec.max_positions);
    if prompt.is_empty() {
        return Err(RuntimeError::EmptyPrompt);
    }
    if prompt.len() + new > max {
        return Err(RuntimeError::PromptTooLong { prompt: prompt.len(), new, max });
    }
    match prompt.iter().position(|&id| id as usize >= vocab) {
        Some(position) => Err(RuntimeError::UnknownToken { id: prompt[position], position, vocab }),
        None => Ok(()),
    }
}
