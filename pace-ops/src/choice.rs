//! [`Choice`]: one backend for each class of row counts, and the operators that were built for it.

use std::fmt;

use crate::{Backend, MClass};

/// The backends of one operator: one for each [`MClass`].
///
/// Classes differ only among backends that give the same bits; NATIVE serves all classes or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Choice([Backend; 3]);

impl Choice {
    /// A backend for each class.
    ///
    /// # Panics
    /// NATIVE is mixed with another one: a row's bits would depend on the rows beside it.
    pub fn new(by_class: [Backend; 3]) -> Self {
        Self::checked(by_class)
            .unwrap_or_else(|| panic!("{by_class:?}: NATIVE is not bit-equal to the others"))
    }

    /// A backend for each class, unless NATIVE is mixed with another one.
    pub fn checked(by_class: [Backend; 3]) -> Option<Self> {
        let native = by_class.iter().filter(|&&b| b == Backend::Native).count();
        (native == 0 || native == by_class.len()).then_some(Self(by_class))
    }

    /// The backend of a class.
    pub const fn of(self, class: MClass) -> Backend {
        self.0[class as usize]
    }

    /// Whether this is the reference path.
    pub fn is_native(self) -> bool {
        self.0[0] == Backend::Native
    }
}

impl From<Backend> for Choice {
    fn from(backend: Backend) -> Self {
        Self([backend; 3])
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [one, few, many] = self.0;
        if one == few && few == many {
            return f.pad(one.name());
        }
        f.pad(&format!("{one}/{few}/{many}"))
    }
}

/// What was built for a [`Choice`]: each backend once.
pub(crate) struct ByClass<B: ?Sized> {
    built: Vec<(Backend, Box<B>)>,
    /// The place in `built` of each class's backend.
    at: [usize; 3],
}

/// The largest number of rows of [`ByClass::each`].
pub(crate) const MOST_ROWS: usize = 17;

impl<B: ?Sized> ByClass<B> {
    /// Builds every backend of `choice`.
    pub(crate) fn build(choice: Choice, mut build: impl FnMut(Backend) -> Box<B>) -> Self {
        let mut built: Vec<(Backend, Box<B>)> = Vec::new();
        let at = MClass::ALL.map(|class| {
            let backend = choice.of(class);
            built.iter().position(|(b, _)| *b == backend).unwrap_or_else(|| {
                built.push((backend, build(backend)));
                built.len() - 1
            })
        });
        Self { built, at }
    }

    /// The reference for every class.
    pub(crate) fn native(reference: Box<B>) -> Self {
        Self { built: vec![(Backend::Native, reference)], at: [0; 3] }
    }

    /// Puts another implementation in the place of every backend.
    #[cfg(test)]
    pub(crate) fn replace(&mut self, mut with: impl FnMut() -> Box<B>) {
        self.built.iter_mut().for_each(|(_, built)| *built = with());
    }

    /// The backend for so many rows.
    pub(crate) fn of(&self, rows: usize) -> (Backend, &B) {
        let (backend, built) = &self.built[self.at[MClass::of(rows) as usize]];
        (*backend, built)
    }

    /// The backend of every class, with a number of rows of that class.
    pub(crate) fn each(&self) -> impl Iterator<Item = (Backend, usize, &B)> {
        [1, 3, MOST_ROWS].into_iter().map(|rows| {
            let (backend, built) = self.of(rows);
            (backend, rows, built)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_backend_is_built_once_and_serves_its_classes() {
        let choice = Choice::new([Backend::Jit, Backend::Tpp, Backend::Jit]);
        let mut builds = 0;
        let built = ByClass::<str>::build(choice, |backend| {
            builds += 1;
            backend.name().into()
        });
        assert_eq!(builds, 2);
        assert_eq!([1, 2, 16, 17].map(|rows| built.of(rows).1), ["jit", "tpp", "tpp", "jit"]);
        let each: Vec<_> = built.each().map(|(backend, rows, _)| (backend, rows)).collect();
        assert_eq!(each, [(Backend::Jit, 1), (Backend::Tpp, 3), (Backend::Jit, 17)]);
        assert_eq!(choice.to_string(), "jit/tpp/jit");
    }

    #[test]
    #[should_panic(expected = "bit-equal")]
    fn native_is_not_mixed_with_others() {
        Choice::new([Backend::Native, Backend::Tpp, Backend::Tpp]);
    }
}
