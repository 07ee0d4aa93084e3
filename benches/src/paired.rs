//! Timing on a machine whose speed changes by the minute: a figure counts only beside the limit that was
//! measured right before and after it.

use std::time::Instant;

/// Medians over some samples.
#[derive(Clone, Copy, Debug)]
pub struct Paired {
    /// What was measured.
    pub value: f64,
    /// The limit next to it in time.
    pub limit: f64,
    /// Their ratio, sample by sample.
    pub fraction: f64,
}

/// Alternates `limit` and `work`, each of which runs once and returns its rate.
pub fn paired(samples: usize, mut limit: impl FnMut() -> f64, mut work: impl FnMut() -> f64) -> Paired {
    work();
    let mut before = limit();
    let (mut values, mut limits, mut fractions) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..samples.max(1) {
        let value = work();
        let after = limit();
        let mean = (before + after) / 2.0;
        values.push(value);
        limits.push(mean);
        fractions.push(value / mean);
        before = after;
    }
    Paired { value: median(&mut values), limit: median(&mut limits), fraction: median(&mut fractions) }
}

/// The middle one; the upper of the two middle ones of an even number.
///
/// # Panics
/// There are no values.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// `amount / 1e9` for each second that `work` takes.
pub fn giga_rate(amount: f64, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    amount / 1e9 / start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_pair_a_value_with_its_neighbours() {
        let mut limits = [10.0, 20.0, 20.0, 40.0].into_iter();
        let mut values = [0.0, 15.0, 10.0, 30.0].into_iter();
        let paired = paired(3, || limits.next().unwrap(), || values.next().unwrap());
        assert_eq!((paired.value, paired.limit, paired.fraction), (15.0, 20.0, 1.0));
    }
}
