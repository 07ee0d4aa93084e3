//! The HF hub's own cache of repositories, shared with every other tool that uses it.
//!
//! ```text
//! models--org--repo/refs/main                        the commit that a branch stood for
//! models--org--repo/blobs/<entity tag>               content, and <entity tag>.incomplete while it comes
//! models--org--repo/snapshots/<commit>/config.json   links to blobs, with the names of the repository
//! models--org--repo/.no_exist/<commit>/x.json        files that are known not to be there
//! ```

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::files::{self, Kind};
use super::lock::lock;
use super::progress::Progress;
use super::reference::{HubRef, is_commit, is_name};

/// The cache at one place.
pub(crate) struct HubCache {
    root: PathBuf,
}

/// A model in the cache.
pub(crate) struct Found {
    /// A directory in HF's layout or a GGUF file.
    pub(crate) path: PathBuf,
    /// Whether all of it is here. Other tools fetch single files, so the tokenizer may be missing.
    pub(crate) whole: bool,
}

/// A file that is in `blobs` and belongs into a snapshot.
pub(crate) struct Fetched {
    /// Its path in the repository.
    pub(crate) name: String,
    /// Its name among the blobs.
    pub(crate) blob: String,
}

/// The file without which a model still runs, but only on token ids.
const TOKENIZER: &str = "tokenizer.json";

impl HubCache {
    /// The cache below `root`; nothing is created yet.
    pub(crate) const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where it is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of `org/repo`.
    pub(crate) fn repo_dir(&self, repo: &str) -> PathBuf {
        self.root.join(folder(repo))
    }

    /// Where other tools and this one hold locks on a repository's blobs.
    pub(crate) fn locks_dir(&self, repo: &str) -> PathBuf {
        self.root.join(".locks").join(folder(repo))
    }

    /// The directory of the snapshot that `reference` stands for, if the cache knows it.
    pub(crate) fn snapshot(&self, reference: &HubRef) -> Option<PathBuf> {
        let repo = self.repo_dir(&reference.repo);
        let commit = if is_commit(&reference.revision) {
            reference.revision.clone()
        } else {
            read_ref(&repo.join("refs").join(&reference.revision))?
        };
        Some(repo.join("snapshots").join(commit)).filter(|dir| dir.is_dir())
    }

    /// The model or the file that `reference` means, if it is here.
    pub(crate) fn find(&self, reference: &HubRef) -> Option<Found> {
        let snapshot = self.snapshot(reference)?;
        if let Some(file) = &reference.file {
            let path = snapshot.join(file);
            let parts = files::parts(file);
            let whole = parts.iter().all(|part| snapshot.join(part).is_file());
            return whole.then_some(Found { path, whole });
        }
        match files::models_in(&snapshot).as_slice() {
            [model] if model.kind == Kind::Gguf => Some(Found { path: model.path.clone(), whole: true }),
            models => {
                let path = models.iter().find(|model| model.path == snapshot)?.path.clone();
                let known_missing = absent_mark(&snapshot).is_some_and(|mark| mark.exists());
                Some(Found { whole: known_missing || path.join(TOKENIZER).is_file(), path })
            }
        }
    }

    /// Makes the directories of a repository.
    pub(crate) fn create(&self, repo: &str) -> Result<()> {
        let dir = self.repo_dir(repo);
        for dir in [dir.join("blobs"), dir.join("refs"), dir.join("snapshots"), self.locks_dir(repo)] {
            fs::create_dir_all(&dir)
                .with_context(|| format!("cannot create the model cache {}", dir.display()))?;
        }
        Ok(())
    }

    /// Where the content called `blob` lies.
    pub(crate) fn blob(&self, repo: &str, blob: &str) -> PathBuf {
        self.repo_dir(repo).join("blobs").join(blob)
    }

    /// Holds `blob` for this process, by the lock that the hub's own library takes.
    pub(crate) fn lock(&self, repo: &str, blob: &str, progress: &Progress) -> Result<Option<File>> {
        lock(&self.locks_dir(repo).join(format!("{blob}.lock")), progress)
    }

    /// Makes the snapshot of `commit` show `fetched`, and the reference's revision stand for it.
    pub(crate) fn link(
        &self,
        reference: &HubRef,
        commit: &str,
        fetched: &[Fetched],
        no_tokenizer: bool,
    ) -> Result<PathBuf> {
        let repo = self.repo_dir(&reference.repo);
        let snapshot = repo.join("snapshots").join(commit);
        for file in fetched {
            let pointer = snapshot.join(&file.name);
            let up = "../".repeat(2 + file.name.matches('/').count());
            place(&pointer, |at| symlink(format!("{up}blobs/{}", file.blob), at))
                .with_context(|| format!("cannot create {}", pointer.display()))?;
        }
        if let Some(mark) = absent_mark(&snapshot).filter(|_| no_tokenizer) {
            place(&mark, |at| fs::write(at, ""))
                .with_context(|| format!("cannot write {}", mark.display()))?;
        }
        if reference.revision != commit {
            let name = repo.join("refs").join(&reference.revision);
            place(&name, |at| fs::write(at, commit))
                .with_context(|| format!("cannot write {}", name.display()))?;
        }
        Ok(snapshot)
    }

    /// The repositories that are here: `org/repo`.
    pub(crate) fn repos(&self) -> Vec<String> {
        let name = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let (org, repo) = name.strip_prefix("models--")?.split_once("--")?;
            (is_name(org) && is_name(repo)).then(|| format!("{org}/{repo}"))
        };
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut repos: Vec<String> = entries.filter_map(name).collect();
        repos.sort();
        repos
    }

    /// The snapshots of a repository: the revision to call each by, and its directory.
    pub(crate) fn snapshots(&self, repo: &str) -> Vec<(String, PathBuf)> {
        let dir = self.repo_dir(repo);
        let refs = self.refs(repo);
        let entries = fs::read_dir(dir.join("snapshots")).into_iter().flatten().flatten();
        let mut snapshots: Vec<(String, PathBuf)> = entries
            .filter_map(|entry| {
                let commit = entry.file_name().into_string().ok().filter(|name| is_name(name))?;
                let named = refs.iter().find(|(_, of)| *of == commit);
                Some((named.map_or(commit, |(name, _)| name.clone()), entry.path()))
            })
            .collect();
        snapshots.sort();
        snapshots
    }

    /// The branches and tags of a repository that are known, `main` first, and their commits.
    pub(crate) fn refs(&self, repo: &str) -> Vec<(String, String)> {
        let entries = fs::read_dir(self.repo_dir(repo).join("refs")).into_iter().flatten().flatten();
        let read = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok().filter(|name| is_name(name))?;
            Some((name, read_ref(&entry.path())?))
        };
        let mut refs: Vec<_> = entries.filter_map(read).collect();
        refs.sort_by_key(|(name, _)| (name != super::reference::MAIN, name.clone()));
        refs
    }
}

/// A file's new content appears at once; what was there goes.
fn place(at: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let parent = at.parent().context("a path without a directory")?;
    fs::create_dir_all(parent)?;
    let dir = tempfile::Builder::new().prefix(".new-").tempdir_in(parent)?;
    let new = dir.path().join("file");
    // A relative link may be made anywhere: it is read from where it ends up.
    make(&new)?;
    fs::rename(&new, at)?;
    Ok(())
}

/// A commit's name; nothing else makes a path here.
fn read_ref(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(256).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned()).filter(|commit| is_name(commit))
}

fn absent_mark(snapshot: &Path) -> Option<PathBuf> {
    let commit = snapshot.file_name()?;
    Some(snapshot.parent()?.parent()?.join(".no_exist").join(commit).join(TOKENIZER))
}

fn folder(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}
