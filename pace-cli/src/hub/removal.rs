//! Removing a model from the caches, and nothing else.
//!
//! What goes is named before anything is done. Every path is made of checked names below a cache's root, no directory
//! on the way may be a link, and a link that goes is removed itself: what it points to stays, unless that is a blob
//! of the same repository that nothing else points to.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::cache::HubCache;
use super::files;
use super::reference::{HubRef, MAIN};
use super::{Models, Source, Wanted, bytes_at};

/// What is to go.
pub(crate) struct Removal {
    /// Files and directories, with the root of the cache that each is in.
    paths: Vec<(PathBuf, PathBuf)>,
}

impl Removal {
    /// What belongs to a model in the caches; the list is empty where it is not there.
    ///
    /// # Errors
    /// Something of it is behind a link.
    pub(crate) fn plan(models: &Models, wanted: &Wanted) -> Result<Self> {
        let mut paths = Vec::new();
        for source in &wanted.sources {
            let (root, found) = match source {
                Source::Hub(reference, _) => {
                    (models.cache.root().to_path_buf(), of_hub(&models.cache, reference))
                }
                Source::Wheel(reference, _) => (models.store.wheels(), vec![models.store.place(reference)]),
            };
            let there = found.into_iter().filter(|path| path.symlink_metadata().is_ok());
            paths.extend(there.map(|path| (root.clone(), path)));
        }
        let removal = Self { paths };
        removal.check()?;
        Ok(removal)
    }

    /// What goes.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.paths.iter().map(|(_, path)| path.as_path())
    }

    /// How many bytes that frees.
    pub(crate) fn bytes(&self) -> u64 {
        self.paths().map(bytes_at).sum()
    }

    /// Removes it, and the directories that are empty then.
    pub(crate) fn run(&self) -> Result<()> {
        self.check()?;
        for (root, path) in &self.paths {
            let context = || format!("cannot remove {}", path.display());
            let is_dir = path.symlink_metadata().with_context(context)?.is_dir();
            // Neither follows a link.
            if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) }.with_context(context)?;
            let mut parent = path.parent();
            while let Some(dir) = parent.filter(|dir| *dir != root && fs::remove_dir(dir).is_ok()) {
                parent = dir.parent();
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.paths.iter().try_for_each(|(root, path)| check_inside(root, path))
    }
}

/// What belongs to a reference: the repository, a snapshot, or a file of one.
fn of_hub(cache: &HubCache, reference: &HubRef) -> Vec<PathBuf> {
    let repo = cache.repo_dir(&reference.repo);
    if reference.file.is_none() && reference.revision == MAIN {
        return vec![repo, cache.locks_dir(&reference.repo)];
    }
    let Some(snapshot) = cache.snapshot(reference) else { return Vec::new() };
    let going = match &reference.file {
        Some(file) => files::parts(file).iter().map(|part| snapshot.join(part)).collect(),
        None => vec![snapshot.clone()],
    };
    let mut blobs = BTreeSet::new();
    going.iter().for_each(|path| pointers(path, &[], &mut blobs));
    let mut kept = BTreeSet::new();
    pointers(&repo.join("snapshots"), &going, &mut kept);
    let mut paths = going;
    paths.extend(blobs.difference(&kept).map(|blob| repo.join("blobs").join(blob)));
    if reference.file.is_none() {
        let commit = snapshot.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let refs = cache.refs(&reference.repo).into_iter().filter(|(_, of)| of == commit);
        paths.extend(refs.map(|(name, _)| repo.join("refs").join(name)));
        paths.push(repo.join(".no_exist").join(commit));
    }
    paths
}

/// The blobs that links at or below `path` point to, except below `without`.
fn pointers(path: &Path, without: &[PathBuf], blobs: &mut BTreeSet<String>) {
    if without.iter().any(|other| other == path) {
        return;
    }
    if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            pointers(&entry.path(), without, blobs);
        }
        return;
    }
    let Ok(target) = fs::read_link(path) else { return };
    // `../../blobs/NAME`, with more steps up for files in directories; anything else is not of this cache.
    let rest = target.components().skip_while(|part| *part == Component::ParentDir);
    if let [Component::Normal(dir), Component::Normal(name)] = rest.collect::<Vec<_>>()[..]
        && dir == "blobs"
        && let Some(name) = name.to_str()
    {
        blobs.insert(name.to_owned());
    }
}

/// Fails unless `path` is strictly below `root`, with no link on the way.
fn check_inside(root: &Path, path: &Path) -> Result<()> {
    let rest = path.strip_prefix(root).ok().filter(|rest| !rest.as_os_str().is_empty());
    let rest = rest.with_context(|| format!("{} is not in {}", path.display(), root.display()))?;
    let mut at = root.to_path_buf();
    for part in rest.components() {
        if at != root && !at.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            bail!("{} is no directory of the cache itself; nothing is removed behind it", at.display());
        }
        match part {
            Component::Normal(name) => at.push(name),
            _ => bail!("{} leads out of the cache", path.display()),
        }
    }
    Ok(())
}
