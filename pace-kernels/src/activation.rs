//! Activation functions of feed-forward layers.

use std::fmt;
use std::str::FromStr;

use crate::Kernels;

/// An element-wise activation function.
///
/// | variant | names in model configurations | formula | error |
/// |---|---|---|---|
/// | `Silu` | `silu`, `swish` | x / (1 + e^-x) | 5e-7 relative |
/// | `Gelu` | `gelu` | x (1 + erf(x / sqrt 2)) / 2 | 2e-7 times abs(x) |
/// | `GeluTanh` | `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast` | x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 | 5e-7 times abs(x) |
/// | `Relu` | `relu` | max(x, 0) | none |
///
/// NaN gives NaN. Any finite input gives a finite result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// The sigmoid-weighted unit, also called swish.
    Silu,
    /// The Gaussian error unit, by the error function.
    Gelu,
    /// The Gaussian error unit, by its tanh approximation.
    GeluTanh,
    /// The rectifier.
    Relu,
}

impl Activation {
    /// Every function.
    pub const ALL: [Self; 4] = [Self::Silu, Self::Gelu, Self::GeluTanh, Self::Relu];
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_pytorch_tanh",
            Self::Relu => "relu",
        })
    }
}

/// No activation function has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown activation `{0}`; known: silu, swish, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu")]
pub struct UnknownActivation(pub String);

impl FromStr for Activation {
    type Err = UnknownActivation;

    /// The names of model configurations, see [`Activation`].
    fn from_str(name: &str) -> Result<Self, UnknownActivation> {
        match name {
            "silu" | "swish" => Ok(Self::Silu),
            "gelu" => Ok(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Self::GeluTanh),
            "relu" => Ok(Self::Relu),
            _ => Err(UnknownActivation(name.to_owned())),
        }
    }
}

impl Kernels {
    /// x = act(x).
    pub fn activate(&self, kind: Activation, x: &mut [f32]) {
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().activate)(kind, x) }
    }

    /// out = act(gate) * up.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn act_mul(&self, kind: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && gate.len() == out.len(), "lengths of gate, up and output");
        // SAFETY: the CPU has this table's tier.
        unsafe { (self.table().act_mul)(kind, gate, up, out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_configurations() {
        for kind in Activation::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!("swish".parse(), Ok(Activation::Silu));
        assert_eq!("gelu_new".parse(), Ok(Activation::GeluTanh));
        assert!("quick_gelu".parse::<Activation>().unwrap_err().to_string().contains("`quick_gelu`"));
    }
}
