//! [`Plan`]: which backend measured best, for each operator, shape and class of row counts.

use serde::{Deserialize, Serialize};

use crate::{Backend, Choice, MClass, OpShape};

/// What was measured on a machine, and what follows from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What was measured.
    pub entries: Vec<PlanEntry>,
}

/// One operator, shape and class of row counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// The operator and its shape.
    pub shape: OpShape,
    /// The class of row counts.
    pub class: MClass,
    /// The backend to use.
    pub choice: Backend,
}

impl Plan {
    /// The backends for an operator of a shape, if it was measured.
    pub fn choice(&self, shape: OpShape) -> Option<Choice> {
        let of = |class| Some(self.entries.iter().find(|e| e.shape == shape && e.class == class)?.choice);
        let [one, few, many] = MClass::ALL.map(of);
        Some(Choice::new([one?, few?, many?]))
    }
}
