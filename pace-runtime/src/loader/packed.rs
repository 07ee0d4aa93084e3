//! Packed models: a directory that loads without packing, how it is made and how it is opened.
//!
//! Beside weights and manifest it has what the model's kind needs: `config.json` and the tokenizer's files of a directory in
//! HF's layout, or the metadata of a GGUF file. It is written under another name and gets its own once it is complete.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pace_models::file::clip;
use pace_models::weights::gguf::GgufFile;
use pace_models::weights::packed::{
    MANIFEST, METADATA, Origin, OriginFile, OriginKind, PackedModel, PackedSource, WEIGHTS,
};
use pace_models::weights::random::random_spec;
use pace_models::{ModelError, ModelFormats, QuantLoss};

use super::{ModelFiles, ModelRef};
use crate::tokenizer::Tokenizer;
use crate::{EngineConfig, LoadProgress, RuntimeError, check_memory};

/// What is copied of a directory in HF's layout, where it is there: what is read of it, and the terms that go with it.
const COPIED: [&str; 11] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "USE_POLICY.md",
];

/// Where a packed model goes.
#[derive(Clone, Copy, Debug)]
pub struct PackTarget<'a> {
    /// The directory to be made. The one that it is in exists.
    pub dir: &'a Path,
    /// Whether it may replace a packed model that is there. Nothing else is ever replaced.
    pub force: bool,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct PackReport {
    /// The files and their sizes.
    pub files: Vec<(PathBuf, u64)>,
    /// In which format each matrix is kept.
    pub formats: ModelFormats,
    /// What weights lost when they became integers.
    pub losses: Vec<QuantLoss>,
    /// Reading and packing.
    pub pack_time: Duration,
    /// Writing, until all of it was on the disk.
    pub write_time: Duration,
}

impl ModelFiles {
    /// Packs the weights as `config` loads them and writes the packed model to `target`. `written` is called with the bytes
    /// of weights written and their number, first with 0 before anything is; its error ends the writing, and nothing is left
    /// of it.
    ///
    /// # Errors
    /// The target exists or cannot be made; the model cannot be loaded, or is packed already; there is too little memory; a
    /// file cannot be written.
    pub fn pack(
        &self,
        config: &EngineConfig,
        target: PackTarget<'_>,
        progress: &LoadProgress,
        written: &mut dyn FnMut(u64, u64) -> io::Result<()>,
    ) -> Result<PackReport, RuntimeError> {
        target.check()?;
        Partial::report_others(target.dir);
        // A directory that cannot be made is better known now than after some minutes.
        drop(Partial::create(target.dir)?);
        let formats = self.packed_formats(&config.load);
        let bytes = formats.bytes(&self.spec) as u64;
        check_memory(bytes, || format!("packed weights {bytes}"))?;
        let start = Instant::now();
        let packed = self.pack_in_memory(config, progress)?;
        let (pack_time, start) = (start.elapsed(), Instant::now());
        let (all, mut done) = (packed.bytes(), 0);
        written(done, all).map_err(|e| ModelError::write(target.dir, e))?;
        let partial = Partial::create(target.dir)?;
        let mut step = |bytes| {
            done += bytes;
            written(done, all)
        };
        packed.write(&partial.dir, self.pack_origin(), self.origin.kind(), config.isa.name(), &mut step)?;
        self.write_description(&partial.dir)?;
        partial.publish(target)?;
        let files = files_in(target.dir).map_err(|e| ModelError::io(target.dir, e))?;
        let losses = packed.losses().to_vec();
        Ok(PackReport { files, formats, losses, pack_time, write_time: start.elapsed() })
    }

    /// Packs on threads as the engine has them.
    fn pack_in_memory(
        &self,
        config: &EngineConfig,
        progress: &LoadProgress,
    ) -> Result<PackedModel, RuntimeError> {
        let (total, done) = (self.spec.parameters(), AtomicUsize::new(0));
        let report = |n: usize| progress(done.fetch_add(n, Ordering::Relaxed) + n, total);
        let (source, options) = (self.source.as_ref(), config.load.clone());
        let run = || {
            let (kernels, pool) = (config.kernels()?, config.pool(config.cpus.len())?);
            PackedModel::new(source, self.architecture, &self.spec, options, kernels, pool.par(), &report)
                .map_err(RuntimeError::from)
        };
        // A thread of its own: the caller's is not to be pinned.
        std::thread::scope(|scope| scope.spawn(run).join())
            .unwrap_or_else(|_| Err(RuntimeError::Internal("packing panicked".to_owned())))
    }

    /// What the model is made from, for the manifest.
    fn pack_origin(&self) -> Origin {
        let mut paths: Vec<&Path> = Vec::new();
        for tensor in self.source.tensors() {
            let path = self.source.path(&tensor.name);
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        let config = match &self.origin {
            ModelRef::Directory(path) => Some(path.join("config.json")),
            ModelRef::Gguf(_) | ModelRef::Random(_) => None,
        };
        paths.extend(config.as_deref());
        let file = |path: &Path| {
            let meta = fs::metadata(path).ok()?;
            let name = path.file_name()?.to_string_lossy().into_owned();
            Some(OriginFile { name, bytes: meta.size(), modified: meta.mtime() })
        };
        let path = match &self.origin {
            ModelRef::Directory(path) | ModelRef::Gguf(path) => std::path::absolute(path).ok(),
            ModelRef::Random(_) => None,
        };
        let path = path.and_then(|path| path.into_os_string().into_string().ok());
        Origin { name: self.name.clone(), path, files: paths.into_iter().filter_map(file).collect() }
    }

    /// Writes what describes the model into `dir`, where its weights are.
    fn write_description(&self, dir: &Path) -> Result<(), RuntimeError> {
        match &self.origin {
            ModelRef::Directory(from) => {
                for name in COPIED {
                    let (from, to) = (from.join(name), dir.join(name));
                    if from.is_file() {
                        copy(&from, &to).map_err(|e| ModelError::write(&to, e))?;
                    }
                }
            }
            ModelRef::Gguf(from) => {
                let (metadata, to) = (GgufFile::open(from)?.metadata().to_gguf(), dir.join(METADATA));
                fs::write(&to, metadata)
                    .and_then(|()| File::open(&to)?.sync_all())
                    .map_err(|e| ModelError::write(&to, e))?;
            }
            ModelRef::Random(_) => {}
        }
        Ok(())
    }

    /// Opens the packed model in `dir`.
    pub(super) fn open_packed(model: &ModelRef, dir: &Path) -> Result<Self, RuntimeError> {
        let source = PackedSource::open(dir)?;
        let (manifest, path) = (source.manifest().clone(), dir.join(MANIFEST));
        if let Some(changed) = changed_since(&manifest.origin) {
            let what = format!(
                "{} has changed since it was packed: pack it again, with --force, or move it away if the packed model is \
                 wanted as it was",
                clip(&changed.to_string_lossy())
            );
            return Err(ModelError::file(&path, what).into());
        }
        let opened = match manifest.kind {
            OriginKind::Hf => Self::open_checkpoint(model, dir, |_| Ok(Box::new(source)))?,
            OriginKind::Gguf => {
                let file = GgufFile::open(&dir.join(METADATA))?;
                Self::with_metadata(model, file.metadata(), Box::new(source))?
            }
            OriginKind::Random => {
                let spec = random_spec(manifest.origin.name.trim_start_matches("random:"))
                    .map_err(|e| ModelError::field(&path, "origin.name", clip(&e.to_string())))?;
                let opened = Self::without_tokenizer(model, spec, Box::new(source));
                opened.architecture.validate_shapes(opened.source(), opened.spec())?;
                opened
            }
        };
        if opened.architecture.name() != manifest.architecture {
            let what = format!(
                "is {}, but the model beside it is a {}",
                clip(&manifest.architecture),
                opened.architecture.name()
            );
            return Err(ModelError::field(&path, "architecture", what).into());
        }
        Ok(opened)
    }
}

impl ModelRef {
    /// What a packed model of it is called in its manifest.
    const fn kind(&self) -> OriginKind {
        match self {
            Self::Directory(_) => OriginKind::Hf,
            Self::Gguf(_) => OriginKind::Gguf,
            Self::Random(_) => OriginKind::Random,
        }
    }
}

/// A file of `origin` that is there, with another size or time than when it was packed.
fn changed_since(origin: &Origin) -> Option<PathBuf> {
    let path = Path::new(origin.path.as_ref()?);
    let dir = if path.is_file() { path.parent()? } else { path };
    origin.files.iter().find_map(|file| {
        let path = dir.join(Path::new(&file.name).file_name()?);
        let meta = fs::metadata(&path).ok()?;
        ((meta.size(), meta.mtime()) != (file.bytes, file.modified)).then_some(path)
    })
}

/// The tokenizer of a directory, if it has one.
pub(super) fn tokenizer(dir: &Path) -> Result<Option<Tokenizer>, RuntimeError> {
    let metadata = dir.join(METADATA);
    if PackedSource::is_in(dir) && metadata.is_file() {
        return Ok(Tokenizer::from_gguf(GgufFile::open(&metadata)?.metadata())?);
    }
    Ok(Tokenizer::from_dir(dir)?)
}

impl PackTarget<'_> {
    /// Refuses what is not to be replaced.
    fn check(&self) -> Result<(), RuntimeError> {
        let wrong = |what: &str| {
            Err(RuntimeError::PackTarget { path: self.dir.to_path_buf(), what: what.to_owned() })
        };
        if self.dir.file_name().is_none() {
            return wrong("a directory that is to be made is needed");
        }
        match self.dir.symlink_metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(ModelError::io(self.dir, e).into()),
            Ok(_) if !self.force => wrong("is there already; --force replaces a packed model"),
            Ok(meta) if meta.is_dir() && PackedSource::is_in(self.dir) => Ok(()),
            Ok(_) => {
                wrong("is no packed model, and nothing else is replaced; remove it, or name another place")
            }
        }
    }
}

/// A directory that is being written. It is removed unless it is published.
struct Partial {
    dir: PathBuf,
}

impl Partial {
    /// Makes the directory beside its place to be, so that it gets there by a rename.
    fn create(place: &Path) -> Result<Self, RuntimeError> {
        let parent = parent(place);
        if !parent.is_dir() {
            let what = format!("there is no directory {}", parent.display());
            return Err(RuntimeError::PackTarget { path: place.to_path_buf(), what });
        }
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        // Of another container, a process may have this one's number.
        for attempt in 0.. {
            let dir = parent.join(format!(".{name}.partial-{}-{attempt}", std::process::id()));
            match fs::create_dir(&dir) {
                Ok(()) => return Ok(Self { dir }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(ModelError::write(&dir, error).into()),
            }
        }
        unreachable!("one of all numbers is free")
    }

    /// Tells of directories of this name that other runs left, which were killed, or are still writing.
    fn report_others(place: &Path) {
        let prefix = format!(".{}.partial-", place.file_name().unwrap_or_default().to_string_lossy());
        for entry in fs::read_dir(parent(place)).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                tracing::warn!(
                    "{}: another run is writing it, or was killed while it did; in that case, remove it",
                    entry.path().display()
                );
            }
        }
    }

    /// Gives the directory its name, once its content is on the disk.
    fn publish(self, target: PackTarget<'_>) -> Result<(), RuntimeError> {
        let publish = || {
            File::open(&self.dir)?.sync_all()?;
            if target.force && target.dir.is_dir() {
                // What was there goes with `self`.
                exchange(&self.dir, target.dir)?;
            } else {
                fs::rename(&self.dir, target.dir)?;
            }
            File::open(parent(target.dir))?.sync_all()
        };
        publish().map_err(|e| ModelError::write(target.dir, e).into())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{}: {error}; it is of no use, remove it", self.dir.display());
            }
            _ => {}
        }
    }
}

/// The directory that `path` is in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Makes two directories change their names.
#[cfg(target_os = "linux")]
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};

    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

/// Puts the directory `one` in the place of `other`, which is gone for a moment.
#[cfg(not(target_os = "linux"))]
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    fs::remove_dir_all(other)?;
    fs::rename(one, other)
}

/// Copies a file, and sees to it that the copy is on the disk.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir)?;
    }
    let (mut from, mut to) = (File::open(from)?, File::create(to)?);
    io::copy(&mut from, &mut to)?;
    to.sync_all()
}

/// The files of a packed model, weights first.
fn files_in(dir: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let names = [WEIGHTS, MANIFEST, METADATA].into_iter().chain(COPIED);
    let paths = names.map(|name| dir.join(name)).filter(|path| path.is_file());
    paths.map(|path| path.metadata().map(|meta| (path, meta.len()))).collect()
}
