//! From logits to the next token: penalties, temperature, filters and the draw, with each request's own
//! generator.
//!
//! A [`Sampler`] belongs to one request and depends on nothing but its parameters, its prompt and the
//! logits it is given: the same seed gives the same tokens whatever else the engine runs.

mod candidates;
mod history;
mod params;

use std::hash::{BuildHasher, RandomState};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

use candidates::Candidates;
use history::History;

pub use params::{GREEDY_TEMPERATURE, ParamError, SamplingParams};

/// Chooses the tokens of one request.
///
/// Steps, in this order; each means what it means in Hugging Face transformers:
/// 1. end-of-sequence tokens are masked until [`SamplingParams::min_new_tokens`] were made;
/// 2. repetition penalty, over prompt and output, each distinct token once;
/// 3. frequency and presence penalties, over the output;
/// 4. temperature;
/// 5. top-k, which keeps equals of the k-th;
/// 6. top-p;
/// 7. min-p;
/// 8. softmax and one draw of 53 bits from the request's ChaCha8 generator.
///
/// Greedy requests stop after step 3 with the largest logit, the lowest id among equals, and draw nothing.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    eos: Vec<u32>,
    vocab: usize,
    seed: u64,
    rng: ChaCha8Rng,
    history: History,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler for a request whose prompt is `prompt`, over `vocab` tokens, of which `eos` end a sequence.
    ///
    /// `eos` matters to `min_new_tokens` only; ids beyond the vocabulary, here and in the prompt, have no
    /// effect.
    ///
    /// # Errors
    /// A parameter outside its range.
    pub fn new(
        params: &SamplingParams,
        prompt: &[u32],
        vocab: usize,
        eos: &[u32],
    ) -> Result<Self, ParamError> {
        params.validate()?;
        let seed = params.seed.unwrap_or_else(seed_from_system);
        Ok(Self {
            eos: eos.to_vec(),
            vocab,
            seed,
            rng: ChaCha8Rng::seed_from_u64(seed),
            history: History::new(params, prompt, vocab),
            candidates: Candidates::default(),
            params: *params,
        })
    }

    /// Chooses the next token and counts it as part of the output.
    ///
    /// `logits` holds one value per token of the vocabulary; masks and penalties are applied to it in
    /// place. NaN counts as -inf, +inf as the largest value. Nothing is allocated after the first call.
    ///
    /// # Errors
    /// A wrong number of logits, or none above -inf; then nothing was drawn and the output is as before.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32, SampleError> {
        if logits.len() != self.vocab {
            return Err(SampleError::LogitsLength { expected: self.vocab, found: logits.len() });
        }
        if self.history.output_len() < self.params.min_new_tokens {
            for &id in &self.eos {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        self.history.penalise(&self.params, logits);
        let token = if self.params.is_greedy() { candidates::argmax(logits) } else { self.draw(logits) };
        let token = token.ok_or(SampleError::NothingLeft)?;
        self.history.push(token);
        Ok(token)
    }

    /// The seed in use: the request's own, or the one that the operating system gave in its place.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    fn draw(&mut self, logits: &[f32]) -> Option<u32> {
        let kept = self.candidates.select(&self.params, logits)?;
        // The upper 53 bits are what an f64 in [0, 1) can hold.
        let uniform = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        candidates::draw(kept, uniform)
    }
}

/// Why no token could be chosen.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SampleError {
    /// The logits do not belong to this vocabulary.
    #[error("the sampler was given {found} logits for a vocabulary of {expected} tokens")]
    LogitsLength {
        /// Size of the vocabulary.
        expected: usize,
        /// Number of logits given.
        found: usize,
    },
    /// Every logit is -inf or NaN, so there is no token to choose.
    #[error("no token can be chosen: every logit is NaN or -inf, or is masked by min_new_tokens")]
    NothingLeft,
}

/// The standard library keys its hash maps from the operating system's generator, anew for each value: all
/// that a seed needs, which is no secret.
fn seed_from_system() -> u64 {
    RandomState::new().hash_one(0u64)
}

#[cfg(test)]
mod tests;
