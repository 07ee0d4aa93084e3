//! [`Plan`]: which backend measures best on this machine, for each operator, shape and class of row counts.
//!
//! The candidates of a shape take turns, so that a change of the machine's speed meets all of them; medians decide.
//! A candidate that does not agree with NATIVE is left out. A row's bits must not depend on the rows beside it, so NATIVE, which is not bit-equal to the others, serves all
//! classes of a shape or none: all only if it wins each of them.

mod candidates;

use pace_kernels::OutOfMemory;
use serde::{Deserialize, Serialize};

use self::candidates::{Candidates, Runs};
use crate::limits::Limits;
use crate::self_test::Mismatch;
use crate::{Backend, BuildCx, Choice, MClass, OpCx, OpShape};

/// Measurements on a machine, and what follows from them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// One for each shape and class.
    pub entries: Vec<PlanEntry>,
}

/// One operator, shape and class of row counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// The operator and its shape.
    pub shape: OpShape,
    /// The class of row counts.
    pub class: MClass,
    /// What the hardware allows at best, in seconds: its peak for the operations, or its memory for the bytes.
    pub limit_seconds: f64,
    /// What was measured.
    pub candidates: Vec<Candidate>,
    /// What was left out, because it does not agree with the reference.
    #[serde(default)]
    pub wrong: Vec<WrongBackend>,
    /// The backend to use.
    pub choice: Backend,
    /// Why this one.
    pub why: String,
}

/// One measured backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The backend.
    pub backend: Backend,
    /// Median seconds of a forward.
    pub seconds: f64,
    /// The limit as a fraction of that.
    pub fraction: f64,
}

/// A backend that failed its self-test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WrongBackend {
    /// The backend.
    pub backend: Backend,
    /// How far it was off.
    pub reason: String,
}

impl Plan {
    /// Times the backends that exist for each of `shapes` here. `progress` gets the shapes done and their number.
    ///
    /// Weights are random; one and a few rows meet weights that are not in any cache, as in a decode step. It takes a
    /// second or two for each shape, and memory for the weights of the largest, in each layout.
    ///
    /// # Errors
    /// There is no memory.
    pub fn measure(
        cx: &OpCx<'_>,
        build: &BuildCx,
        shapes: &[OpShape],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, OutOfMemory> {
        let memory = limits_memory(build);
        Self::measure_candidates(cx, memory, shapes, progress, &|limits, shape| {
            Candidates::new(cx, build, limits, shape)
        })
    }

    /// Bytes that [`measure`](Self::measure) takes for `shapes`, about.
    pub fn memory(build: &BuildCx, shapes: &[OpShape]) -> usize {
        shapes.iter().map(|&shape| candidates::memory(build, shape)).fold(limits_memory(build), usize::max)
    }

    /// `memory` bytes are four times all last-level caches or more.
    fn measure_candidates(
        cx: &OpCx<'_>,
        memory: usize,
        shapes: &[OpShape],
        progress: &mut dyn FnMut(usize, usize),
        candidates: &dyn Fn(&Limits, OpShape) -> Result<Candidates, OutOfMemory>,
    ) -> Result<Self, OutOfMemory> {
        let limits = Limits::measure(cx.kernels, cx.par, memory)?;
        let mut plan = Self::default();
        for (i, &shape) in shapes.iter().enumerate() {
            progress(i, shapes.len());
            let mut candidates = candidates(&limits, shape)?;
            let measured = MClass::ALL.map(|class| (class, candidates.measure(cx, class)));
            for mismatch in candidates.wrong() {
                tracing::warn!("{shape}: {mismatch}; it is not in the plan");
            }
            plan.entries.extend(entries(shape, &limits, &measured, candidates.wrong()));
        }
        progress(shapes.len(), shapes.len());
        Ok(plan)
    }

    /// Adds what `older` has of shapes that are not in this one.
    pub fn complete(&mut self, older: Self) {
        let known = self.entries.len();
        let new = |entry: &PlanEntry| self.entries[..known].iter().all(|e| e.shape != entry.shape);
        let kept: Vec<_> = older.entries.into_iter().filter(new).collect();
        self.entries.extend(kept);
    }

    /// The backends for an operator of a shape, if it was measured.
    pub fn choice(&self, shape: OpShape) -> Option<Choice> {
        let of = |class| Some(self.entries.iter().find(|e| e.shape == shape && e.class == class)?.choice);
        let [one, few, many] = MClass::ALL.map(of);
        let measured = [one?, few?, many?];
        // A file may be edited: a plan names what was measured.
        if measured.contains(&Backend::Auto) { None } else { Choice::checked(measured) }
    }
}

/// Bytes to read for the bandwidth of memory: no cache holds a part of them that counts.
fn limits_memory(build: &BuildCx) -> usize {
    (4 * build.l3_bytes).max(256 << 20)
}

/// What two measurements of the same may differ by.
const NOISE: f64 = 1.02;

/// What follows from the measurements of a shape, class by class.
fn entries(
    shape: OpShape,
    limits: &Limits,
    measured: &[(MClass, Runs)],
    wrong: &[Mismatch],
) -> Vec<PlanEntry> {
    let seconds = |runs: &Runs, native: bool| {
        let of = runs.seconds.iter().filter(move |(b, _)| (*b == Backend::Native) == native);
        of.map(|&(_, s)| s).fold(f64::INFINITY, f64::min)
    };
    let native = measured.iter().all(|(_, runs)| seconds(runs, true) * NOISE < seconds(runs, false));
    let entry = |(class, runs): &(MClass, Runs)| {
        let limit_seconds = limits.seconds(shape.unit(), runs.flops, runs.bytes);
        let candidate = |&(backend, seconds): &(Backend, f64)| Candidate {
            backend,
            seconds,
            fraction: limit_seconds / seconds,
        };
        let (choice, why) = choose(&runs.seconds, native);
        let candidates = runs.seconds.iter().map(candidate).collect();
        let wrong =
            wrong.iter().map(|m| WrongBackend { backend: m.backend, reason: m.to_string() }).collect();
        PlanEntry { shape, class: *class, limit_seconds, candidates, wrong, choice, why }
    };
    measured.iter().map(entry).collect()
}

/// The backend to use of those measured, in the order of preference, and why; `native` if the reference wins every
/// class.
fn choose(measured: &[(Backend, f64)], native: bool) -> (Backend, String) {
    let allowed = || measured.iter().filter(|(b, _)| (*b == Backend::Native) == native);
    let Some(&fastest) = allowed().min_by(|a, b| a.1.total_cmp(&b.1)) else {
        return (Backend::Native, "there is no other".to_owned());
    };
    let chosen = allowed().find(|(_, s)| *s <= fastest.1 * NOISE).copied().unwrap_or(fastest);
    let reference =
        measured.iter().find(|(b, _)| *b == Backend::Native && !native).map_or(f64::INFINITY, |r| r.1);
    let why = if reference < chosen.1 {
        let gain = 100.0 * (chosen.1 / reference - 1.0);
        format!("native is {gain:.0} % faster, but not in every class, and has other bits")
    } else if chosen.0 != fastest.0 {
        format!("within 2 % of {}", fastest.0)
    } else {
        "the fastest".to_owned()
    };
    (chosen.0, why)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pace_kernels::{Kernels, Par, Scratch};

    use super::*;
    use crate::{OpDType, Operator};

    #[test]
    fn the_first_of_those_that_are_as_fast_is_chosen() {
        use Backend::{Jit, Native, Tpp};
        let pick = |times: &[(Backend, f64)], native| choose(times, native);
        assert_eq!(pick(&[(Tpp, 1.01), (Jit, 1.0), (Native, 3.0)], false).0, Tpp);
        assert_eq!(pick(&[(Tpp, 1.2), (Jit, 1.0), (Native, 3.0)], false).0, Jit);
        let (choice, why) = pick(&[(Tpp, 1.0), (Jit, 1.5), (Native, 0.5)], false);
        assert!(choice == Tpp && why.contains("native is 100 % faster"), "{why}");
        assert_eq!(pick(&[(Tpp, 1.0), (Native, 0.5)], true).0, Native);
        assert_eq!(pick(&[(Native, 0.5)], false).0, Native);
    }

    #[test]
    fn a_slow_backend_is_not_chosen() {
        let (kernels, scratch) = (Kernels::detect(), Scratch::new());
        let cx = OpCx { kernels, par: Par::seq(), scratch: &scratch, profile: None, inputs: None };
        let build = BuildCx::new(kernels);
        let shape = OpShape::matrix(Operator::Linear, OpDType::F32, 96, 64);
        let slow = |backend: Backend| {
            let candidates = |limits: &Limits, shape| {
                let mut candidates = Candidates::new(&cx, &build, limits, shape)?;
                candidates.slow_down(backend, Duration::from_millis(2));
                Ok(candidates)
            };
            let plan = Plan::measure_candidates(&cx, 1 << 20, &[shape], &mut |_, _| {}, &candidates).unwrap();
            assert_eq!(plan.entries.len(), MClass::ALL.len());
            assert!(
                plan.entries.iter().all(|e| e.candidates.len() == 2 && e.limit_seconds > 0.0),
                "{plan:?}"
            );
            plan.choice(shape).unwrap()
        };
        assert_eq!(slow(Backend::Tpp), Backend::Native.into());
        assert_eq!(slow(Backend::Native), Backend::Tpp.into());
    }

    #[test]
    fn a_wrong_backend_is_not_timed_and_named() {
        let (kernels, scratch) = (Kernels::detect(), Scratch::new());
        let cx = OpCx { kernels, par: Par::seq(), scratch: &scratch, profile: None, inputs: None };
        let build = BuildCx::new(kernels);
        let shape = OpShape::matrix(Operator::Linear, OpDType::Bf16, 96, 64);
        let candidates =
            |limits: &Limits, shape| Candidates::with_broken(&cx, &build, limits, shape, Backend::Tpp);
        let plan = Plan::measure_candidates(&cx, 1 << 20, &[shape], &mut |_, _| {}, &candidates).unwrap();
        assert_eq!(plan.entries.len(), MClass::ALL.len());
        for entry in &plan.entries {
            let [wrong] = &*entry.wrong else { panic!("{entry:?}") };
            assert!(wrong.backend == Backend::Tpp && wrong.reason.contains("`tpp` is off by"), "{wrong:?}");
            assert!(entry.candidates.iter().all(|c| c.backend != Backend::Tpp), "{entry:?}");
            assert!(entry.candidates.iter().any(|c| c.backend == Backend::Native), "{entry:?}");
        }
        assert_ne!(plan.choice(shape), Some(Backend::Tpp.into()));
    }

    #[test]
    fn a_plan_is_the_same_after_a_file() {
        let shape = OpShape::mlp(OpDType::Bf16, 64, 128, true);
        let entry = |class| PlanEntry {
            shape,
            class,
            limit_seconds: 1e-6,
            candidates: vec![Candidate { backend: Backend::Tpp, seconds: 2e-6, fraction: 0.5 }],
            wrong: Vec::new(),
            choice: Backend::Tpp,
            why: "the fastest".to_owned(),
        };
        let plan = Plan { entries: MClass::ALL.map(entry).to_vec() };
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        assert_eq!(plan.choice(shape), Some(Backend::Tpp.into()));
        let mixed = text.replacen(r#""choice":"tpp""#, r#""choice":"native""#, 1);
        assert_eq!(serde_json::from_str::<Plan>(&mixed).unwrap().choice(shape), None, "a file may be edited");
    }
}
