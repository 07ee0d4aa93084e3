//! `pace-cli detokenize`.

use std::io::IsTerminal;

use anyhow::Result;
use pace_runtime::RuntimeError;
use pace_runtime::config::Env;
use serde_json::json;

use super::tokenize::pieces;
use crate::args::{DetokenizeArgs, Format};
use crate::exit::Usage;
use crate::output;
use crate::session::{read_text, tokenizer_alone};

pub(crate) fn run(env: &Env, args: DetokenizeArgs) -> Result<()> {
    let list = match args.ids.file {
        Some(path) => read_text(&path)?,
        None => args.ids.tokens.unwrap_or_default(),
    };
    let ids = parse(&list)?;
    let tokenizer = tokenizer_alone(env, args.model.as_deref())?;
    let pieces = pieces(&tokenizer, &ids)?;
    let text = tokenizer.decode(&ids, args.no_special).map_err(RuntimeError::from)?;
    match args.format {
        Format::Json => output::json(&json!({"tokens": ids, "pieces": pieces, "text": text}))?,
        Format::Text if std::io::stdout().is_terminal() => output::line(&text)?,
        Format::Text => output::stream(&text)?,
    }
    Ok(())
}

/// Ids between commas, white space or both, and within brackets or not: `[1, 2]`, `1,2` and `1 2` are the same.
fn parse(list: &str) -> Result<Vec<u32>> {
    let list = list.trim();
    let inner = list.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(list);
    inner
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|id| !id.is_empty())
        .map(|id| {
            let wrong =
                |_| Usage(format!("`{id}` is not a token id: give whole numbers, as in 1,2,3")).into();
            id.parse().map_err(wrong)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_in_every_usual_form() {
        for list in ["1,2,30", "[1, 2, 30]", "1 2\n30\n", " 1,2 ,30, "] {
            assert_eq!(parse(list).expect("a list"), [1, 2, 30], "{list:?}");
        }
        for list in ["", "[]", " \n"] {
            assert!(parse(list).expect("an empty list").is_empty(), "{list:?}");
        }
        for list in ["1,-2", "1.5", "4294967296", "[1", "a"] {
            assert!(parse(list).is_err(), "{list:?}");
        }
    }
}
