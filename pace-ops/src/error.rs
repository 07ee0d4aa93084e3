//! What can go wrong when an operator is configured or built. Forward passes do not fail: shapes are the caller's
//! contract.

use crate::{Backend, OpDType, Operator, UnknownName};

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
    #[error("{op} has no backend `{backend}` for {}; it has: {}", .dtype.weights(), names(.available))]
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

/// An [`OperatorConfig`](crate::OperatorConfig) as text that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON, or no object. The message says where.
    #[error("not a JSON object such as {{\"mlp\": \"native\"}}: {0}")]
    Json(String),
    /// No operator is called so.
    #[error("operator {0}")]
    UnknownOperator(UnknownName),
    /// No backend of the operator is called so.
    #[error("backend of {op}: {name}")]
    UnknownBackend {
        /// The operator.
        op: Operator,
        /// What was given, and what the operator has.
        name: UnknownName,
    },
    /// A backend is a text; this is something else.
    #[error("backend of {op}: {found} is no text such as \"auto\"")]
    NotText {
        /// The operator.
        op: Operator,
        /// What was given, as JSON.
        found: String,
    },
    /// The operator has no such backend.
    #[error(transparent)]
    Op(#[from] OpError),
    /// One operator twice in an object, with different backends.
    #[error("{op} is both `{first}` and `{second}` (under `{key}`): give it once")]
    Conflict {
        /// The operator.
        op: Operator,
        /// The backend that came first.
        first: Backend,
        /// The one that came later.
        second: Backend,
        /// The later key, as it was spelled.
        key: String,
    },
}

fn names(backends: &[Backend]) -> String {
    backends.iter().map(|b| b.name()).collect::<Vec<_>>().join(", ")
}
