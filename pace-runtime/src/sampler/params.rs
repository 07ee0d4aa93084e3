//! What a request may ask of the sampler, and the ranges in which it makes sense.

use thiserror::Error;

/// A temperature below this is greedy decoding: dividing by it would leave one token anyway.
pub const GREEDY_TEMPERATURE: f32 = 1e-5;

/// How the next token is chosen from the logits.
///
/// The default is greedy decoding with every filter and penalty off. The fields are applied in the order in
/// which [`Sampler`](super::Sampler) lists them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Draw at random; otherwise the most probable token is taken.
    pub do_sample: bool,
    /// Divides the logits before the softmax: 0 or more, below [`GREEDY_TEMPERATURE`] means greedy.
    pub temperature: f32,
    /// Keeps the `top_k` largest logits and their equals; 0 is off.
    pub top_k: usize,
    /// Keeps the smallest set of most probable tokens whose mass reaches `top_p`, in (0, 1]; 1 is off.
    pub top_p: f32,
    /// Drops tokens less probable than `min_p` times the most probable one, in [0, 1]; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the output; above 0, 1 is
    /// off.
    pub repetition_penalty: f32,
    /// Subtracted from a token's logit once for every time the output has it; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted from a token's logit if the output has it; 0 is off.
    pub presence_penalty: f32,
    /// Seed of the request's own generator; `None` takes one from the operating system.
    pub seed: Option<u64>,
    /// End-of-sequence tokens are not chosen before this many tokens were made.
    pub min_new_tokens: usize,
}

impl SamplingParams {
    /// Checks every parameter against its range.
    ///
    /// # Errors
    /// The first parameter outside its range, with its value and what is allowed.
    pub fn validate(&self) -> Result<(), ParamError> {
        let any = |v: f32| v.is_finite();
        check("temperature", self.temperature, "finite and at least 0", |v| v.is_finite() && v >= 0.0)?;
        check("top_p", self.top_p, "above 0 and at most 1", |v| v > 0.0 && v <= 1.0)?;
        check("min_p", self.min_p, "between 0 and 1", |v| (0.0..=1.0).contains(&v))?;
        let positive = |v: f32| v.is_finite() && v > 0.0;
        check("repetition_penalty", self.repetition_penalty, "finite and above 0", positive)?;
        check("frequency_penalty", self.frequency_penalty, "finite", any)?;
        check("presence_penalty", self.presence_penalty, "finite", any)
    }

    /// Whether the most probable token is taken, without a draw.
    pub fn is_greedy(&self) -> bool {
        !self.do_sample || self.temperature < GREEDY_TEMPERATURE
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            do_sample: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: None,
            min_new_tokens: 0,
        }
    }
}

/// A sampling parameter outside its range.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{name} is {value}, but must be {allowed}")]
pub struct ParamError {
    /// The field of [`SamplingParams`].
    pub name: &'static str,
    /// The value it was given.
    pub value: f32,
    /// The allowed range, in words.
    pub allowed: &'static str,
}

fn check(
    name: &'static str,
    value: f32,
    allowed: &'static str,
    is_valid: impl Fn(f32) -> bool,
) -> Result<(), ParamError> {
    if is_valid(value) { Ok(()) } else { Err(ParamError { name, value, allowed }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_valid_and_greedy() {
        let params = SamplingParams::default();
        assert_eq!(params.validate(), Ok(()));
        assert!(params.is_greedy());
    }

    #[test]
    fn tiny_temperature_is_greedy() {
        let at = |temperature| SamplingParams { do_sample: true, temperature, ..Default::default() };
        assert!(at(0.0).is_greedy());
        assert!(at(9.9e-6).is_greedy());
        assert!(!at(1e-5).is_greedy());
    }

    #[test]
    fn values_outside_the_range_are_named() {
        type Set = fn(&mut SamplingParams, f32);
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let cases: [(&str, Set, &[f32], &[f32]); 6] = [
            ("temperature", |p, v| p.temperature = v, &[-0.1, nan, inf], &[0.0, 1e-7, 2.0, 100.0]),
            ("top_p", |p, v| p.top_p = v, &[0.0, -0.5, 1.01, nan, inf], &[1e-6, 0.5, 1.0]),
            ("min_p", |p, v| p.min_p = v, &[-0.01, 1.01, nan, inf], &[0.0, 0.5, 1.0]),
            ("repetition_penalty", |p, v| p.repetition_penalty = v, &[0.0, -1.0, nan, inf], &[0.5, 1.0, 3.0]),
            ("frequency_penalty", |p, v| p.frequency_penalty = v, &[nan, inf, -inf], &[-2.0, 0.0, 2.0]),
            ("presence_penalty", |p, v| p.presence_penalty = v, &[nan, inf, -inf], &[-2.0, 0.0, 2.0]),
        ];
        for (name, set, bad, good) in cases {
            for &value in good {
                let mut params = SamplingParams::default();
                set(&mut params, value);
                assert_eq!(params.validate(), Ok(()), "{name} = {value}");
            }
            for &value in bad {
                let mut params = SamplingParams::default();
                set(&mut params, value);
                let error = params.validate().expect_err("outside the range");
                assert_eq!(error.name, name);
                assert!(
                    error.to_string().starts_with(&format!("{name} is {value}, but must be ")),
                    "{error}"
                );
            }
        }
    }
}
