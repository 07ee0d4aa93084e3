//! What operators are computed with, as every command says it.

use pace_kernels::WeightFormat;
use pace_models::{DecoderSpec, ModelFormats, QuantLoss};
use pace_ops::{Choice, Chosen, Demotion, MClass, OpDType, Operator};
use pace_runtime::EngineInfo;
use serde_json::{Value, json};

use crate::output::count;

/// `{operator: backend}`; what shapes of one operator differ in is separated by commas.
pub(crate) fn to_json(chosen: &[Chosen]) -> Value {
    map(chosen, |chosen| chosen.choice.to_string())
}

/// `{operator: who chose its backend}`.
pub(crate) fn chosen_by(chosen: &[Chosen]) -> Value {
    map(chosen, |chosen| chosen.by.name().to_owned())
}

/// `tpp: norm, mlp; flash: attention`.
pub(crate) fn to_text(chosen: &[Chosen]) -> String {
    groups(chosen, |chosen| chosen.choice.to_string())
}

/// `rule: norm, attention; configuration: mlp`.
pub(crate) fn chosen_by_text(chosen: &[Chosen]) -> String {
    groups(chosen, |chosen| chosen.by.name().to_owned())
}

fn map(chosen: &[Chosen], name: impl Fn(&Chosen) -> String) -> Value {
    let entries = by_operator(chosen, name).into_iter();
    Value::Object(entries.map(|(op, names)| (op.name().to_owned(), json!(names.join(", ")))).collect())
}

fn groups(chosen: &[Chosen], name: impl Fn(&Chosen) -> String) -> String {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for (operator, backends) in by_operator(chosen, name) {
        let backends = backends.join(", ");
        match groups.iter_mut().find(|(name, _)| *name == backends) {
            Some((_, operators)) => operators.push(operator.name()),
            None => groups.push((backends, vec![operator.name()])),
        }
    }
    let group = |(name, operators): (String, Vec<&str>)| format!("{name}: {}", operators.join(", "));
    groups.into_iter().map(group).collect::<Vec<_>>().join("; ")
}

/// What the type `int4` of a table stands for.
pub(crate) fn int4_note() -> String {
    format!("int4 stands for {}", OpDType::Int4.weights())
}

/// Whether a sequence gets the same bits in any batch, and if not, because of what.
pub(crate) fn bits(chosen: &[Chosen], bit_equal: bool) -> String {
    if bit_equal {
        return "the same bits whatever the batch: yes".to_owned();
    }
    // Norms and RoPE are computed row by row.
    let exempt = |op| matches!(op, Operator::Norm | Operator::Rope);
    let mut native: Vec<&str> = Vec::new();
    for chosen in chosen.iter().filter(|c| c.choice.is_native() && !exempt(c.shape.op)) {
        if !native.contains(&chosen.shape.op.name()) {
            native.push(chosen.shape.op.name());
        }
    }
    format!("the same bits whatever the batch: no: NATIVE computes {}", native.join(", "))
}

/// As [`bits`], of a model that is not loaded yet.
pub(crate) fn expected_bits(chosen: &[Chosen], bit_equal: bool) -> String {
    let unless = if bit_equal { ", unless a backend fails its self-test at load" } else { "" };
    bits(chosen, bit_equal) + unless
}

/// Operators that were left to the reference: `[{operator, shape, reason}]`.
pub(crate) fn demotions(info: &EngineInfo) -> Value {
    let demotion = |d: &Demotion| json!({"operator": d.shape.op.name(), "shape": d.shape.size.to_string(), "reason": d.reason});
    info.demotions.iter().map(demotion).collect()
}

/// What computes a loaded model and what that means for its bits, a line each.
pub(crate) fn summary(info: &EngineInfo) -> Vec<String> {
    let mut lines =
        vec![format!("operators by {}", to_text(&info.operators)), bits(&info.operators, info.bit_equal)];
    lines.extend(meaning(&info.operators).map(str::to_owned));
    let demoted = info.demotions.iter();
    lines.extend(demoted.map(|d| format!("{} is left to the reference: {}", d.shape, d.reason)));
    lines.push(format!("weights packed as {}", formats_text(&info.formats, &info.spec)));
    lines.extend(losses_text(&info.losses));
    lines
}

/// What choices such as `tpp/tpp/imbps` mean, if there are any.
pub(crate) fn meaning(chosen: &[Chosen]) -> Option<&'static str> {
    let mixed = chosen.iter().any(|c| Choice::from(c.choice.of(MClass::One)) != c.choice);
    mixed.then_some("a/b/c: a computes one row, b 2 to 16, c more")
}

/// How much of the weights lies in huge pages.
pub(crate) fn huge_pages(info: &EngineInfo) -> String {
    match info.huge_share {
        Some(share) => format!("{:.0} % of the weights in huge pages", 100.0 * share),
        None => "huge pages: unknown".to_owned(),
    }
}

/// What `name` says of each operator, each name once, in the order in which backends were chosen.
fn by_operator(chosen: &[Chosen], name: impl Fn(&Chosen) -> String) -> Vec<(Operator, Vec<String>)> {
    let mut all: Vec<(Operator, Vec<String>)> = Vec::new();
    for chosen in chosen {
        let name = name(chosen);
        match all.iter_mut().find(|(op, _)| *op == chosen.shape.op) {
            Some((_, names)) if names.contains(&name) => {}
            Some((_, names)) => names.push(name),
            None => all.push((chosen.shape.op, vec![name])),
        }
    }
    all
}

/// The formats of the packed matrices and how many weights are in each.
pub(crate) fn formats_json(formats: &ModelFormats, spec: &DecoderSpec) -> Value {
    let share =
        |(format, weights): (WeightFormat, usize)| json!({"format": format.to_string(), "weights": weights});
    formats.shares(spec).into_iter().map(share).collect()
}

/// The same in a line.
pub(crate) fn formats_text(formats: &ModelFormats, spec: &DecoderSpec) -> String {
    let share = |(format, weights): (WeightFormat, usize)| format!("{format} ({} weights)", count(weights));
    formats.shares(spec).into_iter().map(share).collect::<Vec<_>>().join(", ")
}

/// What weights lost when they became integers, by format; empty where nothing did.
pub(crate) fn losses_json(losses: &[QuantLoss]) -> Value {
    let loss = |l: &QuantLoss| json!({"format": l.format.to_string(), "weights": l.weights, "relative_rms": l.relative_rms});
    losses.iter().map(loss).collect()
}

/// The same as lines of a log.
pub(crate) fn losses_text(losses: &[QuantLoss]) -> impl Iterator<Item = String> {
    losses.iter().map(|l| {
        format!("{} weights in {}: relative error {:.2e}", count(l.weights), l.format, l.relative_rms)
    })
}

#[cfg(test)]
mod tests {
    use pace_ops::{Backend, ChosenBy, OpShape};

    use super::*;

    fn chosen(op: Operator, choice: impl Into<Choice>) -> Chosen {
        Chosen { shape: OpShape::row(op, OpDType::F32, 64), choice: choice.into(), by: ChosenBy::Rule }
    }

    #[test]
    fn operators_are_named_with_their_backends() {
        let mixed = Choice::new([Backend::Tpp, Backend::Tpp, Backend::Imbps]);
        let all = [
            chosen(Operator::Norm, Backend::Tpp),
            chosen(Operator::Attention, Backend::Flash),
            chosen(Operator::Rope, Backend::Tpp),
            chosen(Operator::Mlp, mixed),
            chosen(Operator::Mlp, Backend::Tpp),
        ];
        assert_eq!(
            to_json(&all),
            json!({"norm": "tpp", "attention": "flash", "rope": "tpp", "mlp": "tpp/tpp/imbps, tpp"})
        );
        assert_eq!(to_text(&all), "tpp: norm, rope; flash: attention; tpp/tpp/imbps, tpp: mlp");
        let mut all = all.to_vec();
        all[1].by = ChosenBy::Plan;
        assert_eq!(chosen_by(&all)["attention"], "plan");
        assert!(meaning(&all).is_some() && meaning(&all[..3]).is_none());
        assert_eq!(chosen_by_text(&all), "rule: norm, rope, mlp; plan: attention");
    }

    #[test]
    fn what_costs_the_same_bits_is_named() {
        assert!(bits(&[chosen(Operator::Norm, Backend::Native)], true).ends_with(": yes"));
        let ops = [Operator::Norm, Operator::Mlp, Operator::Mlp, Operator::LmHead];
        let all = ops.map(|op| chosen(op, Backend::Native));
        assert!(bits(&all, false).ends_with("no: NATIVE computes mlp, lm_head"));
    }
}
