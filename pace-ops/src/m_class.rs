//! [`MClass`]: how many rows a product has, as far as that decides which kernel is best.

use std::fmt;

/// A class of row counts: one token, a few (speculation, small batches), or many (prefill).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MClass {
    /// 0 or 1 row.
    One,
    /// 2 to 16 rows.
    Few,
    /// More than 16 rows.
    Many,
}

impl MClass {
    /// Every class, fewest rows first.
    pub const ALL: [Self; 3] = [Self::One, Self::Few, Self::Many];

    /// The class of `rows` rows.
    pub const fn of(rows: usize) -> Self {
        match rows {
            0..=1 => Self::One,
            2..=16 => Self::Few,
            _ => Self::Many,
        }
    }

    /// The name used everywhere: `1`, `2-16` or `>16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::One => "1",
            Self::Few => "2-16",
            Self::Many => ">16",
        }
    }
}

impl fmt::Display for MClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_are_where_the_names_say() {
        let classes = [0, 1, 2, 16, 17, 512].map(MClass::of);
        assert_eq!(classes, [MClass::One, MClass::One, MClass::Few, MClass::Few, MClass::Many, MClass::Many]);
        assert_eq!(MClass::ALL.map(MClass::name), ["1", "2-16", ">16"]);
    }
}
