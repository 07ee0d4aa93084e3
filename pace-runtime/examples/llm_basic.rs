//! The basic use of an engine: choose backends and a KV cache, load a model, continue a prompt as it streams.
//! `cargo run --release -p pace-runtime --example llm_basic -- MODEL PROMPT`; without arguments, a model with random
//! weights answers in token ids.

use std::error::Error;
use std::io::Write as _;
use std::sync::Arc;

use pace_runtime::generation_config::SamplingOverrides;
use pace_runtime::kv_cache::KvCacheKind;
use pace_runtime::{
    DType, EngineConfig, EngineHandle, ModelFiles, ModelRef, OperatorConfig, Request, TokenEvent,
};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (model, prompt) = match args.as_slice() {
        [] => ("random:tiny", None),
        [model, prompt] => (model.as_str(), Some(prompt)),
        _ => return Err("usage: llm_basic [MODEL PROMPT]".into()),
    };
    let files = Arc::new(ModelFiles::open(&ModelRef::parse(model)?)?);
    let mut config = EngineConfig::detect(DType::Bf16, None)?;
    config.load.operators = OperatorConfig::native();
    config.kv_cache = KvCacheKind::Bmc.into();
    let request = Request {
        prompt: match prompt {
            Some(text) => files.require_tokenizer()?.encode(text, true, true)?,
            None => vec![1, 2, 3],
        },
        max_new_tokens: 64,
        sampling: files.generation_config().apply(&SamplingOverrides::default()),
        eos: files.eos().to_vec(),
        ..Request::default()
    };
    let engine = EngineHandle::start(&files, config, Box::new(|_, _| {}))?;
    let mut out = std::io::stdout();
    for event in engine.submit(request)? {
        match event {
            TokenEvent::Token { id, .. } if prompt.is_none() => write!(out, "{id} ")?,
            TokenEvent::Token { text, .. } => write!(out, "{text}")?,
            TokenEvent::Finished(finish) => writeln!(out, "{}", finish.text)?,
            TokenEvent::Failed(error) => return Err(error.into()),
        }
        out.flush()?;
    }
    Ok(())
}
