//! Instruction-set tiers: what this CPU can run, found at run time.

use std::ffi::OsStr;
use std::fmt;
use std::str::FromStr;

/// A tier of instruction sets. Every tier contains the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// No vector instructions beyond what the target always has.
    Scalar,
    /// AVX2, FMA and F16C (x86-64-v3).
    Avx2,
    /// AVX-512 F, BW, CD, DQ and VL (x86-64-v4).
    Avx512,
    /// AVX-512 with VNNI.
    Avx512Vnni,
    /// AVX-512 with VNNI and BF16.
    Avx512Bf16,
    /// The same with AMX for bf16 and int8.
    Amx,
}

impl Isa {
    /// Every tier, lowest first.
    pub const ALL: [Self; 6] =
        [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Avx512Bf16, Self::Amx];

    /// The best tier of this CPU.
    pub fn detect() -> Self {
        Self::supported().last().unwrap_or(Self::Scalar)
    }

    /// The tiers of this CPU, lowest first. `Scalar` is always among them.
    pub fn supported() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_supported())
    }

    /// The tier that `PACE_ISA` asks for; the best one when the variable is not set.
    ///
    /// # Errors
    /// The variable holds an unknown name, or a tier that this CPU lacks.
    pub fn from_env() -> Result<Self, IsaError> {
        // The one place outside of the runtime's configuration that reads the environment, so that
        // a user of this crate alone can cap the tier too.
        #[allow(clippy::disallowed_methods)]
        let value = std::env::var_os("PACE_ISA");
        Self::from_value(value.as_deref())
    }

    /// The name: `scalar`, `avx2`, `avx512`, `avx512-vnni`, `avx512-bf16`, `amx`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
        }
    }

    /// Whether this CPU and its operating system can run the tier.
    pub fn is_supported(self) -> bool {
        match self {
            Self::Scalar => true,
            Self::Avx2 => has_avx2(),
            Self::Avx512 => has_avx512(),
            Self::Avx512Vnni => has_avx512_vnni(),
            Self::Avx512Bf16 => has_avx512_bf16(),
            Self::Amx => has_amx(),
        }
    }

    fn from_value(value: Option<&OsStr>) -> Result<Self, IsaError> {
        let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(Self::detect()) };
        let isa: Self = value.to_string_lossy().parse()?;
        if isa.is_supported() { Ok(isa) } else { Err(IsaError::Unsupported(isa)) }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    /// Any case; `-` and `_` may be left out.
    fn from_str(name: &str) -> Result<Self, IsaError> {
        let plain = |name: &str| name.replace(['-', '_'], "").to_ascii_lowercase();
        let wanted = plain(name);
        Self::ALL
            .into_iter()
            .find(|isa| plain(isa.name()) == wanted)
            .ok_or_else(|| IsaError::Unknown(name.to_owned()))
    }
}

/// Why a tier cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// No tier has this name.
    #[error("unknown instruction set `{0}`; known: {known}", known = list(Isa::ALL))]
    Unknown(String),
    /// The CPU lacks the tier.
    #[error("this CPU has no {0}; it supports: {supported}", supported = list(Isa::supported()))]
    Unsupported(Isa),
}

fn list(tiers: impl IntoIterator<Item = Isa>) -> String {
    tiers.into_iter().map(Isa::name).collect::<Vec<_>>().join(", ")
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    // All that pulp's V3 token and the tier's `target_feature` list name.
    is_x86_feature_detected!("sse3")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1")
        && is_x86_feature_detected!("sse4.2")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("fxsr")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("avx")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512_vnni() -> bool {
    has_avx512() && is_x86_feature_detected!("avx512vnni")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512_bf16() -> bool {
    has_avx512_vnni() && is_x86_feature_detected!("avx512bf16")
}

#[cfg(target_arch = "x86_64")]
fn has_amx() -> bool {
    has_avx512_bf16() && crate::arch::amx::is_available()
}

#[cfg(not(target_arch = "x86_64"))]
use self::{
    no_x86 as has_amx, no_x86 as has_avx2, no_x86 as has_avx512, no_x86 as has_avx512_bf16,
    no_x86 as has_avx512_vnni,
};

#[cfg(not(target_arch = "x86_64"))]
fn no_x86() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supported_is_a_prefix_of_all() {
        let supported: Vec<_> = Isa::supported().collect();
        assert_eq!(supported, Isa::ALL[..supported.len()]);
        assert_eq!(supported.last(), Some(&Isa::detect()));
    }

    #[test]
    fn names_round_trip_in_any_spelling() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        for name in ["avx512vnni", "AVX512_VNNI", "Avx512-Vnni"] {
            assert_eq!(name.parse(), Ok(Isa::Avx512Vnni));
        }
        let message = "sse9".parse::<Isa>().unwrap_err().to_string();
        assert!(message.contains("`sse9`") && message.contains("avx512-bf16"), "{message}");
    }

    #[test]
    fn a_value_caps_the_tier() {
        assert_eq!(Isa::from_value(None), Ok(Isa::detect()));
        assert_eq!(Isa::from_value(Some(OsStr::new(""))), Ok(Isa::detect()));
        assert_eq!(Isa::from_value(Some(OsStr::new("scalar"))), Ok(Isa::Scalar));
        for isa in Isa::ALL {
            let expected = if isa.is_supported() { Ok(isa) } else { Err(IsaError::Unsupported(isa)) };
            assert_eq!(Isa::from_value(Some(OsStr::new(isa.name()))), expected);
        }
        assert_eq!(Isa::from_value(Some(OsStr::new("fast"))), Err(IsaError::Unknown("fast".to_owned())));
        assert!(IsaError::Unsupported(Isa::Avx512Bf16).to_string().contains("scalar"));
    }
}
