//! [`Answers`]: the answers of one engine that one thread reads.

use crate::{Finish, RuntimeError, TokenEvent, TokenStream};

/// The answer to one of several requests.
#[derive(Debug)]
pub struct Completion {
    /// Which request, counted from 0.
    pub index: usize,
    /// Which instance answered it.
    pub instance: usize,
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// Their text, if the model has a tokenizer.
    pub text: String,
    /// How it ended and what it took.
    pub finish: Finish,
}

/// Answers that an engine works on, oldest first.
pub struct Answers {
    instance: usize,
    running: Vec<Running>,
}

struct Running {
    stream: TokenStream,
    index: usize,
    tokens: Vec<u32>,
    text: String,
}

impl Answers {
    /// None yet; they are going to be those of instance `instance`.
    pub const fn new(instance: usize) -> Self {
        Self { instance, running: Vec::new() }
    }

    /// Adds the answer to request `index`.
    pub fn push(&mut self, index: usize, stream: TokenStream) {
        self.running.push(Running { stream, index, tokens: Vec::new(), text: String::new() });
    }

    /// How many are not complete.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether all are complete.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Waits until the oldest has something new, reads that and whatever the others have, and returns those that are
    /// complete now.
    ///
    /// Only the oldest is waited for: an engine takes requests in their order, so that this one runs, while a later
    /// one may wait for memory that earlier ones give back only once they are read to their end.
    ///
    /// # Errors
    /// The first request that failed.
    pub fn read(&mut self) -> Result<Vec<Completion>, RuntimeError> {
        let mut complete = Vec::new();
        let Some(oldest) = self.running.first_mut() else { return Ok(complete) };
        let mut event = oldest.stream.next();
        let mut i = 0;
        while let Some(running) = self.running.get_mut(i) {
            let mut ended = None;
            while let Some(event) = event.take().or_else(|| running.stream.try_next()) {
                ended = running.take(event)?;
            }
            match ended {
                Some(finish) => complete.push(self.running.remove(i).complete(self.instance, *finish)),
                None => i += 1,
            }
        }
        Ok(complete)
    }
}

impl Running {
    /// Adds an event; how the answer ended if it was the last.
    fn take(&mut self, event: TokenEvent) -> Result<Option<Box<Finish>>, RuntimeError> {
        match event {
            TokenEvent::Token { id, text } => {
                self.tokens.push(id);
                self.text += &text;
                Ok(None)
            }
            TokenEvent::Finished(finish) => Ok(Some(finish)),
            TokenEvent::Failed(error) => Err(error),
        }
    }

    fn complete(self, instance: usize, finish: Finish) -> Completion {
        let Self { index, tokens, text, .. } = self;
        Completion { index, instance, tokens, text: text + &finish.text, finish }
    }
}
