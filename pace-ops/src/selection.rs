//! [`Selection`]: which backends an engine's operators get, and what became of them.

use std::collections::HashSet;
use std::sync::Arc;

use pace_kernels::{PackSpec, WeightFormat};

use crate::self_test::SelfTest;
use crate::{Backend, BuildCx, Choice, OpCx, OpError, OpShape, Operator, OperatorConfig, Plan};

/// Chooses backends while an engine's operators are built: what the configuration says, else what was measured, else
/// built-in rules; and the reference for an operator whose backend failed its self-test.
pub struct Selection {
    build: BuildCx,
    config: OperatorConfig,
    plan: Option<Arc<Plan>>,
    tested: HashSet<OpShape>,
    chosen: Vec<Chosen>,
    demotions: Vec<Demotion>,
}

/// What an operator of a shape was built with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The operator's shape.
    pub shape: OpShape,
    /// Its backends.
    pub choice: Choice,
    /// Who chose them.
    pub by: ChosenBy,
}

/// Who chose a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChosenBy {
    /// The configuration names it.
    Config,
    /// It measured best.
    Plan,
    /// The built-in rules.
    Rule,
    /// Another one failed its self-test.
    SelfTest,
}

/// An operator that was left to the reference because a backend disagreed with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demotion {
    /// The operator's shape.
    pub shape: OpShape,
    /// Which backend, and how far it was off.
    pub reason: String,
}

impl ChosenBy {
    /// The name used everywhere: lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "configuration",
            Self::Plan => "plan",
            Self::Rule => "rule",
            Self::SelfTest => "self-test",
        }
    }
}

impl Selection {
    /// Chooses for operators that are built by `build`.
    pub fn new(build: BuildCx, config: OperatorConfig, plan: Option<Arc<Plan>>) -> Self {
        let (tested, chosen, demotions) = (HashSet::new(), Vec::new(), Vec::new());
        Self { build, config, plan, tested, chosen, demotions }
    }

    /// How operators are built.
    pub const fn build(&self) -> &BuildCx {
        &self.build
    }

    /// The backends for an operator of a shape, without `Auto`.
    ///
    /// # Errors
    /// The configuration names a backend that does not exist, not for this type, or not here.
    pub fn choose(&mut self, shape: OpShape) -> Result<Choice, OpError> {
        if let Some(chosen) = self.chosen.iter().find(|c| c.shape == shape) {
            return Ok(chosen.choice);
        }
        let (wanted, by) = self.wanted(shape);
        let choice = self.build.resolve(shape, wanted)?;
        self.chosen.push(Chosen { shape, choice, by });
        Ok(choice)
    }

    /// How the weights of an operator of a shape are packed.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub fn pack_spec(&mut self, shape: OpShape, format: WeightFormat) -> Result<PackSpec, OpError> {
        let choice = self.choose(shape)?;
        Ok(self.build.pack_spec(shape, choice, format))
    }

    /// Tests an operator that was just built, unless one of its shape has been. One that fails is left to the
    /// reference, and so are those of its kind that are built later; a warning names it.
    pub fn admit<T: SelfTest>(&mut self, cx: &OpCx<'_>, mut op: T) -> T {
        let shape = op.shape();
        if self.demoted(shape.op) {
            op.set_native();
        } else if self.tested.insert(shape)
            && let Err(mismatch) = op.self_test(cx)
        {
            tracing::warn!("{shape}: {mismatch}; the reference computes {} instead", shape.op);
            self.demotions.push(Demotion { shape, reason: mismatch.to_string() });
            for chosen in self.chosen.iter_mut().filter(|c| c.shape.op == shape.op) {
                (chosen.choice, chosen.by) = (Backend::Native.into(), ChosenBy::SelfTest);
            }
            op.set_native();
        }
        op
    }

    /// What was chosen so far, in the order in which it was built.
    pub fn chosen(&self) -> &[Chosen] {
        &self.chosen
    }

    /// What was left to the reference.
    pub fn demotions(&self) -> &[Demotion] {
        &self.demotions
    }

    /// Whether a row's bits do not depend on the batch, the chunks and the number of threads: so if no operator but
    /// norms and RoPE is left to the reference, whose library promises no order of sums.
    pub fn is_bit_equal(&self) -> bool {
        let exempt = |op| matches!(op, Operator::Norm | Operator::Rope);
        self.chosen.iter().all(|c| !c.choice.is_native() || exempt(c.shape.op))
    }

    fn demoted(&self, op: Operator) -> bool {
        self.demotions.iter().any(|d| d.shape.op == op)
    }

    fn wanted(&self, shape: OpShape) -> (Choice, ChosenBy) {
        if self.demoted(shape.op) {
            return (Backend::Native.into(), ChosenBy::SelfTest);
        }
        let configured = self.config.get(shape.op);
        if configured != Backend::Auto {
            return (configured.into(), ChosenBy::Config);
        }
        let planned = self.plan.as_ref().and_then(|plan| plan.choice(shape));
        match planned.filter(|&choice| self.build.resolve(shape, choice).is_ok()) {
            Some(choice) => (choice, ChosenBy::Plan),
            None => (Backend::Auto.into(), ChosenBy::Rule),
        }
    }
}
