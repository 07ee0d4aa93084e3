//! The sampler as a request sees it.

use proptest::prelude::*;

use super::*;

const NEG_INF: f32 = f32::NEG_INFINITY;

fn sampling(seed: u64) -> SamplingParams {
    SamplingParams { do_sample: true, seed: Some(seed), ..Default::default() }
}

fn sampler(params: &SamplingParams, prompt: &[u32], vocab: usize, eos: &[u32]) -> Sampler {
    Sampler::new(params, prompt, vocab, eos).expect("valid parameters")
}

/// Logits of step `step`, different for each, as a model's would be.
fn model(step: usize, vocab: usize) -> Vec<f32> {
    (0..vocab).map(|id| ((id * 37 + step * 101) % 61) as f32 * 0.1 - 3.0).collect()
}

fn run(params: &SamplingParams, steps: usize) -> Vec<u32> {
    let mut sampler = sampler(params, &[1, 2, 3], 97, &[0]);
    (0..steps).map(|step| sampler.sample(&mut model(step, 97)).expect("a token")).collect()
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let cases: [(&[f32], Result<u32, SampleError>); 7] = [
        (&[0.5, 2.0, 2.0, 1.0], Ok(1)),
        (&[-3.0, -1.0, -2.0], Ok(1)),
        (&[f32::NAN, NEG_INF, -5.0], Ok(2)),
        (&[1.0, f32::INFINITY, f32::MAX], Ok(1)),
        (&[NEG_INF, NEG_INF], Err(SampleError::NothingLeft)),
        (&[f32::NAN, f32::NAN], Err(SampleError::NothingLeft)),
        (&[], Err(SampleError::NothingLeft)),
    ];
    for (logits, expected) in cases {
        let mut sampler = sampler(&SamplingParams::default(), &[], logits.len(), &[]);
        assert_eq!(sampler.sample(&mut logits.to_vec()), expected, "{logits:?}");
    }
}

#[test]
fn sampling_without_a_candidate_is_an_error_and_draws_nothing() {
    let mut tried = sampler(&sampling(5), &[], 3, &[]);
    let mut fresh = sampler(&sampling(5), &[], 3, &[]);
    assert_eq!(tried.sample(&mut [NEG_INF, f32::NAN, NEG_INF]), Err(SampleError::NothingLeft));
    assert_eq!(tried.sample(&mut [0.0; 2]), Err(SampleError::LogitsLength { expected: 3, found: 2 }));
    for _ in 0..50 {
        assert_eq!(tried.sample(&mut [1.0; 3]), fresh.sample(&mut [1.0; 3]));
    }
}

#[test]
fn invalid_parameters_are_refused() {
    let params = SamplingParams { top_p: 0.0, ..Default::default() };
    assert_eq!(Sampler::new(&params, &[], 4, &[]).expect_err("top_p 0").name, "top_p");
}

#[test]
fn end_of_sequence_waits_for_the_minimum_length() {
    for do_sample in [false, true] {
        let params = SamplingParams { do_sample, min_new_tokens: 3, ..sampling(1) };
        // An id beyond the vocabulary is harmless.
        let mut sampler = sampler(&params, &[], 4, &[2, 3, 99]);
        let tokens: Vec<u32> =
            (0..4).map(|_| sampler.sample(&mut [0.0, 1.0, 90.0, 50.0]).expect("a token")).collect();
        assert!(tokens[..3].iter().all(|&t| t < 2), "{tokens:?}");
        assert_eq!(tokens[3], 2);
    }
}

#[test]
fn a_minimum_length_that_masks_everything_is_an_error() {
    let params = SamplingParams { min_new_tokens: 1, ..Default::default() };
    assert_eq!(sampler(&params, &[], 1, &[0]).sample(&mut [1.0]), Err(SampleError::NothingLeft));
}

#[test]
fn penalties_change_the_logits_as_defined() {
    // Token 0 is in the prompt (twice, counted once), 1 in the output twice, 2 in both, 3 nowhere.
    let penalised = |params: SamplingParams, logits: [f32; 4]| {
        let mut sampler = sampler(&params, &[0, 0, 2, 77], 4, &[]);
        for token in [1, 2, 1] {
            let mut forced = [NEG_INF; 4];
            forced[token] = 1.0;
            assert_eq!(sampler.sample(&mut forced), Ok(token as u32));
        }
        let mut logits = logits;
        sampler.sample(&mut logits).expect("a token");
        logits
    };
    let p = SamplingParams::default();
    let mixed = [3.0, -3.0, 6.0, 5.0];
    assert_eq!(penalised(p, mixed), mixed);
    let repetition = SamplingParams { repetition_penalty: 2.0, ..p };
    assert_eq!(penalised(repetition, mixed), [1.5, -6.0, 3.0, 5.0]);
    let frequency = SamplingParams { frequency_penalty: 0.5, ..p };
    assert_eq!(penalised(frequency, mixed), [3.0, -4.0, 5.5, 5.0]);
    let presence = SamplingParams { presence_penalty: 0.25, ..p };
    assert_eq!(penalised(presence, mixed), [3.0, -3.25, 5.75, 5.0]);
    let all =
        SamplingParams { repetition_penalty: 2.0, frequency_penalty: 0.5, presence_penalty: -0.25, ..p };
    assert_eq!(penalised(all, mixed), [1.5, -6.75, 2.75, 5.0]);
}

#[test]
fn a_penalty_steers_greedy_decoding_away_from_what_was_said() {
    let params = SamplingParams { repetition_penalty: 2.0, ..Default::default() };
    let mut sampler = sampler(&params, &[0], 3, &[]);
    let logits = [4.0f32, 3.9, 2.5];
    let tokens: Vec<u32> = (0..3).map(|_| sampler.sample(&mut logits.clone()).expect("a token")).collect();
    assert_eq!(tokens, [1, 2, 0]);
}

#[test]
fn the_seed_decides_and_is_reported() {
    let params = SamplingParams { top_p: 0.9, temperature: 1.3, ..sampling(42) };
    assert_eq!(run(&params, 64), run(&params, 64));
    assert_ne!(run(&params, 64), run(&SamplingParams { seed: Some(43), ..params }, 64));

    let unseeded = SamplingParams { seed: None, ..params };
    let mut first = sampler(&unseeded, &[1, 2, 3], 97, &[0]);
    assert_ne!(first.seed(), sampler(&unseeded, &[], 97, &[]).seed());
    let tokens: Vec<u32> = (0..64).map(|step| first.sample(&mut model(step, 97)).expect("a token")).collect();
    assert_eq!(tokens, run(&SamplingParams { seed: Some(first.seed()), ..params }, 64));
}

#[test]
fn drawn_tokens_are_pinned_for_a_seed() {
    // A change here breaks every user's recorded seed.
    let params = SamplingParams { top_k: 20, top_p: 0.95, ..sampling(7) };
    assert_eq!(run(&params, 8), [89, 78, 90, 79, 73, 72, 38, 68]);
}

#[test]
fn draws_follow_the_distribution() {
    const DRAWS: usize = 40_000;
    let params = SamplingParams { temperature: 0.7, ..sampling(2024) };
    let logits: Vec<f32> = (0..20).map(|id| ((id * 7) % 20) as f32 * 0.12).collect();
    let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / f64::from(0.7f32)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut sampler = sampler(&params, &[], 20, &[]);
    let mut counts = [0usize; 20];
    for _ in 0..DRAWS {
        counts[sampler.sample(&mut logits.clone()).expect("a token") as usize] += 1;
    }
    let chi_square: f64 = counts
        .iter()
        .zip(&weights)
        .map(|(&count, weight)| {
            let expected = DRAWS as f64 * weight / total;
            (count as f64 - expected).powi(2) / expected
        })
        .sum();
    // 19 degrees of freedom: 43.8 is passed by chance once in a thousand seeds, and the seed is fixed.
    assert!(chi_square < 43.8, "chi-square {chi_square}");
}

#[test]
fn buffers_are_allocated_once() {
    let params = SamplingParams { top_k: 50, top_p: 0.9, repetition_penalty: 1.1, ..sampling(3) };
    let mut sampler = sampler(&params, &[], 97, &[]);
    sampler.sample(&mut model(0, 97)).expect("a token");
    let capacities = |s: &Sampler| {
        [s.candidates.list.capacity(), s.candidates.scratch.capacity(), s.history.distinct.capacity()]
    };
    let before = capacities(&sampler);
    for step in 1..200 {
        sampler.sample(&mut model(step, 97)).expect("a token");
        sampler.sample(&mut [0.5; 97]).expect("a token");
    }
    assert_eq!(before, capacities(&sampler));
}

proptest! {
    #[test]
    fn requests_do_not_disturb_each_other(order in prop::collection::vec(any::<bool>(), 1..80)) {
        let params = [
            SamplingParams { temperature: 1.5, frequency_penalty: 0.3, ..sampling(11) },
            SamplingParams { top_k: 30, min_p: 0.05, ..sampling(11) },
        ];
        let mut samplers = params.each_ref().map(|p| sampler(p, &[1, 2, 3], 97, &[0]));
        let mut tokens = [Vec::new(), Vec::new()];
        for second in order {
            let which = usize::from(second);
            let step = tokens[which].len();
            tokens[which].push(samplers[which].sample(&mut model(step, 97)).expect("a token"));
        }
        for (params, tokens) in params.iter().zip(&tokens) {
            prop_assert_eq!(&run(params, tokens.len()), tokens);
        }
    }
}
