//! `pace-cli tokenize`.

use anyhow::Result;
use pace_runtime::config::Env;
use pace_runtime::{RuntimeError, tokenizer::Tokenizer};
use serde_json::json;

use crate::args::{Format, TokenizeArgs};
use crate::output;
use crate::session::{read_text, tokenizer_alone};

pub(crate) fn run(env: &Env, args: TokenizeArgs) -> Result<()> {
    let text = match args.text.file {
        Some(path) => read_text(&path)?,
        None => args.text.text.unwrap_or_default(),
    };
    let tokenizer = tokenizer_alone(env, args.model.as_deref())?;
    let special = !args.no_special;
    // No text has no tokens, not even the one that begins a text.
    let ids = if text.is_empty() {
        Vec::new()
    } else {
        tokenizer.encode(&text, special, special).map_err(RuntimeError::from)?
    };
    match args.format {
        Format::Json => output::json(&json!({"tokens": ids, "pieces": pieces(&tokenizer, &ids)?}))?,
        Format::Text => output::line(&format!("{ids:?}"))?,
    }
    Ok(())
}

/// The tokens as the vocabulary spells them.
pub(super) fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Vec<String>> {
    let piece = |(position, &id): (usize, &u32)| {
        let vocab = tokenizer.vocab_size();
        tokenizer.piece(id).ok_or_else(|| RuntimeError::UnknownToken { id, position, vocab }.into())
    };
    ids.iter().enumerate().map(piece).collect()
}
