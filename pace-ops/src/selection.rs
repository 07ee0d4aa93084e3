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
            for chosen in self.chosen.iter_mut().filter(|c| c.shape == shape) {
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
        let rule = (Backend::Auto.into(), ChosenBy::Rule);
        let Some(choice) = self.plan.as_ref().and_then(|plan| plan.choice(shape)) else { return rule };
        match self.build.resolve(shape, choice) {
            Ok(choice) => (choice, ChosenBy::Plan),
            Err(error) => {
                tracing::warn!(
                    "{shape}: the plan's {choice} is not for here: {error}; the built-in rule chooses"
                );
                rule
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use pace_kernels::{ActBuf, DType, Kernels, PackedWeights, Par, Scratch};

    use super::*;
    use crate::{Linear, OpDType, PlanEntry};

    const SHAPE: OpShape = OpShape::matrix(Operator::Linear, OpDType::F32, 40, 24);

    fn selection(config: OperatorConfig, plan: Option<Plan>) -> Selection {
        Selection::new(BuildCx::new(Kernels::detect()), config, plan.map(Arc::new))
    }

    fn linear(selection: &mut Selection, shape: OpShape) -> Linear {
        let (choice, spec) =
            (selection.choose(shape).unwrap(), selection.pack_spec(shape, WeightFormat::F32).unwrap());
        let fill = |_, out: &mut [f32]| {
            out.iter_mut().enumerate().for_each(|(i, w)| *w = (i % 7) as f32 - 3.0);
            Ok::<_, Infallible>(())
        };
        let weights = PackedWeights::pack(spec, 40, 24, &Par::seq(), fill).unwrap();
        Linear::new(selection.build(), Arc::new(weights), None, choice).unwrap()
    }

    #[test]
    fn a_wrong_backend_is_replaced_by_the_reference_and_named() {
        let scratch = Scratch::new();
        let cx = OpCx {
            kernels: Kernels::detect(),
            par: Par::seq(),
            scratch: &scratch,
            profile: None,
            inputs: None,
        };
        let run = |op: &Linear| {
            let (x, mut out) =
                (crate::self_test::Sample::new(OpDType::F32).rows(2, 24), ActBuf::new(DType::F32, 40));
            op.forward(&cx, x.rows(2), out.rows_mut(2));
            crate::self_test::numbers(out.rows(2))
        };
        let mut selection = selection(OperatorConfig::default(), None);
        let right = linear(&mut selection, SHAPE);
        let want = run(&right);
        let right = selection.admit(&cx, right);
        assert!(selection.demotions().is_empty() && selection.is_bit_equal());
        assert_eq!(run(&right), want, "a right one stays");

        // A second shape, so that it is tested.
        let other = OpShape::matrix(Operator::Linear, OpDType::Bf16, 40, 24);
        let mut wrong = linear(&mut selection, SHAPE);
        wrong.break_backends();
        selection.tested.clear();
        let mended = selection.admit(&cx, wrong);
        let [demotion] = selection.demotions() else { panic!("{:?}", selection.demotions()) };
        assert_eq!(demotion.shape, SHAPE);
        assert!(demotion.reason.contains("`tpp`"), "{}", demotion.reason);
        assert!(!selection.is_bit_equal());
        let off = run(&mended).iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(off < 1e-4 && want.iter().any(|w| w.abs() > 1.0), "{off}: what it computes now");
        assert_eq!(selection.choose(other).unwrap(), Backend::Native.into(), "those of its kind follow");
        assert!(selection.chosen().iter().all(|c| c.by == ChosenBy::SelfTest), "{:?}", selection.chosen());
    }

    #[test]
    fn the_configuration_goes_before_the_plan_and_that_before_the_rules() {
        let shape = OpShape::matrix(Operator::LmHead, OpDType::F32, 40, 24);
        let by = |config, plan| {
            let mut selection = selection(config, plan);
            selection.choose(shape).unwrap();
            let chosen = selection.chosen()[0].clone();
            (chosen.choice.to_string(), chosen.by)
        };
        let entry = |class| PlanEntry {
            shape,
            class,
            limit_seconds: 1.0,
            candidates: Vec::new(),
            wrong: Vec::new(),
            choice: Backend::Native,
            why: String::new(),
        };
        let plan = Plan { entries: crate::MClass::ALL.map(entry).to_vec() };
        let config = OperatorConfig { lm_head: Backend::Tpp, ..OperatorConfig::default() };
        assert_eq!(by(config, Some(plan.clone())), ("tpp".to_owned(), ChosenBy::Config));
        assert_eq!(by(OperatorConfig::default(), Some(plan)), ("native".to_owned(), ChosenBy::Plan));
        assert_eq!(by(OperatorConfig::default(), None), ("tpp".to_owned(), ChosenBy::Rule));
        // Made where there was generated code: there is none for f32.
        let entry = |class| PlanEntry { choice: Backend::Jit, ..entry(class) };
        let foreign = Plan { entries: crate::MClass::ALL.map(entry).to_vec() };
        assert_eq!(by(OperatorConfig::default(), Some(foreign)), ("tpp".to_owned(), ChosenBy::Rule));
    }
}
