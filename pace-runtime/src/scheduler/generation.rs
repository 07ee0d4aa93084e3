//! [`Generation`]: from logits to tokens, text and the reason to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use pace_ops::KvUsage;

use crate::RuntimeError;
use crate::request::{Finish, FinishReason, Request, SequenceCache, TokenEvent, TokenStream};
use crate::sampler::Sampler;
use crate::tokenizer::{StopStrings, TextStream, Tokenizer};

/// How a request ran, whatever came of it.
pub(crate) struct Run {
    pub(crate) prompt: Vec<u32>,
    /// Tokens of the prompt that were in a reused cache.
    pub(crate) reused: usize,
    pub(crate) started: Option<Instant>,
    pub(crate) prefill_steps: usize,
}

/// Tokens that wait to be read at most. A sequence whose reader is slower sits out, so that memory is bounded.
const UNREAD_TOKENS: usize = if cfg!(test) { 16 } else { 1024 };

/// Where the events of an answer go. Sending never blocks and, as long as the sender is [`ready`](Self::ready) before
/// each token, never fails for lack of room; nothing is allocated.
pub(crate) struct Events {
    sender: SyncSender<TokenEvent>,
    sent: usize,
    /// Tokens that the reader has taken.
    read: Arc<AtomicUsize>,
    room: usize,
}

impl Events {
    /// For an answer of `max_tokens` at most, and where it is read.
    pub(crate) fn new(max_tokens: usize, cancelled: Arc<AtomicBool>) -> (Self, TokenStream) {
        let room = max_tokens.clamp(1, UNREAD_TOKENS);
        // One place more, for the last event.
        let (sender, events) = sync_channel(room + 1);
        let read = Arc::new(AtomicUsize::new(0));
        let stream = TokenStream { events, cancelled, read: Arc::clone(&read), done: false };
        (Self { sender, sent: 0, read, room }, stream)
    }

    /// Whether there is room for a token.
    fn ready(&self) -> bool {
        self.sent - self.read.load(Ordering::Acquire) < self.room
    }

    /// False if nobody reads any more.
    fn send(&mut self, event: TokenEvent) -> bool {
        self.sent += 1;
        self.sender.try_send(event).is_ok()
    }
}

/// An answer in the making.
pub(crate) struct Generation {
    sampler: Sampler,
    text: Option<TextStream>,
    stop: StopStrings,
    eos: Vec<u32>,
    max_new_tokens: usize,
    keep_cache: bool,
    events: Events,
    /// The new tokens.
    made: Vec<u32>,
    /// When the logits of the prompt's last token were there, and when the newest token was.
    prompt_done: Option<Instant>,
    last_made: Option<Instant>,
    ended: Option<FinishReason>,
    failed: Option<RuntimeError>,
}

impl Generation {
    /// # Errors
    /// A stop text is empty or a sampling parameter out of range.
    pub(crate) fn new(
        request: &Request,
        vocab: usize,
        tokenizer: Option<&Arc<Tokenizer>>,
        events: Events,
    ) -> Result<Self, RuntimeError> {
        Ok(Self {
            sampler: Sampler::new(&request.sampling, &request.prompt, vocab, &request.eos)?,
            text: tokenizer.map(|t| TextStream::new(Arc::clone(t), true)),
            stop: StopStrings::new(request.stop.clone())?,
            eos: request.eos.clone(),
            max_new_tokens: request.max_new_tokens,
            keep_cache: request.keep_cache,
            events,
            made: Vec::with_capacity(request.max_new_tokens),
            prompt_done: None,
            last_made: None,
            ended: None,
            failed: None,
        })
    }

    /// The token that the next forward feeds; none while the reader has too many to read.
    pub(crate) fn next_input(&self) -> Option<u32> {
        self.made.last().copied().filter(|_| self.events.ready())
    }

    /// Whether another token is to be made.
    pub(crate) fn wants_more(&self) -> bool {
        self.ended.is_none() && self.failed.is_none() && self.made.len() < self.max_new_tokens
    }

    /// Draws a token from `logits`. True when it was the last one.
    pub(crate) fn take_logits(&mut self, logits: &mut [f32]) -> bool {
        self.prompt_done.get_or_insert_with(Instant::now);
        if let Err(error) = self.draw(logits) {
            self.failed = Some(error);
        }
        self.last_made = Some(Instant::now());
        !self.wants_more()
    }

    pub(crate) fn fail(mut self, error: RuntimeError) {
        self.events.send(TokenEvent::Failed(error));
    }

    /// Sends the last event, the sequence's cache with it if it has one.
    pub(crate) fn finish(mut self, run: Run, cache: Option<SequenceCache>) {
        if let Some(error) = self.failed.take() {
            drop(cache);
            return self.fail(error);
        }
        let text = self.tail();
        let full = self.made.len() == self.max_new_tokens;
        let now = Instant::now();
        let prompt_done = self.prompt_done.unwrap_or(now);
        let prompt_n = run.prompt.len();
        let kv = cache.as_ref().map_or_else(KvUsage::default, SequenceCache::usage);
        // The memory of a cache that nobody wants is free before the reader hears of it.
        let cache = cache.filter(|_| self.keep_cache).map(|mut cache| {
            cache.tokens = run.prompt;
            cache.tokens.extend_from_slice(&self.made);
            cache.tokens.truncate(cache.kv.len());
            cache
        });
        let finish = Finish {
            reason: self.ended.unwrap_or(if full { FinishReason::Length } else { FinishReason::Cancelled }),
            text,
            prompt_n,
            reused_n: run.reused,
            prompt_time: run.started.map_or(Duration::ZERO, |s| prompt_done - s),
            predicted_n: self.made.len(),
            predicted_time: self.last_made.map_or(Duration::ZERO, |t| t - prompt_done),
            prefill_steps: run.prefill_steps,
            kv,
            seed: self.sampler.seed(),
            cache,
        };
        self.events.send(TokenEvent::Finished(Box::new(finish)));
    }

    fn draw(&mut self, logits: &mut [f32]) -> Result<(), RuntimeError> {
        let id = self.sampler.sample(logits)?;
        self.made.push(id);
        let mut text = String::new();
        if let Some(stream) = &mut self.text {
            let result = self.stop.push(&stream.push(id)?);
            text = result.emit;
            if result.stopped {
                self.ended = Some(FinishReason::Stop);
            }
        }
        if self.eos.contains(&id) {
            self.ended = Some(FinishReason::Stop);
        }
        if !self.events.send(TokenEvent::Token { id, text }) {
            self.ended = Some(FinishReason::Cancelled);
        }
        Ok(())
    }

    /// What was held back, unless a stop text was found.
    fn tail(&mut self) -> String {
        let Some(stream) = self.text.take() else { return String::new() };
        let result = self.stop.push(&stream.finish());
        if result.stopped {
            self.ended = Some(FinishReason::Stop);
        }
        result.emit + &self.stop.flush()
    }
}
