//! What can go wrong when an operator is built. Forward passes do not fail: shapes are the caller's contract.

use crate::{Backend, Operator};

/// An operator that cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// The operator has no such backend.
    #[error("{op} has no backend `{backend}`; it has: {}", names(.available))]
    Unsupported {
        /// The operator.
        op: Operator,
        /// The backend asked for.
        backend: Backend,
        /// The backends that exist.
        available: &'static [Backend],
    },
}

fn names(backends: &[Backend]) -> String {
    backends.iter().map(|b| b.name()).collect::<Vec<_>>().join(", ")
}
