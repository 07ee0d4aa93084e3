//! What operators are computed with, as every command says it.

use pace_ops::{Chosen, Operator};
use pace_runtime::EngineInfo;
use serde_json::{Map, Value, json};

/// `{operator: backend}`; shapes of one operator with different backends are separated by commas.
pub(crate) fn to_json(chosen: &[Chosen]) -> Value {
    let mut map = Map::new();
    for (operator, backends) in by_operator(chosen) {
        map.insert(operator.name().to_owned(), json!(backends.join(", ")));
    }
    Value::Object(map)
}

/// `tpp: norm, mlp; flash: attention`.
pub(crate) fn to_text(chosen: &[Chosen]) -> String {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for (operator, backends) in by_operator(chosen) {
        let backends = backends.join(", ");
        match groups.iter_mut().find(|(name, _)| *name == backends) {
            Some((_, operators)) => operators.push(operator.name()),
            None => groups.push((backends, vec![operator.name()])),
        }
    }
    let group = |(name, operators): (String, Vec<&str>)| format!("{name}: {}", operators.join(", "));
    groups.into_iter().map(group).collect::<Vec<_>>().join("; ")
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

/// How much of the weights lies in huge pages.
pub(crate) fn huge_pages(info: &EngineInfo) -> String {
    match info.huge_share {
        Some(share) => format!("{:.0} % of the weights in huge pages", 100.0 * share),
        None => "huge pages: unknown".to_owned(),
    }
}

/// The backends of each operator, each once, in the order in which they were chosen.
fn by_operator(chosen: &[Chosen]) -> Vec<(Operator, Vec<String>)> {
    let mut all: Vec<(Operator, Vec<String>)> = Vec::new();
    for Chosen { shape, choice, .. } in chosen {
        let backend = choice.to_string();
        match all.iter_mut().find(|(op, _)| *op == shape.op) {
            Some((_, backends)) if backends.contains(&backend) => {}
            Some((_, backends)) => backends.push(backend),
            None => all.push((shape.op, vec![backend])),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use pace_ops::{Backend, Choice, ChosenBy, OpDType, OpShape};

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
    }

    #[test]
    fn what_costs_the_same_bits_is_named() {
        assert!(bits(&[chosen(Operator::Norm, Backend::Native)], true).ends_with(": yes"));
        let ops = [Operator::Norm, Operator::Mlp, Operator::Mlp, Operator::LmHead];
        let all = ops.map(|op| chosen(op, Backend::Native));
        assert!(bits(&all, false).ends_with("no: NATIVE computes mlp, lm_head"));
    }
}
