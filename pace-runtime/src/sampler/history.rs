//! The tokens of one sequence, as far as penalties and the minimum length need them.

use super::SamplingParams;

/// Counts of the tokens seen so far. Without a penalty only the length of the output is kept.
#[derive(Debug)]
pub(super) struct History {
    /// By token id: 0 is not seen, n + 1 is seen, n times of them in the output. Empty without a penalty.
    seen: Vec<u32>,
    /// The ids with a count above 0, each once, so that a step costs what was said and not the vocabulary.
    pub(super) distinct: Vec<u32>,
    output_len: usize,
}

impl History {
    /// Starts with the prompt; ids beyond the vocabulary have no logit and are passed over.
    pub(super) fn new(params: &SamplingParams, prompt: &[u32], vocab: usize) -> Self {
        let penalised = params.repetition_penalty != 1.0
            || params.frequency_penalty != 0.0
            || params.presence_penalty != 0.0;
        let tracked = if penalised { vocab } else { 0 };
        let mut history =
            Self { seen: vec![0; tracked], distinct: Vec::with_capacity(tracked), output_len: 0 };
        for &id in prompt {
            history.note(id, 0);
        }
        history
    }

    /// How many tokens were made so far.
    pub(super) fn output_len(&self) -> usize {
        self.output_len
    }

    /// Appends one token to the output.
    pub(super) fn push(&mut self, id: u32) {
        self.output_len += 1;
        self.note(id, 1);
    }

    /// Applies the three penalties in place: repetition over prompt and output, then frequency and presence
    /// over the output alone.
    pub(super) fn penalise(&self, params: &SamplingParams, logits: &mut [f32]) {
        for &id in &self.distinct {
            let index = id as usize;
            let (Some(&seen), Some(logit)) = (self.seen.get(index), logits.get_mut(index)) else { continue };
            if *logit < 0.0 {
                *logit *= params.repetition_penalty;
            } else {
                *logit /= params.repetition_penalty;
            }
            if seen > 1 {
                *logit -= params.frequency_penalty * (seen - 1) as f32;
                *logit -= params.presence_penalty;
            }
        }
    }

    fn note(&mut self, id: u32, times: u32) {
        let Some(seen) = self.seen.get_mut(id as usize) else { return };
        if *seen == 0 {
            *seen = 1;
            self.distinct.push(id);
        }
        *seen = seen.saturating_add(times);
    }
}
