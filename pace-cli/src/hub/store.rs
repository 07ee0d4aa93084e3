//! PACE's own cache of models, for what does not come from the HF hub: `pypi/pkg==ver/path/in/the/wheel`.
//!
//! Everything is made in `.partial` below the same directory, so that the last step is a rename: a model is there
//! whole or not at all. What a killed process leaves in `.partial` goes when the next one starts to fetch.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use indicatif::DecimalBytes;
use tempfile::TempDir;

use super::lock::lock;
use super::progress::Progress;
use super::reference::WheelRef;

/// Room to leave on the disk beside the model.
const SPARE_BYTES: u64 = 64 << 20;

/// The directory of models below a cache root.
pub(crate) struct Store {
    models: PathBuf,
}

/// A private directory to fetch into. Dropping it removes what is left in it, then releases the lock.
pub(crate) struct Staging {
    dir: TempDir,
    _lock: Option<File>,
}

/// The disk has no room.
#[derive(Debug)]
pub(crate) struct NoSpace {
    dir: PathBuf,
    free: u64,
    needed: u64,
}

impl Staging {
    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Store {
    /// The store below a cache root; nothing is created yet.
    pub(crate) fn new(cache: &Path) -> Self {
        Self { models: cache.join("models") }
    }

    /// The directory of all wheels' content.
    pub(crate) fn wheels(&self) -> PathBuf {
        self.models.join("pypi")
    }

    /// Where the content of a wheel goes.
    pub(crate) fn place(&self, wheel: &WheelRef) -> PathBuf {
        self.wheels().join(wheel.requirement()).join(&wheel.member)
    }

    /// What was made of a wheel, if it is here.
    pub(crate) fn find(&self, wheel: &WheelRef) -> Option<PathBuf> {
        Some(self.place(wheel)).filter(|path| path.exists())
    }

    /// Waits for the lock, removes what killed processes left, and makes a directory to fetch into.
    pub(crate) fn stage(&self, progress: &Progress) -> Result<Staging> {
        let partial = self.models.join(".partial");
        fs::create_dir_all(&partial)
            .with_context(|| format!("cannot create the model cache {}", partial.display()))?;
        let lock = lock(&self.models.join(".lock"), progress)?;
        if lock.is_some() {
            remove_leftovers(&partial);
        }
        let dir = tempfile::Builder::new()
            .prefix("fetch-")
            .tempdir_in(&partial)
            .with_context(|| format!("cannot write to the model cache {}", partial.display()))?;
        Ok(Staging { dir, _lock: lock })
    }

    /// Moves a finished file or directory from the staging directory to its place.
    pub(crate) fn install(&self, staging: &Staging, made: &Path, wheel: &WheelRef) -> Result<PathBuf> {
        let target = self.place(wheel);
        let parent = target.parent().unwrap_or(&self.models);
        let context = || format!("cannot move the model to {}", target.display());
        fs::create_dir_all(parent).with_context(context)?;
        sync(made).with_context(context)?;
        // A directory cannot be renamed onto one with files in it.
        if target.exists() {
            fs::rename(&target, staging.path().join("replaced")).with_context(context)?;
        }
        fs::rename(made, &target).with_context(context)?;
        sync(parent).with_context(context)?;
        Ok(target)
    }
}

impl fmt::Display for NoSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dir, free, needed) = (self.dir.display(), DecimalBytes(self.free), DecimalBytes(self.needed));
        write!(f, "{dir} has {free} free, {needed} are needed")
    }
}

impl std::error::Error for NoSpace {}

/// Fails with [`NoSpace`] where the file system of `dir` has no room for `bytes` more; one that does not tell passes.
pub(crate) fn check_space(dir: &Path, bytes: u64) -> Result<()> {
    let Ok(status) = rustix::fs::statvfs(dir) else { return Ok(()) };
    let free = status.f_bavail.saturating_mul(status.f_frsize);
    let needed = bytes.saturating_add(SPARE_BYTES);
    if free < needed {
        return Err(NoSpace { dir: dir.to_path_buf(), free, needed }.into());
    }
    Ok(())
}

/// Asks the system to write a file, or a directory's entries, to the disk.
fn sync(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// What cannot be removed costs disk space only, so errors are left alone.
fn remove_leftovers(partial: &Path) {
    for entry in fs::read_dir(partial).into_iter().flatten().flatten() {
        let _ = fs::remove_dir_all(entry.path());
    }
}
