//! What is in the caches.

use std::path::{Path, PathBuf};

use super::Models;
use super::catalogue::entries;
use super::files::{OnDisk, models_in};
use super::reference::{HubRef, WheelRef};

/// A model in a cache.
pub(crate) struct Installed {
    /// What `--model` takes: the name in the catalogue, or where it came from.
    pub(crate) name: String,
    /// Where it came from: `hf:...` or `pypi:...`.
    pub(crate) source: String,
    /// It, and its files.
    pub(crate) model: OnDisk,
}

/// All models in the caches, by name.
pub(crate) fn installed(models: &Models) -> Vec<Installed> {
    let mut found = Vec::new();
    for repo in models.cache.repos() {
        for (revision, snapshot) in models.cache.snapshots(&repo) {
            for model in models_in(&snapshot) {
                let file = below(&snapshot, &model.path);
                let reference = HubRef { repo: repo.clone(), revision: revision.clone(), file };
                found.push(named(reference.to_string(), model));
            }
        }
    }
    let wheels = models.store.wheels();
    for model in models_in_wheels(&wheels) {
        let reference = below(&wheels, &model.path).and_then(|path| {
            path.split_once('/').and_then(|(of, member)| WheelRef::parse(&format!("{of}!{member}")))
        });
        if let Some(reference) = reference {
            found.push(named(reference.to_string(), model));
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.source.cmp(&b.source)));
    found
}

/// The models below `wheels`: one directory a wheel, and in it the path that the model had in the wheel.
fn models_in_wheels(wheels: &Path) -> Vec<OnDisk> {
    let entries = std::fs::read_dir(wheels).into_iter().flatten().flatten();
    let mut dirs: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    dirs.sort();
    dirs.iter().flat_map(|dir| models_in(dir)).collect()
}

fn named(source: String, model: OnDisk) -> Installed {
    let entry = entries().iter().find(|entry| entry.sources.iter().any(|known| known.from == source));
    Installed { name: entry.map_or_else(|| source.clone(), |entry| entry.name.clone()), source, model }
}

/// A path below a directory, with slashes; `None` for the directory itself.
fn below(dir: &Path, path: &Path) -> Option<String> {
    let rest = path.strip_prefix(dir).ok()?.to_str()?;
    (!rest.is_empty()).then(|| rest.to_owned())
}
