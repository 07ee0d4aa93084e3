//! Bad models and bad requests: an exit code, a message that names what is wrong, and no panic.

// The permission of `clippy.toml` ends at functions without `#[test]`.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod config;
mod gguf;
mod safetensors;
mod tokenizer;
mod usage;

use std::path::Path;

use common::{Outcome, arg, pace};

/// `generate` by token ids on `model`: the whole way from the files to logits.
fn generate(model: &Path) -> Outcome {
    pace(&["generate", "-m", arg(model), "--prompt-tokens", "1,2", "-n", "1", "--format", "json"])
}
