//! RoPE frequencies from a [`RopeSpec`], in f64.

use std::f64::consts::TAU;

use crate::{RopeScaling, RopeSpec};

/// Inverse frequencies of one model: radians a position, one per pair of dimensions.
#[derive(Clone, Debug)]
pub(crate) struct RopeFrequencies {
    spec: RopeSpec,
    head_dim: usize,
    base: Vec<f64>,
}

impl RopeFrequencies {
    pub(crate) fn new(spec: &RopeSpec, head_dim: usize) -> Self {
        let mut base = series(spec.theta, head_dim);
        match &spec.scaling {
            RopeScaling::Default | RopeScaling::Dynamic { .. } => {}
            RopeScaling::Linear { factor } => base.iter_mut().for_each(|f| *f /= factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max } => {
                let original = *original_max as f64;
                for f in &mut base {
                    *f = llama3(*f, *factor, *low_freq_factor, *high_freq_factor, original);
                }
            }
            RopeScaling::Factors { factors } => {
                base.iter_mut().zip(factors).for_each(|(f, factor)| *f /= f64::from(*factor));
            }
        }
        Self { spec: spec.clone(), head_dim, base }
    }

    /// Writes the frequencies for a sequence of `len` tokens into `out`. Only `dynamic` looks at the length: as in
    /// HF, the base grows with the longest position of the forward and keys already cached stay as they are.
    pub(crate) fn for_length(&self, len: usize, out: &mut Vec<f64>) {
        out.clear();
        match self.spec.scaling {
            RopeScaling::Dynamic { factor, original_max } if len > original_max => {
                let d = self.head_dim as f64;
                let stretch = factor * len as f64 / original_max as f64 - (factor - 1.0);
                let theta = self.spec.theta * stretch.powf(d / (d - 2.0));
                out.extend((0..self.head_dim / 2).map(|i| frequency(theta, i, self.head_dim)));
            }
            _ => out.extend_from_slice(&self.base),
        }
    }
}

fn frequency(theta: f64, pair: usize, head_dim: usize) -> f64 {
    theta.powf(-2.0 * pair as f64 / head_dim as f64)
}

fn series(theta: f64, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2).map(|i| frequency(theta, i, head_dim)).collect()
}

/// Llama 3.1: wavelengths beyond `original / low` are divided by `factor`, those below `original / high` kept,
/// between them the two are blended.
fn llama3(f: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = TAU / f;
    if wavelength < original / high {
        f
    } else if wavelength > original / low {
        f / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * f / factor + smooth * f
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(scaling: RopeScaling, len: usize) -> Vec<f64> {
        let mut out = Vec::new();
        RopeFrequencies::new(&RopeSpec { theta: 1e4, scaling }, 8).for_length(len, &mut out);
        out
    }

    #[test]
    fn default_is_a_geometric_series() {
        let f = frequencies(RopeScaling::Default, 1);
        for (got, want) in f.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((got - want).abs() < 1e-12 * want, "{got} {want}");
        }
    }

    #[test]
    fn linear_divides_every_frequency() {
        let (a, b) =
            (frequencies(RopeScaling::Default, 1), frequencies(RopeScaling::Linear { factor: 4.0 }, 1));
        assert!(a.iter().zip(&b).all(|(a, b)| (a / 4.0 - b).abs() < 1e-15));
    }

    #[test]
    fn dynamic_changes_nothing_up_to_the_trained_length() {
        let scaling = RopeScaling::Dynamic { factor: 2.0, original_max: 32 };
        assert_eq!(frequencies(scaling.clone(), 32), frequencies(RopeScaling::Default, 32));
        let longer = frequencies(scaling, 64);
        // theta * (2 * 64 / 32 - 1)^(8/6)
        let theta = 1e4 * 3f64.powf(8.0 / 6.0);
        assert!((longer[1] - theta.powf(-0.25)).abs() < 1e-12);
        assert_eq!(longer[0], 1.0);
    }

    #[test]
    fn llama3_keeps_short_and_divides_long_wavelengths() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max: 256,
        };
        let (a, b) = (frequencies(RopeScaling::Default, 1), frequencies(scaling, 1));
        assert_eq!(a[0], b[0]);
        assert_eq!(a[3] / 8.0, b[3]);
        // wavelength 62.8 lies just below 256 / 4 = 64: kept; 628 beyond 256: divided.
        assert_eq!(a[1], b[1]);
        assert_eq!(a[2] / 8.0, b[2]);
    }
}
