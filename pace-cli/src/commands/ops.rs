//! `pace-cli ops`: operators by backends by types.

use std::fmt::Write as _;

use anyhow::Result;
use pace_kernels::{Isa, IsaError, Kernels};
use pace_ops::{Backend, BuildCx, Choice, OpDType, OpError, OpShape, OpSize, Operator};
use pace_runtime::RuntimeError;
use serde_json::{Map, Value, json};

use crate::args::{Format, OpsArgs};
use crate::operators;
use crate::output::{self, table};

/// The columns: every backend that can be asked for by name.
const BACKENDS: [Backend; 5] = [Backend::Native, Backend::Tpp, Backend::Jit, Backend::Imbps, Backend::Flash];

/// A backend of an operator for a type.
struct Cell {
    operator: Operator,
    backend: Backend,
    dtype: OpDType,
    /// Why there is none on this machine.
    reason: Option<String>,
}

pub(crate) fn run(args: &OpsArgs) -> Result<()> {
    let isa = Isa::from_env().map_err(RuntimeError::from)?;
    let kernels = Kernels::new(isa).ok_or(IsaError::Unsupported(isa)).map_err(RuntimeError::from)?;
    let build = BuildCx::new(kernels);
    let cells = cells(&build);
    match args.format {
        Format::Json => output::json(&to_json(isa, &cells, &rules(&build)?))?,
        Format::Text => output::stream(&to_text(isa, &cells, &rules(&build)?))?,
    }
    Ok(())
}

/// Every backend that exists, row by row.
fn cells(build: &BuildCx) -> Vec<Cell> {
    let mut cells = Vec::new();
    for operator in Operator::ALL {
        for backend in BACKENDS {
            for &dtype in operator.dtypes(backend) {
                let reason = build.check(operator, backend, dtype).err().map(|error| match error {
                    OpError::Unavailable { reason, .. } => reason,
                    error => error.to_string(),
                });
                cells.push(Cell { operator, backend, dtype, reason });
            }
        }
    }
    cells
}

/// What `auto` means for each operator where nothing was measured.
fn rules(build: &BuildCx) -> Result<Vec<(Operator, Choice)>, OpError> {
    let rule = |op| Ok((op, build.resolve(sample(op), Choice::default())?));
    Operator::ALL.into_iter().map(rule).collect()
}

/// A shape that every backend takes.
const fn sample(op: Operator) -> OpShape {
    let dtype = OpDType::F32;
    match op {
        Operator::Norm | Operator::Rope => OpShape::row(op, dtype, 64),
        Operator::Attention => {
            OpShape { op, dtype, size: OpSize::Heads { n_heads: 1, n_kv_heads: 1, head_dim: 64 } }
        }
        Operator::Mlp => OpShape::mlp(dtype, 64, 64, true),
        Operator::QkvProjection | Operator::OutProjection | Operator::LmHead | Operator::Linear => {
            OpShape::matrix(op, dtype, 64, 64)
        }
    }
}

fn to_json(isa: Isa, cells: &[Cell], rules: &[(Operator, Choice)]) -> Value {
    let cell = |cell: &Cell| {
        json!({
            "operator": cell.operator.name(),
            "backend": cell.backend.name(),
            "dtype": cell.dtype.name(),
            "available": cell.reason.is_none(),
            "reason": cell.reason,
        })
    };
    let rule = |(op, choice): &(Operator, Choice)| (op.name().to_owned(), json!(choice.to_string()));
    json!({
        "isa": isa.name(),
        "operators": cells.iter().map(cell).collect::<Vec<_>>(),
        "rule": rules.iter().map(rule).collect::<Map<_, _>>(),
    })
}

fn to_text(isa: Isa, cells: &[Cell], rules: &[(Operator, Choice)]) -> String {
    let mut rows = vec![vec!["operator".to_owned()]];
    rows[0].extend(BACKENDS.map(|backend| backend.name().to_owned()));
    for (operator, _) in rules {
        let mut row = vec![operator.name().to_owned()];
        row.extend(BACKENDS.map(|backend| types(cells, *operator, backend)));
        rows.push(row);
    }
    let mut out = format!("on {isa}\n\n{}\n{}\n", table(rows), operators::int4_note());
    let missing = missing(cells);
    if !missing.is_empty() {
        let _ = write!(out, "\n* not on this machine:\n{}", table(missing));
    }
    let _ = writeln!(out, "\nauto, where no plan says what measured best: {}", rule_text(rules));
    out
}

/// The types of a backend; a star marks what is missing on this machine.
fn types(cells: &[Cell], operator: Operator, backend: Backend) -> String {
    let of = cells.iter().filter(|cell| cell.operator == operator && cell.backend == backend);
    let names = of.map(|cell| format!("{}{}", cell.dtype, if cell.reason.is_some() { "*" } else { "" }));
    let names: Vec<_> = names.collect();
    if names.is_empty() { "-".to_owned() } else { names.join(" ") }
}

/// Backend, types and reason of what is missing, each once.
fn missing(cells: &[Cell]) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for cell in cells {
        let Some(reason) = &cell.reason else { continue };
        let row = vec![cell.backend.to_string(), cell.dtype.to_string(), reason.clone()];
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    rows
}

/// What most operators get, then the others.
fn rule_text(rules: &[(Operator, Choice)]) -> String {
    let Some(&(_, usual)) = rules.first() else { return String::new() };
    let others = rules.iter().filter(|(_, choice)| *choice != usual);
    let others: String = others.map(|(op, choice)| format!("; {op} {choice}")).collect();
    format!("{usual}{others} (native for heads that the tiles lack)")
}
