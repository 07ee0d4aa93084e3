//! `pace-cli env`: every environment variable that means something.

use anyhow::Result;
use pace_runtime::config;
use serde_json::{Value, json};

use crate::args::{EnvArgs, Format};
use crate::output::{self, table};

pub(crate) fn run(args: &EnvArgs) -> Result<()> {
    let values = config::values();
    match args.format {
        Format::Json => {
            let entry = |(variable, value): &(config::Variable, Option<String>)| {
                json!({
                    "name": variable.name,
                    "value": value,
                    "default": variable.default,
                    "meaning": variable.meaning,
                })
            };
            output::json(&values.iter().map(entry).collect::<Value>())?;
        }
        Format::Text => {
            let mut rows = vec![["variable", "value", "default", "meaning"].map(str::to_owned).to_vec()];
            rows.extend(values.into_iter().map(|(variable, value)| {
                let value = value.unwrap_or_else(|| "-".to_owned());
                vec![
                    variable.name.to_owned(),
                    value,
                    variable.default.to_owned(),
                    variable.meaning.to_owned(),
                ]
            }));
            output::stream(&table(rows))?;
        }
    }
    Ok(())
}
