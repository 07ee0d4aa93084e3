//! The tokens that may still be drawn: temperature, top-k, top-p, min-p and the draw itself.
//!
//! Filters follow Hugging Face transformers' warpers. Temperature is applied inside the softmax, in f64,
//! where a small one cannot overflow; it keeps the order of the logits, so top-k may look at them before.
//! Top-k needs the k-th largest logit only, top-p the best tokens up to its mass only: both select, neither
//! sorts the vocabulary.

use std::cmp::Ordering;

use super::SamplingParams;

/// How many tokens top-p sorts first; most nuclei are smaller. Each further block is `NUCLEUS_GROWTH` times
/// as large.
const NUCLEUS_BLOCK: usize = 128;
const NUCLEUS_GROWTH: usize = 8;

/// A token with its weight: its probability relative to the most probable token, in (0, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) weight: f64,
}

/// The candidates of one step, in buffers that live as long as the request.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    pub(super) list: Vec<Candidate>,
    pub(super) scratch: Vec<f32>,
}

impl Candidates {
    /// Applies temperature and filters to the logits and returns what is left; `None` if no logit is above
    /// -inf.
    pub(super) fn select(&mut self, params: &SamplingParams, logits: &[f32]) -> Option<&[Candidate]> {
        let best = logits[argmax(logits)? as usize];
        let floor =
            if params.top_k == 0 { f32::NEG_INFINITY } else { self.kth_largest(logits, params.top_k) };
        self.weigh(logits, best, floor, f64::from(params.temperature));
        if params.top_p < 1.0 {
            self.keep_top_p(params.top_p);
        }
        if params.min_p > 0.0 {
            self.list.retain(|c| c.weight as f32 >= params.min_p);
        }
        Some(&self.list)
    }

    /// The k-th largest logit, or -inf if there are not more than `k` above it.
    fn kth_largest(&mut self, logits: &[f32], k: usize) -> f32 {
        self.scratch.clear();
        self.scratch.reserve(logits.len());
        self.scratch.extend(logits.iter().copied().filter(|&l| l > f32::NEG_INFINITY));
        if self.scratch.len() <= k {
            return f32::NEG_INFINITY;
        }
        *self.scratch.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
    }

    /// Lists, in the order of ids, the tokens at or above `floor` whose weight is not too small for f64.
    fn weigh(&mut self, logits: &[f32], best: f32, floor: f32, temperature: f64) {
        self.list.clear();
        self.list.reserve(logits.len());
        for (id, &logit) in (0..).zip(logits) {
            if logit > f32::NEG_INFINITY && logit >= floor {
                // Equality first: the difference of two infinite logits is no number.
                let distance = if logit == best { 0.0 } else { f64::from(logit) - f64::from(best) };
                let weight = (distance / temperature).exp();
                if weight > 0.0 {
                    self.list.push(Candidate { id, weight });
                }
            }
        }
    }

    /// Keeps a token if the mass of all tokens before it is below `top_p`, so at least one.
    fn keep_top_p(&mut self, top_p: f32) {
        let total = mass(&self.list);
        let (mut kept, mut before, mut block) = (0, 0.0, NUCLEUS_BLOCK);
        while kept < self.list.len() {
            let rest = &mut self.list[kept..];
            let len = block.min(rest.len());
            if len < rest.len() {
                rest.select_nth_unstable_by(len, rank);
            }
            rest[..len].sort_unstable_by(rank);
            for candidate in &rest[..len] {
                kept += 1;
                before += candidate.weight;
                // Compared in the precision of `top_p`: 8 of 10 equal tokens do reach 0.8.
                if (before / total) as f32 >= top_p {
                    self.list.truncate(kept);
                    return;
                }
            }
            block = block.saturating_mul(NUCLEUS_GROWTH);
        }
    }
}

/// The first of the largest logits; NaN counts as -inf, and `None` says that nothing is above that.
pub(super) fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best = None;
    let mut largest = f32::NEG_INFINITY;
    for (id, &logit) in (0..).zip(logits) {
        if logit > largest {
            largest = logit;
            best = Some(id);
        }
    }
    best
}

/// The candidate at the fraction `uniform` of the whole mass, with `uniform` in [0, 1); `None` without
/// candidates.
pub(super) fn draw(candidates: &[Candidate], uniform: f64) -> Option<u32> {
    let target = uniform * mass(candidates);
    let mut reached = 0.0;
    let hit = candidates.iter().find(|c| {
        reached += c.weight;
        reached > target
    });
    // The product may round up to the whole mass: then the last one is meant.
    hit.or_else(|| candidates.last()).map(|c| c.id)
}

fn mass(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| c.weight).sum()
}

/// Most probable first, the lower id first among equals: a total order, so that the result does not depend
/// on how a selection shuffles.
fn rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The warpers of transformers, one after the other on a whole vector of scores, with plain sorts.
    /// `None` when top-p or min-p hangs on a rounding, where two right answers may differ.
    fn naive(params: &SamplingParams, logits: &[f32]) -> Option<Vec<f64>> {
        let mut scores: Vec<f64> =
            logits.iter().map(|&l| f64::from(l) / f64::from(params.temperature)).collect();
        if params.top_k > 0 {
            let mut sorted = scores.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let kth = sorted[params.top_k.min(sorted.len()) - 1];
            scores.iter_mut().filter(|s| **s < kth).for_each(|s| *s = f64::NEG_INFINITY);
        }
        if params.top_p < 1.0 {
            let probs = softmax(&scores);
            let mut ascending: Vec<usize> = (0..scores.len()).collect();
            ascending.sort_by(|&a, &b| probs[a].total_cmp(&probs[b]).then(b.cmp(&a)));
            let (bound, mut cumulative) = (1.0 - f64::from(params.top_p), 0.0);
            for &id in &ascending[..ascending.len() - 1] {
                cumulative += probs[id];
                if (cumulative - bound).abs() < 1e-6 {
                    return None;
                }
                if cumulative <= bound {
                    scores[id] = f64::NEG_INFINITY;
                }
            }
        }
        let probs = softmax(&scores);
        let bound = f64::from(params.min_p) * probs.iter().copied().fold(0.0, f64::max);
        if probs.iter().any(|&p| params.min_p < 1.0 && (p - bound).abs() < 1e-6 * bound) {
            return None;
        }
        scores.iter_mut().zip(&probs).filter(|(_, p)| **p < bound).for_each(|(s, _)| *s = f64::NEG_INFINITY);
        Some(softmax(&scores))
    }

    fn softmax(scores: &[f64]) -> Vec<f64> {
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exps: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f64 = exps.iter().sum();
        exps.iter().map(|e| e / sum).collect()
    }

    fn probabilities(candidates: &[Candidate], vocab: usize) -> Vec<f64> {
        let mut probs = vec![0.0; vocab];
        for candidate in candidates {
            probs[candidate.id as usize] = candidate.weight / mass(candidates);
        }
        probs
    }

    /// Logits with and without ties, some of them masked.
    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let tied = (-8i32..8).prop_map(|v| v as f32 * 0.5);
        let value = prop_oneof![4 => -12.0f32..12.0, 4 => tied, 1 => Just(f32::NEG_INFINITY)];
        let (few, many) =
            (prop::collection::vec(value.clone(), 1..40), prop::collection::vec(value, 400..1500));
        prop_oneof![3 => few, 1 => many]
            .prop_filter("a token must be left", |l| l.iter().any(|&v| v > f32::NEG_INFINITY))
    }

    fn params() -> impl Strategy<Value = SamplingParams> {
        let top_k = prop_oneof![Just(0usize), 1usize..60, Just(usize::MAX)];
        let top_p = prop_oneof![Just(1.0f32), 0.001f32..1.0];
        let min_p = prop_oneof![Just(0.0f32), 0.001f32..0.999, Just(1.0f32)];
        (0.2f32..20.0, top_k, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| SamplingParams {
            do_sample: true,
            temperature,
            top_k,
            top_p,
            min_p,
            ..Default::default()
        })
    }

    proptest! {
        #[test]
        fn filters_agree_with_the_plain_ones(params in params(), logits in logits()) {
            let Some(expected) = naive(&params, &logits) else { return Ok(()) };
            let mut candidates = Candidates::default();
            let kept = candidates.select(&params, &logits).expect("a token is left");
            for (id, (got, want)) in probabilities(kept, logits.len()).iter().zip(&expected).enumerate() {
                prop_assert!((got - want).abs() < 1e-9, "token {id}: {got} for {want}");
                prop_assert_eq!(*got > 0.0, *want > 0.0, "token {}", id);
            }
        }

        #[test]
        fn a_draw_is_the_inverse_of_the_cumulative_mass(
            weights in prop::collection::vec(1e-12f64..1.0, 1..50),
            uniform in 0.0f64..1.0,
        ) {
            let list: Vec<_> = (0..).zip(&weights).map(|(id, &weight)| Candidate { id, weight }).collect();
            let id = draw(&list, uniform).expect("not empty") as usize;
            let before: f64 = weights[..id].iter().sum();
            let total: f64 = weights.iter().sum();
            prop_assert!(before <= uniform * total);
            prop_assert!(id + 1 == weights.len() || before + weights[id] > uniform * total);
        }
    }

    fn kept(params: &SamplingParams, logits: &[f32]) -> Vec<u32> {
        let mut candidates = Candidates::default();
        let list = candidates.select(params, logits).expect("a token is left");
        let mut ids: Vec<u32> = list.iter().map(|c| c.id).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn each_filter_alone() {
        let p = SamplingParams { do_sample: true, ..Default::default() };
        let logits: Vec<f32> = [0.4f32, 0.1, 0.3, 0.2].iter().map(|p| p.ln()).collect();
        assert_eq!(kept(&p, &logits), [0, 1, 2, 3]);
        assert_eq!(kept(&SamplingParams { top_k: 2, ..p }, &logits), [0, 2]);
        assert_eq!(kept(&SamplingParams { top_p: 0.35, ..p }, &logits), [0]);
        assert_eq!(kept(&SamplingParams { top_p: 0.45, ..p }, &logits), [0, 2]);
        assert_eq!(kept(&SamplingParams { top_p: 0.95, ..p }, &logits), [0, 1, 2, 3]);
        assert_eq!(kept(&SamplingParams { min_p: 0.45, ..p }, &logits), [0, 2, 3]);
        // Top-p sees the mass that top-k left: 0.4 of 0.7 is not enough.
        assert_eq!(kept(&SamplingParams { top_k: 2, top_p: 0.6, ..p }, &logits), [0, 2]);
    }

    #[test]
    fn equals_of_the_last_are_kept_by_top_k_and_cut_by_top_p() {
        let p = SamplingParams { do_sample: true, ..Default::default() };
        let logits = [1.0f32; 10];
        assert_eq!(kept(&SamplingParams { top_k: 1, ..p }, &logits).len(), 10);
        assert_eq!(kept(&SamplingParams { top_p: 0.8, ..p }, &logits), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(kept(&SamplingParams { min_p: 1.0, ..p }, &logits).len(), 10);
    }

    #[test]
    fn infinite_logits_and_a_tiny_temperature_have_a_result() {
        let p = SamplingParams { do_sample: true, temperature: 1e-5, ..Default::default() };
        assert_eq!(kept(&p, &[1.0, f32::INFINITY, f32::NAN, f32::INFINITY]), [1, 3]);
        assert_eq!(kept(&p, &[f32::MAX, -f32::MAX, f32::NEG_INFINITY]), [0]);
        assert_eq!(kept(&SamplingParams { top_k: 1, ..p }, &[f32::NAN, 1.0, f32::NAN]), [1]);
    }
}
