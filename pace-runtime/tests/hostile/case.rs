//! [`Case`]: one way in which a model is wrong, and what must come of it.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use pace_kernels::{DType, Par, WeightFormat};
use pace_models::LoadOptions;
use pace_ops::OperatorConfig;
use pace_runtime::chat::Message;
use pace_runtime::{ErrorKind, LoadProgress, ModelFiles, ModelRef, RuntimeError};

use super::meter::{Cost, Holdings, measure};
use super::sample::Sample;

/// Most memory that a refusal may take beyond what was there, in bytes.
const MOST_MEMORY: usize = 16 << 20;
/// The same for rendering a template: what the template engine's fuel lets it keep.
const MOST_MEMORY_RENDERING: usize = 40 << 20;
/// Most processor time of a refusal. In a test build, which is hardly optimised and may share its cores, the limit
/// only catches what grows faster than its file.
const MOST_TIME: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 50 });
/// After this a case hangs.
const WATCHDOG: Duration = Duration::from_secs(20);
/// The longest message, beside the directory's own name.
const LONGEST_MESSAGE: usize = 1000;

/// How far a model is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Headers, configuration, tokenizer, template.
    Open,
    /// The weights as well.
    Load,
    /// A conversation through the chat template.
    Render,
    /// A text to ids and back.
    Encode,
}

impl Stage {
    /// Takes the model that far.
    pub(crate) fn run(self, model: &ModelRef) -> Result<(), RuntimeError> {
        let files = ModelFiles::open(model)?;
        match self {
            Self::Open => {}
            Self::Load => {
                load(&files, false, Box::new(|_, _| {}))?;
            }
            Self::Render => {
                let conversation = [Message::system("Be brief."), Message::user("Hello")];
                files.require_chat_template()?.render(&conversation, true)?;
            }
            Self::Encode => {
                let tokenizer = files.require_tokenizer()?;
                let ids = tokenizer.encode("ab<s>abc", true, true)?;
                tokenizer.decode(&ids, false)?;
            }
        }
        Ok(())
    }
}

/// Loads the weights in f32.
pub(crate) fn load(
    files: &ModelFiles,
    allow_nonfinite: bool,
    progress: LoadProgress,
) -> Result<(), RuntimeError> {
    let options = LoadOptions {
        weights: WeightFormat::F32,
        activations: DType::F32,
        operators: OperatorConfig::default(),
        panel_width: None,
        imbps_chunks: None,
        allow_nonfinite,
    };
    files.load(options, Par::seq(), &progress).map(drop)
}

/// A model that is wrong in one way.
pub(crate) struct Case {
    pub(crate) label: String,
    sample: Sample,
    stage: Stage,
    /// What the message must name: the file, the tensor or field, and what is wrong with it.
    words: Vec<String>,
}

impl Case {
    pub(crate) fn new(label: impl Into<String>, stage: Stage, sample: Sample, words: &[&str]) -> Self {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        Self { label: label.into(), sample, stage, words }
    }

    /// The model, and what it is called.
    pub(crate) fn into_sample(self) -> (String, Sample) {
        (self.label, self.sample)
    }

    /// Runs the case; says what is wrong with its outcome.
    pub(crate) fn check(&self) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        self.sample.write(dir.path());
        let listing = listing(dir.path());
        // The first run fills caches that belong to the process, the second is measured.
        let first = self.attempt(dir.path())?;
        self.check_error(&first.0, dir.path())?;
        drop(first);
        let before = Holdings::now();
        let (error, cost) = self.attempt(dir.path())?;
        drop(error);
        before.assert_restored(&self.label);
        let fail = |what: String| Err(format!("{}: {what}", self.label));
        if listing != self::listing(dir.path()) {
            return fail("the directory has changed".to_owned());
        }
        let most = if self.stage == Stage::Render { MOST_MEMORY_RENDERING } else { MOST_MEMORY };
        if cost.peak > most {
            return fail(format!("took {} KiB", cost.peak >> 10));
        }
        if cost.cpu > MOST_TIME {
            return fail(format!("took {:?}", cost.cpu));
        }
        Ok(())
    }

    /// The error that the model ends in, and what that took.
    fn attempt(&self, dir: &Path) -> Result<(RuntimeError, Cost), String> {
        let (model, stage) = (self.sample.model(dir), self.stage);
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = sender.send(measure(|| stage.run(&model)));
        });
        match receiver.recv_timeout(WATCHDOG) {
            Ok((Err(error), cost)) => {
                thread.join().unwrap();
                Ok((error, cost))
            }
            Ok((Ok(()), _)) => Err(format!("{}: accepted", self.label)),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(format!("{}: hangs", self.label)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(format!("{}: panicked", self.label)),
        }
    }

    fn check_error(&self, error: &RuntimeError, dir: &Path) -> Result<(), String> {
        let message = error.to_string();
        let fail = |what: &str| Err(format!("{}: {what}: {message:.300}", self.label));
        if error.kind() != ErrorKind::Model {
            return fail(&format!("is {:?}", error.kind()));
        }
        if let Some(word) = self.words.iter().find(|word| !message.contains(word.as_str())) {
            return fail(&format!("`{word}` is not named"));
        }
        if message.contains(|c: char| c.is_control()) {
            return fail("control characters in the message");
        }
        if message.len() > LONGEST_MESSAGE + dir.as_os_str().len() {
            return fail(&format!("a message of {} bytes", message.len()));
        }
        Ok(())
    }
}

/// Every name in `dir` with its length and the time of its last change.
fn listing(dir: &Path) -> Vec<(std::ffi::OsString, u64, std::time::SystemTime)> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.path().symlink_metadata().unwrap();
            (entry.file_name(), meta.len(), meta.modified().unwrap())
        })
        .collect();
    all.sort();
    all
}
