//! [`Scoring`]: from logits to log-probabilities of given tokens.

use std::sync::mpsc::Sender;

use pace_kernels::Kernels;

use crate::RuntimeError;
use crate::request::{Score, ScoreRequest, ScoreUpdate};

/// Tokens between two progress updates.
const PROGRESS_EVERY: usize = 64;

/// Reads a position and the logits of the token after it.
pub(crate) type ReadLogits = Box<dyn FnMut(usize, &[f32]) + Send>;

/// A score in the making.
pub(crate) struct Scoring {
    top: usize,
    /// The first token whose log-probability is wanted; at least 1.
    from: usize,
    score: Score,
    /// Who else wants the logits.
    read: Option<ReadLogits>,
    updates: Sender<ScoreUpdate>,
}

impl Scoring {
    pub(crate) fn new(
        request: &ScoreRequest,
        read: Option<ReadLogits>,
        updates: Sender<ScoreUpdate>,
    ) -> Self {
        let n = request.tokens.len();
        let from = request.from.clamp(1, n);
        let mut logprobs = Vec::with_capacity(n);
        logprobs.resize(from, None);
        Self { top: request.top, from, score: Score { logprobs, next: Vec::new() }, read, updates }
    }

    /// How many of the last tokens before token `end` need logits: the one before the first wanted, and on.
    pub(crate) fn outputs(&self, end: usize) -> usize {
        end.saturating_sub(self.from - 1)
    }

    /// Reads the logits after position `position` of `tokens`. True when they were the last ones.
    pub(crate) fn take_logits(
        &mut self,
        kernels: Kernels,
        tokens: &[u32],
        position: usize,
        logits: &[f32],
    ) -> bool {
        if let Some(read) = &mut self.read {
            read(position, logits);
        }
        let norm = kernels.log_sum_exp(logits);
        let Some(&next) = tokens.get(position + 1) else {
            self.score.next = most_likely(logits, norm, self.top);
            return true;
        };
        self.score.logprobs.push(Some(f64::from(logits[next as usize]) - norm));
        if position.is_multiple_of(PROGRESS_EVERY) {
            return self.updates.send(ScoreUpdate::Progress(position)).is_err();
        }
        false
    }

    pub(crate) fn fail(self, error: RuntimeError) {
        let Self { read, updates, .. } = self;
        drop(read);
        let _ = updates.send(ScoreUpdate::Failed(error));
    }

    pub(crate) fn finish(self) {
        let Self { score, read, updates, .. } = self;
        // What it holds is the caller's again when the end is heard of.
        drop(read);
        let _ = updates.send(ScoreUpdate::Finished(score));
    }
}

/// The `top` largest logits as log-probabilities, largest first, ties by id.
fn most_likely(logits: &[f32], norm: f64, top: usize) -> Vec<(u32, f64)> {
    let top = top.min(logits.len());
    if top == 0 {
        return Vec::new();
    }
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    ids.select_nth_unstable_by(top - 1, by_logit);
    ids.truncate(top);
    ids.sort_unstable_by(by_logit);
    ids.into_iter().map(|id| (id, f64::from(logits[id as usize]) - norm)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_likely_come_first_and_ties_go_by_id() {
        let logits = [0.5, 2.0, -1.0, 2.0, 1.0];
        let ids: Vec<u32> = most_likely(&logits, 0.0, 3).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, [1, 3, 4]);
        assert!(most_likely(&logits, 0.0, 0).is_empty());
        assert_eq!(most_likely(&logits, 1.0, 99).len(), 5);
    }
}
