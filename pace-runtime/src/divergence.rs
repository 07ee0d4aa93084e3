//! [`Divergence`]: how far the next-token distributions of one model are from those of another.

use thiserror::Error;

/// What is known of two models after some positions of a text. It grows by 4 bytes a position.
#[derive(Clone, Debug, Default)]
pub struct Divergence {
    /// KL divergence of each position, in nats.
    kl: Vec<f32>,
    kl_sum: f64,
    same_top1: usize,
    reference_nll: f64,
    model_nll: f64,
    logprob_diff: f64,
}

/// A [`Divergence`] over all positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DivergenceSummary {
    /// Positions compared.
    pub tokens: usize,
    /// Mean of KL(reference || model), in nats.
    pub mean_kl: f64,
    /// The smallest KL(reference || model), in nats, that 99 % of the positions do not exceed.
    pub p99_kl: f64,
    /// The part of the positions, from 0 to 1, where both hold the same token for the most likely one.
    pub same_top1: f64,
    /// `exp` of the mean negative log-probability that the reference gives to the text's own tokens.
    pub reference_perplexity: f64,
    /// The same of the model.
    pub model_perplexity: f64,
    /// The model's perplexity by the reference's.
    pub perplexity_ratio: f64,
    /// Mean absolute difference of the natural log-probabilities of the text's own tokens.
    pub mean_abs_logprob_diff: f64,
}

/// Logits that no distribution can be made of.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DivergenceError {
    /// Those of the reference.
    #[error("the reference predicts nothing: its logits hold NaN or +inf, or nothing above -inf")]
    Reference,
    /// Those of the model.
    #[error("the model predicts nothing: its logits hold NaN or +inf, or nothing above -inf")]
    Model,
}

impl Divergence {
    /// Adds a position: `[vocab]` logits of both, and the text's own token `next` there. Everything is computed in f64. A
    /// token that the model excludes (-inf) and the reference does not makes the divergence infinite.
    ///
    /// # Errors
    /// The logits of one of them hold NaN or +inf, or nothing above -inf.
    ///
    /// # Panics
    /// The rows have different lengths, or `next` lies beyond them.
    pub fn add(&mut self, reference: &[f32], model: &[f32], next: u32) -> Result<(), DivergenceError> {
        assert_eq!(reference.len(), model.len(), "rows of logits of two vocabularies");
        let (top, max) = peak(reference).ok_or(DivergenceError::Reference)?;
        let (model_top, model_max) = peak(model).ok_or(DivergenceError::Model)?;
        let (mut sum, mut model_sum, mut weighted) = (0.0, 0.0, 0.0);
        for (&r, &m) in reference.iter().zip(model) {
            let (r, m) = (f64::from(r), f64::from(m));
            let p = (r - max).exp();
            sum += p;
            model_sum += (m - model_max).exp();
            // -inf has no part in the sum, and would make it NaN.
            if p > 0.0 {
                weighted += p * (r - m);
            }
        }
        let norm = finite(max + f64::ln(sum)).ok_or(DivergenceError::Reference)?;
        let model_norm = finite(model_max + f64::ln(model_sum)).ok_or(DivergenceError::Model)?;
        // Rounding can leave a little less than nothing.
        let kl = (weighted / sum - (norm - model_norm)).max(0.0);
        let logprob = f64::from(reference[next as usize]) - norm;
        let model_logprob = f64::from(model[next as usize]) - model_norm;
        self.kl.push(kl as f32);
        self.kl_sum += kl;
        self.same_top1 += usize::from(top == model_top);
        self.reference_nll -= logprob;
        self.model_nll -= model_logprob;
        self.logprob_diff += difference(logprob, model_logprob).abs();
        Ok(())
    }

    /// The figures; none without a position.
    pub fn summary(&self) -> Option<DivergenceSummary> {
        let tokens = self.kl.len();
        let n = tokens as f64;
        Some(DivergenceSummary {
            tokens,
            mean_kl: self.kl_sum / n,
            p99_kl: percentile(&self.kl, 99)?,
            same_top1: self.same_top1 as f64 / n,
            reference_perplexity: (self.reference_nll / n).exp(),
            model_perplexity: (self.model_nll / n).exp(),
            perplexity_ratio: (difference(self.model_nll, self.reference_nll) / n).exp(),
            mean_abs_logprob_diff: self.logprob_diff / n,
        })
    }
}

/// The first of the largest logits, if that is a number.
fn peak(logits: &[f32]) -> Option<(usize, f64)> {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    Some((best.0, finite(f64::from(best.1))?))
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

/// `a - b`; equal infinities have no difference.
fn difference(a: f64, b: f64) -> f64 {
    if a == b { 0.0 } else { a - b }
}

/// The smallest value that `percent` of all do not exceed (nearest rank).
fn percentile(values: &[f32], percent: usize) -> Option<f64> {
    let rank = (values.len() * percent).div_ceil(100).checked_sub(1)?;
    let mut values = values.to_vec();
    let (_, value, _) = values.select_nth_unstable_by(rank, f32::total_cmp);
    Some(f64::from(*value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: f32 = f32::NEG_INFINITY;

    fn of(rows: &[(&[f32], &[f32], u32)]) -> DivergenceSummary {
        let mut divergence = Divergence::default();
        for (reference, model, next) in rows {
            divergence.add(reference, model, *next).unwrap();
        }
        divergence.summary().unwrap()
    }

    /// Logits of probabilities, moved by a number that no distribution shows.
    fn logits<const N: usize>(probabilities: [f64; N], by: f64) -> [f32; N] {
        probabilities.map(|p| (p.ln() + by) as f32)
    }

    fn assert_near(value: f64, want: f64) {
        assert!((value - want).abs() < 1e-6, "{value} is not {want}");
    }

    #[test]
    fn figures_are_those_of_a_calculation_by_hand() {
        let (p, q) = (logits([0.5, 0.25, 0.25], 3.0), logits([0.25, 0.5, 0.25], -7.0));
        let one = of(&[(&p, &q, 0)]);
        // 0.5 ln(0.5 / 0.25) + 0.25 ln(0.25 / 0.5) + 0.25 ln(0.25 / 0.25)
        assert_near(one.mean_kl, 0.25 * 2f64.ln());
        assert_near(one.p99_kl, 0.25 * 2f64.ln());
        assert_eq!((one.tokens, one.same_top1), (1, 0.0));
        assert_near(one.reference_perplexity, 2.0);
        assert_near(one.model_perplexity, 4.0);
        assert_near(one.perplexity_ratio, 2.0);
        assert_near(one.mean_abs_logprob_diff, 2f64.ln());
        // Differences of both signs do not cancel, and equal rows count.
        let three = of(&[(&p, &q, 0), (&p, &q, 1), (&p, &p, 2)]);
        assert_near(three.mean_kl, 2.0 / 3.0 * 0.25 * 2f64.ln());
        assert_near(three.same_top1, 1.0 / 3.0);
        assert_near(three.perplexity_ratio, 1.0);
        assert_near(three.mean_abs_logprob_diff, 2.0 / 3.0 * 2f64.ln());
    }

    #[test]
    fn equal_rows_do_not_differ_at_all() {
        let row: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 7.0 - 5.0).collect();
        let same = of(&[(&row, &row, 3), (&[NEVER, 2.0], &[NEVER, 2.0], 0)]);
        assert_eq!((same.mean_kl, same.p99_kl, same.mean_abs_logprob_diff), (0.0, 0.0, 0.0));
        assert_eq!((same.same_top1, same.perplexity_ratio), (1.0, 1.0));
    }

    #[test]
    fn the_sum_is_over_all_tokens_and_never_below_0() {
        let row = |f: fn(f64) -> f64| (0..257).map(|i| f(f64::from(i)) as f32).collect::<Vec<_>>();
        let (p, q) = (row(|i| (i * 0.7).sin() * 4.0), row(|i| (i * 0.7).sin() * 4.1 + (i * 1.3).cos() * 0.2));
        let soft = |logits: &[f32]| {
            let all: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
            let sum: f64 = all.iter().sum();
            all.iter().map(|e| e / sum).collect::<Vec<f64>>()
        };
        let want: f64 = soft(&p).iter().zip(soft(&q)).map(|(p, q)| p * (p / q).ln()).sum();
        assert!(want > 1e-3 && (of(&[(&p, &q, 0)]).mean_kl - want).abs() < 1e-12, "{want}");
        // The same distribution, but for the rounding of a shift.
        let moved: Vec<f32> = p.iter().map(|x| x + 0.1).collect();
        assert!((0.0..1e-12).contains(&of(&[(&p, &moved, 0)]).mean_kl));
    }

    #[test]
    fn excluded_tokens_and_huge_logits_make_no_nan() {
        // What the reference excludes has no part in it.
        assert_near(of(&[(&[0.0, NEVER], &[0.0, 0.0], 0)]).mean_kl, 2f64.ln());
        let excluded = of(&[(&[0.0, 0.0], &[0.0, NEVER], 1)]);
        assert_eq!((excluded.mean_kl, excluded.model_perplexity), (f64::INFINITY, f64::INFINITY));
        assert_eq!(excluded.perplexity_ratio, f64::INFINITY);
        let huge = of(&[(&[3e38, -3e38, 0.0], &[3e38, 0.0, -3e38], 0)]);
        assert_eq!((huge.mean_kl, huge.same_top1, huge.model_perplexity), (0.0, 1.0, 1.0));
        let far = of(&[(&[3e38, -3e38], &[-3e38, 3e38], 0)]);
        assert!(far.mean_kl > 5e38 && far.mean_kl.is_finite(), "{}", far.mean_kl);
    }

    #[test]
    fn what_is_no_distribution_is_refused_and_not_counted() {
        let good: &[f32] = &[0.0, 1.0];
        let mut divergence = Divergence::default();
        assert_eq!(divergence.summary(), None);
        for bad in [[f32::NAN, 1.0], [1.0, f32::NAN], [f32::INFINITY, 0.0], [NEVER; 2]] {
            assert_eq!(divergence.add(&bad, good, 0), Err(DivergenceError::Reference), "{bad:?}");
            assert_eq!(divergence.add(good, &bad, 0), Err(DivergenceError::Model), "{bad:?}");
        }
        divergence.add(good, good, 0).unwrap();
        assert_eq!(divergence.summary().map(|s| s.tokens), Some(1));
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let values: Vec<f32> = (1..=200u8).rev().map(f32::from).collect();
        assert_eq!(percentile(&values, 99), Some(198.0));
        assert_eq!(percentile(&values[..100], 99), Some(199.0));
        assert_eq!(percentile(&[7.0], 99), Some(7.0));
        assert_eq!(percentile(&[7.0, f32::INFINITY], 99), Some(f64::INFINITY));
        assert_eq!(percentile(&[], 99), None);
    }
}
