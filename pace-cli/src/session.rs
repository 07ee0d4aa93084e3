//! From a command line to a running engine.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use pace_runtime::config::Env;
use pace_runtime::tokenizer::Tokenizer;
use pace_runtime::{EngineConfig, EngineHandle, LoadProgress, ModelFiles, ModelRef, RuntimeError};

use crate::args::EngineArgs;
use crate::exit::Usage;
use crate::hub::resolve;
use crate::operators;

/// An opened model and the engine that runs it.
pub(crate) struct Session {
    pub(crate) files: Arc<ModelFiles>,
    pub(crate) engine: EngineHandle,
}

impl Session {
    /// Opens the model, checks what can be checked without its weights by `check`, and starts the engine. It times its
    /// operators if the log level asks for that.
    pub(crate) fn start<T>(
        env: &Env,
        args: &EngineArgs,
        check: impl FnOnce(&ModelFiles) -> Result<T>,
    ) -> Result<(Self, T)> {
        args.platform.expect_one_instance()?;
        let config = EngineConfig { profile: env.log_level.profiles(), ..args.config(env)? };
        let files = open(env, args.model.as_deref())?;
        let checked = check(&files)?;
        Ok((Self::with(files, config)?, checked))
    }

    /// Starts the engine for an opened model.
    pub(crate) fn with(files: impl Into<Arc<ModelFiles>>, config: EngineConfig) -> Result<Self> {
        let files = files.into();
        let engine = EngineHandle::start(&files, config, load_progress())?;
        let info = engine.info();
        tracing::info!(
            "{}: {} weights on {} {} threads in {:.2} s, {}",
            files.name(),
            HumanCount(files.spec().parameters() as u64),
            info.threads,
            info.isa,
            info.load_time.as_secs_f64(),
            operators::huge_pages(info)
        );
        operators::summary(info).iter().for_each(|line| tracing::info!("{line}"));
        Ok(Self { files, engine })
    }

    /// Writes to stderr where the time went, if that was measured.
    pub(crate) fn log_profile(&self) -> Result<()> {
        if let Some(report) = self.engine.profile()? {
            // Nobody may be there to read it.
            let _ = write!(std::io::stderr(), "{report}");
        }
        Ok(())
    }
}

/// Opens the model that the user named, or the default one; a name that is not in a cache is fetched.
pub(crate) fn open(env: &Env, model: Option<&str>) -> Result<ModelFiles> {
    Ok(ModelFiles::open(&locate(env, model)?)?)
}

/// Where measured plans of operators are kept.
pub(crate) fn plan_dir(env: &Env) -> Option<PathBuf> {
    env.cache_dir.as_ref().map(|dir| dir.join("plans"))
}

/// Where the model is that the user named, or the default one; a name that is not in a cache is fetched.
pub(crate) fn locate(env: &Env, model: Option<&str>) -> Result<ModelRef> {
    Ok(ModelRef::parse(&resolve(env, model)?)?)
}

/// The model's tokenizer; `advice` is what to do where it has none.
pub(crate) fn tokenizer<'f>(files: &'f ModelFiles, advice: &str) -> Result<&'f Arc<Tokenizer>> {
    files.require_tokenizer().map_err(|error| advise(error, advice))
}

/// The tokenizer, without the rest, of the model that the user named, or of the default one.
pub(crate) fn tokenizer_alone(env: &Env, model: Option<&str>) -> Result<Arc<Tokenizer>> {
    const ADVICE: &str = "name a directory with tokenizer.json, or a GGUF file with a vocabulary";
    locate(env, model)?.open_tokenizer().map_err(|error| advise(error, ADVICE))
}

fn advise(error: RuntimeError, advice: &str) -> anyhow::Error {
    match error {
        RuntimeError::NoTokenizer { .. } => Usage(format!("{error}: {advice}")).into(),
        error => error.into(),
    }
}

/// The ids of `text` as the model's own rules begin and end it; special tokens in it count as such. `flag` takes ids
/// in place of a text.
pub(crate) fn encode(files: &ModelFiles, text: &str, flag: &str) -> Result<Vec<u32>> {
    let tokenizer = tokenizer(files, &format!("give token ids by {flag}"))?;
    Ok(tokenizer.encode(text, true, true).map_err(RuntimeError::from)?)
}

/// A file's text, byte for byte; `-` is standard input.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        return read_stdin();
    }
    std::fs::read_to_string(path).map_err(|e| Usage(format!("{}: {e}", path.display())).into())
}

/// All of standard input.
pub(crate) fn read_stdin() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| Usage(format!("standard input: {e}")))?;
    Ok(text)
}

/// A bar on stderr while weights are packed, if that is a terminal and takes a while.
pub(crate) fn load_progress() -> LoadProgress {
    if !std::io::stderr().is_terminal() {
        return Box::new(|_, _| {});
    }
    let style = ProgressStyle::with_template("loading weights {bar:30} {percent:>3} %  {eta}");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    Box::new(move |done, total| {
        if bar.elapsed() > Duration::from_millis(300) {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        }
        if done >= total {
            bar.finish_and_clear();
        }
    })
}
