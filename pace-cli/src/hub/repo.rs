//! A model from the HF hub, into the hub's own cache.
//!
//! The hub lists a revision's files and names its commit; then every file is fetched at that commit, and the snapshot
//! appears when all are there. A plain mirror that has no list is asked for the files by their usual names.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pace_runtime::config::Secret;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::http::StatusCode;

use super::cache::{Fetched, HubCache};
use super::catalogue::Files;
use super::checksum::hex;
use super::files::{self, CONFIG, INDEX, SINGLE, SMALL};
use super::http::{Client, Status, Trouble};
use super::progress::Progress;
use super::reference::{HubRef, is_commit};
use super::transfer::{Expected, Transfer};

/// No file of weights comes near this.
const MAX_WEIGHT_BYTES: u64 = 1 << 40;
/// No other file does: the largest vocabularies take some 35 MB.
const MAX_SMALL_BYTES: u64 = 256 << 20;
const MAX_LIST_BYTES: u64 = 16 << 20;

/// The hub to ask.
pub(crate) struct Hub {
    /// `https://host`, without a slash at the end.
    pub(crate) endpoint: String,
    /// An access token.
    pub(crate) token: Option<Secret>,
    /// Not to be asked at all.
    pub(crate) offline: bool,
    /// Between a failure and the next try.
    pub(crate) pause: Duration,
}

/// One model under way.
struct Fetch<'a> {
    hub: &'a Hub,
    client: Client,
    cache: &'a HubCache,
    reference: &'a HubRef,
    known: &'a Files,
    progress: &'a Progress,
    /// All files of the revision, if the hub lists them.
    list: Option<BTreeSet<String>>,
    commit: Option<String>,
    fetched: Vec<Fetched>,
}

/// What the hub says about a revision.
#[derive(Deserialize)]
struct Revision {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Hub {
    /// Fetches what `reference` means and is not there, and returns where it is.
    pub(crate) fn fetch(
        &self,
        reference: &HubRef,
        known: &Files,
        cache: &HubCache,
        progress: &Progress,
    ) -> Result<PathBuf> {
        if self.offline {
            bail!("HF_HUB_OFFLINE is set");
        }
        let client = Client::new(&self.endpoint, self.token.as_ref())?;
        let (list, commit, fetched) = (None, None, Vec::new());
        let mut fetch = Fetch { hub: self, client, cache, reference, known, progress, list, commit, fetched };
        fetch.look_up()?;
        cache.create(&reference.repo)?;
        fetch.run()
    }
}

impl Fetch<'_> {
    fn run(mut self) -> Result<PathBuf> {
        let file = match &self.reference.file {
            Some(file) => Some(file.clone()),
            None => self.only_gguf()?,
        };
        if let Some(file) = file {
            let parts = files::parts(&file);
            for part in &parts {
                self.file(part)?;
            }
            return Ok(self.link(false)?.join(file));
        }
        self.file(CONFIG)?;
        for name in SMALL {
            self.optional(name)?;
        }
        if !self.optional(SINGLE)? {
            let index =
                self.file(INDEX).context("the repository has neither safetensors nor GGUF weights")?;
            for shard in files::shards(&index)? {
                self.file(&shard)?;
            }
        }
        let no_tokenizer = self.list.as_ref().is_some_and(|list| !list.contains("tokenizer.json"));
        self.link(no_tokenizer)
    }

    /// Asks for the commit and the files of the revision. A mirror that does not tell is no error.
    fn look_up(&mut self) -> Result<()> {
        let HubRef { repo, revision, .. } = self.reference;
        if is_commit(revision) {
            self.commit = Some(revision.clone());
        }
        let url = format!("{}/api/models/{repo}/revision/{revision}", self.hub.endpoint);
        let mut answer = self.client.get(&url, None);
        if matches!(answer, Err(Trouble::Transient(..))) {
            thread::sleep(self.hub.pause);
            answer = self.client.get(&url, None);
        }
        let reply = match answer {
            Ok(reply) => reply,
            Err(Trouble::Unreachable(error)) => return Err(error),
            Err(trouble) => {
                tracing::debug!("{url}: {:#}", trouble.into_error());
                return Ok(());
            }
        };
        let mut bytes = Vec::new();
        let body = reply.response.into_body().into_reader().take(MAX_LIST_BYTES).read_to_end(&mut bytes);
        let parsed = body.ok().and_then(|_| serde_json::from_slice::<Revision>(&bytes).ok());
        if let Some(told) = parsed.filter(|told| is_commit(&told.sha)) {
            self.list = Some(told.siblings.into_iter().map(|file| file.rfilename).collect());
            self.commit = Some(told.sha);
        }
        Ok(())
    }

    /// The GGUF file of a repository that holds one and no checkpoint.
    fn only_gguf(&self) -> Result<Option<String>> {
        let Some(list) = self.list.as_ref().filter(|list| !list.contains(SINGLE) && !list.contains(INDEX))
        else {
            return Ok(None);
        };
        let first_part = |name: &&String| name.ends_with(".gguf") && files::parts(name)[0] == **name;
        let found: Vec<&String> = list.iter().filter(first_part).collect();
        match found.as_slice() {
            [] => bail!("{} has neither safetensors nor GGUF weights", self.reference),
            [one] => Ok(Some((*one).clone())),
            several => {
                let names: Vec<String> =
                    several.iter().take(40).map(|name| pace_models::file::clip(name)).collect();
                bail!("{0} holds several models; name one as {0}/FILE: {1}", self.reference, names.join(", "))
            }
        }
    }

    /// Fetches a file if the repository has it; says whether it does.
    fn optional(&mut self, name: &str) -> Result<bool> {
        if self.list.as_ref().is_some_and(|list| !list.contains(name)) {
            return Ok(false);
        }
        match self.file(name) {
            Ok(_) => Ok(true),
            Err(error) => match error.downcast_ref::<Status>() {
                Some(status) if status.code == StatusCode::NOT_FOUND => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Fetches a file, unless its content is there, and returns where that is.
    fn file(&mut self, name: &str) -> Result<PathBuf> {
        let HubRef { repo, revision, .. } = self.reference;
        let revision = self.commit.as_ref().unwrap_or(revision);
        let is_weights = [".safetensors", ".gguf"].iter().any(|end| name.ends_with(end));
        let transfer = Transfer {
            client: &self.client,
            url: format!("{}/{repo}/resolve/{revision}/{name}", self.hub.endpoint),
            name,
            limit: if is_weights { MAX_WEIGHT_BYTES } else { MAX_SMALL_BYTES },
            known: self.known.get(name),
            pause: self.hub.pause,
        };
        let (reply, expected) = transfer.start(self.progress)?;
        if self.commit.is_none() {
            self.commit.clone_from(&reply.announced.commit);
        }
        let tag = expected.sha256.clone().or_else(|| reply.announced.etag.clone());
        // A server that names no content gets a name of its address, so that two processes do not mix.
        let place =
            tag.clone().unwrap_or_else(|| format!("unnamed-{}", hex(&Sha256::digest(&transfer.url)[..8])));
        let _lock = self.cache.lock(repo, &place, self.progress)?;
        let blob = self.cache.blob(repo, &place);
        if tag.is_some() && is_there(&blob, &expected) {
            self.fetched.push(Fetched { name: name.to_owned(), blob: place });
            return Ok(blob);
        }
        let partial = self.cache.blob(repo, &format!("{place}.incomplete"));
        let sha256 = transfer.finish(reply, &expected, &partial, self.progress)?;
        if expected.sha256.is_none()
            && let Err(error) = check_content(name, &partial)
        {
            let _ = fs::remove_file(&partial);
            return Err(error.context(format!("{} is not what its name says", transfer.url)));
        }
        let name_of_blob = tag.unwrap_or(sha256);
        let blob = self.cache.blob(repo, &name_of_blob);
        fs::rename(&partial, &blob).with_context(|| format!("cannot create {}", blob.display()))?;
        self.fetched.push(Fetched { name: name.to_owned(), blob: name_of_blob });
        Ok(blob)
    }

    /// Shows what was fetched as a snapshot.
    fn link(&self, no_tokenizer: bool) -> Result<PathBuf> {
        // A mirror that does not tell its commit gets one made of the content.
        let commit = self.commit.clone().unwrap_or_else(|| {
            let mut hash = Sha256::new();
            for file in &self.fetched {
                hash.update(format!("{} {}\n", file.name, file.blob));
            }
            hex(&hash.finalize()[..20])
        });
        self.cache.link(self.reference, &commit, &self.fetched, no_tokenizer)
    }
}

/// Whether a blob is the file: the name says what it holds, the length that all of it is there.
fn is_there(blob: &Path, expected: &Expected) -> bool {
    let length = blob.metadata().ok().filter(fs::Metadata::is_file).map(|meta| meta.len());
    length.is_some() && (expected.bytes.is_none() || length == expected.bytes)
}

/// Catches a page of a login portal or of a proxy that came with status 200 in place of the file.
fn check_content(name: &str, path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    if name.ends_with(".json") {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let text = std::str::from_utf8(&bytes).context("not UTF-8")?.trim_start();
        if !text.starts_with(['{', '[']) {
            bail!("not JSON");
        }
    } else if name.ends_with(".safetensors") {
        let mut start = [0; 9];
        file.read_exact(&mut start).context("too short")?;
        let [header @ .., brace] = start;
        if brace != b'{' || u64::from_le_bytes(header) >= file.metadata()?.len() {
            bail!("no safetensors header");
        }
    } else if name.ends_with(".gguf") {
        let mut start = [0; 4];
        file.read_exact(&mut start).context("too short")?;
        if start != *b"GGUF" {
            bail!("no GGUF header");
        }
    }
    Ok(())
}
