//! The number formats that a safetensors header may name.

/// How the numbers of a tensor are stored. The loader reads `F32`, `F16` and `BF16`; the others are known so that
/// a file which holds them beside its weights still opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
    /// Any other type of the format: its name and its bits per element.
    Other(&'static str, u8),
}

const OTHERS: [(&str, u8); 19] = [
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("I16", 16),
    ("U16", 16),
    ("I32", 32),
    ("U32", 32),
    ("I64", 64),
    ("U64", 64),
    ("F64", 64),
    ("C64", 64),
];

impl Dtype {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "F32" => Some(Self::F32),
            "F16" => Some(Self::F16),
            "BF16" => Some(Self::Bf16),
            _ => OTHERS.iter().find(|other| other.0 == name).map(|&(name, bits)| Self::Other(name, bits)),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Other(name, _) => name,
        }
    }

    /// The size of `elements` numbers in bytes; `None` if it overflows or is no whole number of bytes.
    pub(super) fn bytes(self, elements: u64) -> Option<u64> {
        let bits = match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::Other(_, bits) => u64::from(bits),
        };
        let total = u128::from(elements) * u128::from(bits);
        if total % 8 == 0 { u64::try_from(total / 8).ok() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_sizes_are_whole_bytes() {
        for name in OTHERS.map(|other| other.0).into_iter().chain(["F32", "F16", "BF16"]) {
            assert_eq!(Dtype::from_name(name).map(Dtype::name), Some(name));
        }
        assert_eq!(Dtype::from_name("f32"), None);
        assert_eq!(Dtype::F32.bytes(3), Some(12));
        assert_eq!(Dtype::Bf16.bytes(3), Some(6));
        assert_eq!(Dtype::Other("F4", 4).bytes(3), None);
        assert_eq!(Dtype::Other("F4", 4).bytes(4), Some(2));
        assert_eq!(Dtype::F32.bytes(u64::MAX), None);
    }
}
