//! [`ModelFiles`]: a model on disk, opened and checked but not yet read.

mod packed;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pace_kernels::{Kernels, Par};
use pace_models::config::HfConfig;
use pace_models::weights::WeightSource;
use pace_models::weights::gguf::{GgufFile, Metadata};
use pace_models::weights::packed::PackedSource;
use pace_models::weights::quantised;
use pace_models::weights::random::{RandomSource, random_spec};
use pace_models::{Architecture, Decoder, DecoderSpec, LoadOptions, Model, ModelError, ModelFormats};

pub use self::packed::{PackReport, PackTarget};
use crate::chat::ChatTemplate;
use crate::generation_config::GenerationConfig;
use crate::tokenizer::Tokenizer;
use crate::{LoadProgress, RuntimeError, platform};

/// The seed of `random:` models: the same weights every time.
const RANDOM_SEED: u64 = 0x5eed;

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRef {
    /// A directory in HF's layout, or with a packed model.
    Directory(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// A shape of the built-in list with seeded random weights.
    Random(String),
}

/// A model's headers, configuration, tokenizer and chat template; its weights stay on disk until
/// [`load`](Self::load).
pub struct ModelFiles {
    origin: ModelRef,
    name: String,
    architecture: Architecture,
    spec: DecoderSpec,
    source: Box<dyn WeightSource>,
    tokenizer: Option<Arc<Tokenizer>>,
    chat_template: Option<ChatTemplate>,
    generation: GenerationConfig,
    eos: Vec<u32>,
}

/// How much of a model is stored in one format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatShare {
    /// The format, in the file's own spelling.
    pub format: String,
    /// Tensors in it.
    pub tensors: usize,
    /// Weights in it.
    pub weights: usize,
}

impl ModelRef {
    /// Reads what a user typed: `random:NAME`, a directory, or a file that ends in `.gguf`.
    ///
    /// # Errors
    /// There is nothing at the path, or nothing that is a model.
    pub fn parse(text: &str) -> Result<Self, RuntimeError> {
        if let Some(name) = text.strip_prefix("random:") {
            return Ok(Self::Random(name.to_owned()));
        }
        let path = PathBuf::from(text);
        let meta = std::fs::metadata(&path).map_err(|e| ModelError::io(&path, e))?;
        if meta.is_dir() {
            return Ok(Self::Directory(path));
        }
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return Ok(Self::Gguf(path));
        }
        let what = "not a model: give a directory with config.json, a .gguf file or random:NAME";
        Err(ModelError::file(&path, what).into())
    }

    /// Opens the model's tokenizer alone. A directory needs no more than `tokenizer.json` for it, and a GGUF file no
    /// tensors.
    ///
    /// # Errors
    /// The model has no tokenizer, or its files are malformed.
    pub fn open_tokenizer(&self) -> Result<Arc<Tokenizer>, RuntimeError> {
        let tokenizer = match self {
            Self::Directory(dir) => packed::tokenizer(dir)?,
            Self::Gguf(path) => Tokenizer::from_gguf(GgufFile::open(path)?.metadata())?,
            Self::Random(_) => None,
        };
        tokenizer.map(Arc::new).ok_or_else(|| RuntimeError::NoTokenizer { model: self.to_string() })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) | Self::Gguf(path) => write!(f, "{}", path.display()),
            Self::Random(name) => write!(f, "random:{name}"),
        }
    }
}

impl ModelFiles {
    /// Opens a model: reads and checks headers, configuration, tokenizer and chat template.
    ///
    /// # Errors
    /// A file is missing, malformed or contradicts another.
    pub fn open(model: &ModelRef) -> Result<Self, RuntimeError> {
        match model {
            ModelRef::Directory(dir) if PackedSource::is_in(dir) => Self::open_packed(model, dir),
            ModelRef::Directory(dir) => Self::open_directory(model, dir),
            ModelRef::Gguf(path) => Self::open_gguf(model, path),
            ModelRef::Random(name) => Self::open_random(model, name),
        }
    }

    /// Packs the weights on the threads of `par`, for the tier of `kernels`.
    ///
    /// # Errors
    /// A tensor is missing, misshapen, unreadable or (unless the options allow it) holds NaN or infinity; a file was
    /// changed meanwhile; there is no memory.
    pub fn load(
        &self,
        options: LoadOptions,
        kernels: Kernels,
        par: Par<'_>,
        progress: &LoadProgress,
    ) -> Result<Box<dyn Model>, RuntimeError> {
        let (total, done) = (self.spec.parameters(), AtomicUsize::new(0));
        let report = |n: usize| progress(done.fetch_add(n, Ordering::Relaxed) + n, total);
        let (source, mmap) = (self.source.as_ref(), options.mmap);
        if mmap {
            source.set_mapped(true)?;
        }
        let before = platform::page_faults();
        let loaded = Decoder::load(source, self.architecture, &self.spec, options, kernels, par, &report);
        if mmap {
            source.set_mapped(false)?;
            if let Some((before, after)) = before.zip(platform::page_faults()) {
                tracing::info!("{}: read from a mapping, with {} page faults", self.name, after - before);
            }
        }
        Ok(Box::new(loaded?))
    }

    /// What the user called the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The family.
    pub const fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// The shape.
    pub const fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// The tensors on disk.
    pub fn source(&self) -> &dyn WeightSource {
        self.source.as_ref()
    }

    /// The tokenizer, if the model has one.
    pub const fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// The model has none.
    pub fn require_tokenizer(&self) -> Result<&Arc<Tokenizer>, RuntimeError> {
        self.tokenizer.as_ref().ok_or_else(|| RuntimeError::NoTokenizer { model: self.name.clone() })
    }

    /// The chat template, if the model has one.
    pub const fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// The chat template.
    ///
    /// # Errors
    /// The model has none.
    pub fn require_chat_template(&self) -> Result<&ChatTemplate, RuntimeError> {
        self.chat_template.as_ref().ok_or_else(|| RuntimeError::NoChatTemplate { model: self.name.clone() })
    }

    /// The model's own defaults for generation.
    pub const fn generation_config(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Tokens that end an answer: what configuration, generation configuration and tokenizer name, united.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// In which format each matrix is going to be kept.
    pub fn packed_formats(&self, options: &LoadOptions) -> ModelFormats {
        ModelFormats::new(self.source(), self.architecture, &self.spec, options)
    }

    /// How the weights are stored.
    pub fn formats(&self) -> Vec<FormatShare> {
        let mut shares = BTreeMap::<&str, (usize, usize)>::new();
        for tensor in self.source.tensors() {
            let share = shares.entry(&tensor.format).or_default();
            share.0 += 1;
            share.1 += tensor.shape.iter().product::<usize>();
        }
        let share = |(format, (tensors, weights)): (&str, _)| FormatShare {
            format: format.to_owned(),
            tensors,
            weights,
        };
        shares.into_iter().map(share).collect()
    }

    fn open_directory(model: &ModelRef, dir: &Path) -> Result<Self, RuntimeError> {
        Self::open_checkpoint(model, dir, |config| quantised::open_directory(dir, config))
    }

    /// Opens a directory in HF's layout, whose weights are what `source` opens.
    fn open_checkpoint(
        model: &ModelRef,
        dir: &Path,
        source: impl FnOnce(&HfConfig) -> Result<Box<dyn WeightSource>, ModelError>,
    ) -> Result<Self, RuntimeError> {
        let config = HfConfig::read(dir)?;
        let architecture = Architecture::from_hf(&config)?;
        let spec = architecture.spec_from_hf(&config)?;
        let source = source(&config)?;
        architecture.validate_shapes(source.as_ref(), &spec)?;
        let tokenizer = Tokenizer::from_dir(dir)?.map(Arc::new);
        let chat_template = chat_template(tokenizer.as_deref())?;
        let generation = GenerationConfig::read(dir)?.unwrap_or_default();
        let config_eos = config.root().token_ids("eos_token_id")?;
        let eos = unite([&config_eos, generation.eos_ids(), tokenizer_eos(tokenizer.as_deref())]);
        let (origin, name) = (model.clone(), model.to_string());
        Ok(Self { origin, name, architecture, spec, source, tokenizer, chat_template, generation, eos })
    }

    fn open_gguf(model: &ModelRef, path: &Path) -> Result<Self, RuntimeError> {
        let file = GgufFile::open(path)?;
        let metadata = file.metadata().clone();
        Self::with_metadata(model, &metadata, Box::new(file))
    }

    /// Opens a model that GGUF metadata describe, with weights from `source`.
    fn with_metadata(
        model: &ModelRef,
        metadata: &Metadata,
        source: Box<dyn WeightSource>,
    ) -> Result<Self, RuntimeError> {
        let architecture = Architecture::from_gguf(metadata)?;
        let spec = architecture.spec_from_gguf(metadata, source.as_ref())?;
        architecture.validate_shapes(source.as_ref(), &spec)?;
        let tokenizer = Tokenizer::from_gguf(metadata)?.map(Arc::new);
        let chat_template = chat_template(tokenizer.as_deref())?;
        let eos = unite([tokenizer_eos(tokenizer.as_deref())]);
        let generation = GenerationConfig::default();
        let (origin, name) = (model.clone(), model.to_string());
        Ok(Self { origin, name, architecture, spec, source, tokenizer, chat_template, generation, eos })
    }

    fn open_random(model: &ModelRef, shape: &str) -> Result<Self, RuntimeError> {
        let spec = random_spec(shape)?;
        let source = Box::new(RandomSource::new(&spec, RANDOM_SEED));
        Ok(Self::without_tokenizer(model, spec, source))
    }

    /// A model of the built-in list, with weights from `source`.
    fn without_tokenizer(model: &ModelRef, spec: DecoderSpec, source: Box<dyn WeightSource>) -> Self {
        Self {
            origin: model.clone(),
            name: model.to_string(),
            architecture: Architecture::Llama,
            source,
            spec,
            tokenizer: None,
            chat_template: None,
            generation: GenerationConfig::default(),
            eos: Vec::new(),
        }
    }
}

fn chat_template(tokenizer: Option<&Tokenizer>) -> Result<Option<ChatTemplate>, RuntimeError> {
    Ok(tokenizer.map(ChatTemplate::from_tokenizer).transpose()?.flatten())
}

fn tokenizer_eos(tokenizer: Option<&Tokenizer>) -> &[u32] {
    tokenizer.map_or(&[], Tokenizer::eos)
}

fn unite<const N: usize>(lists: [&[u32]; N]) -> Vec<u32> {
    let mut all = lists.concat();
    all.sort_unstable();
    all.dedup();
    all
}
