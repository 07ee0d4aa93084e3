//! A file that is not complete yet, and the checksum of what is there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};

use super::checksum::{CHUNK, hex};
use super::progress::Step;

/// A file under construction.
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
    hash: Sha256,
    bytes: u64,
    /// The strong entity tag that the part came with.
    pub(crate) validator: Option<String>,
}

/// What ended a copy.
pub(crate) enum CopyError {
    /// The source.
    Read(io::Error),
    /// Anything else: the disk, the limit, the user.
    Other(anyhow::Error),
}

impl Partial {
    /// Opens or creates `path`. What is there counts as the first part if `resume` says so and it is no longer
    /// than `limit`; else it goes. A link at `path` is not followed.
    pub(crate) fn open(path: &Path, resume: bool, limit: u64, step: &Step<'_>) -> Result<Self> {
        let context = || format!("cannot write {}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .with_context(context)?;
        let mut partial =
            Self { path: path.to_path_buf(), file, hash: Sha256::new(), bytes: 0, validator: None };
        let there = partial.file.metadata().with_context(context)?.len();
        if !resume || there > limit {
            partial.restart(step)?;
            return Ok(partial);
        }
        let mut chunk = vec![0; CHUNK];
        loop {
            let read =
                partial.file.read(&mut chunk).with_context(|| format!("reading {}", path.display()))?;
            if read == 0 {
                return Ok(partial);
            }
            partial.hash.update(&chunk[..read]);
            partial.bytes += read as u64;
            step.set(partial.bytes)?;
        }
    }

    /// Bytes that are there.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The SHA-256 of what is there, in lower-case hexadecimal digits.
    pub(crate) fn sha256(&self) -> String {
        hex(&self.hash.clone().finalize())
    }

    /// Forgets what is there.
    pub(crate) fn restart(&mut self, step: &Step<'_>) -> Result<()> {
        use std::io::Seek;
        self.file.set_len(0).and_then(|()| self.file.rewind()).context("cannot empty the file")?;
        (self.hash, self.bytes, self.validator) = (Sha256::new(), 0, None);
        step.set(0)
    }

    /// Appends what comes from `from`. More than `limit` bytes in all are an error, so that a source cannot fill
    /// the disk.
    pub(crate) fn append(
        &mut self,
        from: &mut dyn Read,
        limit: u64,
        step: &Step<'_>,
    ) -> Result<(), CopyError> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = match from.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(CopyError::Read(error)),
            };
            if self.bytes + read as u64 > limit {
                return Err(CopyError::Other(anyhow!("there are more than the expected {limit} bytes")));
            }
            let written = self.file.write_all(&chunk[..read]).context("cannot write the file to the disk");
            written.map_err(CopyError::Other)?;
            self.hash.update(&chunk[..read]);
            self.bytes += read as u64;
            step.set(self.bytes).map_err(CopyError::Other)?;
        }
    }

    /// Makes sure that the file is on the disk, and returns its checksum.
    pub(crate) fn keep(self) -> Result<String> {
        self.file.sync_all().context("cannot write the file to the disk")?;
        Ok(self.sha256())
    }

    /// Removes the file: its content is wrong.
    pub(crate) fn remove(self) {
        // A file that stays is refused again, by its checksum.
        let _ = fs::remove_file(&self.path);
    }
}
