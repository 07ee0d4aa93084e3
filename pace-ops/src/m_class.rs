//! [`MClass`]: how many rows an operator gets, as far as it decides what limits it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A class of row counts. One row and a few are bound by the memory that weights come from, many by arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MClass {
    /// One row: a decode step of one sequence.
    #[serde(rename = "1")]
    One,
    /// 2 to 16 rows: a decode step of a batch.
    #[serde(rename = "2-16")]
    Few,
    /// More: prefill.
    #[serde(rename = ">16")]
    Many,
}

impl MClass {
    /// Every class, fewest rows first.
    pub const ALL: [Self; 3] = [Self::One, Self::Few, Self::Many];

    /// The class of a number of rows.
    pub const fn of(rows: usize) -> Self {
        match rows {
            0..=1 => Self::One,
            2..=16 => Self::Few,
            _ => Self::Many,
        }
    }

    /// The name used everywhere: the range of rows.
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
