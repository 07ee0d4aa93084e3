//! What can go wrong when an operator is built. Forward passes do not fail: shapes are the caller's contract.

use crate::{Backend, OpDType, Operator};

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
    /// The operator has the backend, but not for this type.
    #[error("{op} has no backend `{backend}` for {dtype}; it has: {}", names(.available))]
    UnsupportedType {
        /// The operator.
        op: Operator,
        /// The backend asked for.
        backend: Backend,
        /// The type.
        dtype: OpDType,
        /// The backends that exist for it.
        available: Vec<Backend>,
    },
    /// The weights are packed for another backend.
    #[error("{op} by `{backend}` wants weights in {wanted}; see `BuildCx::pack_spec`")]
    Layout {
        /// The operator.
        op: Operator,
        /// The backend asked for.
        backend: Backend,
        /// What would be right.
        wanted: &'static str,
    },
    /// The backend exists, but not for this CPU, system or shape.
    #[error("{op} cannot use the backend `{backend}` here: {reason}")]
    Unavailable {
        /// The operator.
        op: Operator,
        /// The backend asked for.
        backend: Backend,
        /// Why.
        reason: String,
    },
}

fn names(backends: &[Backend]) -> String {
    backends.iter().map(|b| b.name()).collect::<Vec<_>>().join(", ")
}
