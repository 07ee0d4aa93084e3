//! Waiting for another process that writes to the same place.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::progress::Progress;

/// Between two looks at a lock that another process holds.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// Holds the lock file at `path` until what is returned goes; `None` on file systems that have no locks.
pub(crate) fn lock(path: &Path, progress: &Progress) -> Result<Option<File>> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::Error(error)) => {
                progress.line(&format!("cannot lock {}: {error}; going on without", path.display()));
                return Ok(None);
            }
            Err(TryLockError::WouldBlock) => {
                if !told {
                    progress.line("Another process is fetching the model; waiting for it");
                    told = true;
                }
                progress.check()?;
                thread::sleep(LOCK_POLL);
            }
        }
    }
}
