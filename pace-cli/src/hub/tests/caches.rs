//! What is in the caches: found, listed, removed, and nothing else touched.

use std::os::unix::fs::symlink;

use super::*;

const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba98";

impl Fixture {
    /// A repository as the hub's own library leaves it, at `commit` with the given files; no hub.
    fn keep(&self, commit: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let snapshot = self.repo().join("snapshots").join(commit);
        fs::create_dir_all(self.repo().join("blobs")).unwrap();
        for (name, bytes) in files {
            let blob = sha256(bytes);
            fs::write(self.repo().join("blobs").join(&blob), bytes).unwrap();
            fs::create_dir_all(snapshot.join(name).parent().unwrap()).unwrap();
            let up = "../".repeat(2 + name.matches('/').count());
            symlink(format!("{up}blobs/{blob}"), snapshot.join(name)).unwrap();
        }
        snapshot
    }

    fn name(&self, name: &str, commit: &str) {
        fs::create_dir_all(self.repo().join("refs")).unwrap();
        fs::write(self.repo().join("refs").join(name), commit).unwrap();
    }

    fn remove(&self, name: &str) -> Result<()> {
        Removal::plan(&self.models, &wanted(name))?.run()
    }

    fn list(&self) -> Vec<String> {
        installed(&self.models).into_iter().map(|found| found.name).collect()
    }
}

const MODEL: &[(&str, &[u8])] =
    &[("config.json", b"{}"), ("model.safetensors", WEIGHTS), ("tokenizer.json", b"{\"t\": 1}")];

fn offline() -> Fixture {
    let mut fixture = Fixture::new(&refusing_endpoint());
    fixture.models.hub.offline = true;
    fixture
}

#[test]
fn models_of_other_tools_are_found() {
    let fixture = offline();
    let snapshot = fixture.keep(COMMIT, MODEL);
    assert!(fixture.fails("hf:org/repo").contains("HF_HUB_OFFLINE"), "no branch stands for it");
    fixture.name("main", COMMIT);
    assert_eq!(fixture.get("hf:org/repo").unwrap(), snapshot);
    assert_eq!(fixture.get("hf:org/repo/config.json").unwrap(), snapshot.join("config.json"));
    assert!(fixture.get("hf:org/repo@other").is_err());
    // A branch's file that leads elsewhere is none.
    fixture.name("main", "../../..");
    assert!(fixture.get("hf:org/repo").is_err());
}

#[test]
fn a_model_without_its_tokenizer_is_completed_or_used_as_it_is() {
    let content = Content::model();
    let (fixture, server) = Fixture::with_hub(move |request| content.answer(request));
    fixture.keep(COMMIT, &[("config.json", b"{\"a\": 1}"), ("model.safetensors", WEIGHTS)]);
    fixture.name("main", COMMIT);
    let dir = fixture.get("hf:org/repo").unwrap();
    assert!(dir.join("tokenizer.json").is_file());
    let bodies = server.requests().iter().filter(|request| request.path.ends_with("/tokenizer.json")).count();
    assert_eq!(bodies, 1);

    let content = Content::model().without("tokenizer.json").without("tokenizer_config.json");
    let (fixture, server) = Fixture::with_hub(move |request| content.answer(request));
    fixture.get("hf:org/repo").unwrap();
    let count = server.requests().len();
    fixture.get("hf:org/repo").unwrap();
    assert_eq!(server.requests().len(), count, "it is known that there is none");

    let fixture = offline();
    let snapshot = fixture.keep(COMMIT, &MODEL[..2]);
    fixture.name("main", COMMIT);
    assert_eq!(fixture.get("hf:org/repo").unwrap(), snapshot);
    assert!(fixture.reported().contains("without its tokenizer"));
}

#[test]
fn the_list_names_what_the_commands_take() {
    let fixture = offline();
    assert!(fixture.list().is_empty());
    fixture.keep(COMMIT, MODEL);
    fixture.keep(OTHER, &[("q/m.gguf", GGUF), ("notes.txt", b"x")]);
    fixture.name("main", COMMIT);
    fs::create_dir_all(fixture.dir.path().join("hub/datasets--org--repo/snapshots")).unwrap();
    fs::create_dir_all(fixture.dir.path().join("cache/models/pypi/not a requirement")).unwrap();
    assert_eq!(fixture.list(), ["hf:org/repo".to_owned(), format!("hf:org/repo@{OTHER}/q/m.gguf")]);
    let found = installed(&fixture.models);
    assert_eq!(found[0].model.bytes(), MODEL.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
    for name in fixture.list() {
        assert!(fixture.get(&name).is_ok(), "{name}");
    }
}

#[test]
fn a_revision_goes_without_what_others_need() {
    let fixture = offline();
    let snapshot = fixture.keep(COMMIT, MODEL);
    fixture.keep(OTHER, &[("config.json", b"{}"), ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}other")]);
    fixture.name("main", COMMIT);
    fixture.name("dev", OTHER);
    assert_eq!(fixture.names("blobs").len(), 4);
    fixture.remove("hf:org/repo@dev").unwrap();
    assert_eq!((fixture.names("blobs").len(), fixture.names("snapshots")), (3, vec![COMMIT.to_owned()]));
    assert_eq!(fixture.names("refs"), ["main"]);
    assert_eq!(fixture.get("hf:org/repo").unwrap(), snapshot);
    fixture.remove("hf:org/repo").unwrap();
    assert!(!fixture.repo().exists());
    assert_eq!(Removal::plan(&fixture.models, &wanted("hf:org/repo")).unwrap().paths().count(), 0);
}

#[test]
fn one_file_goes_with_its_parts() {
    let fixture = offline();
    let parts: &[(&str, &[u8])] =
        &[("m-00001-of-00002.gguf", GGUF), ("m-00002-of-00002.gguf", b"GGUF 2"), ("n.gguf", b"GGUF n")];
    fixture.keep(COMMIT, parts);
    fixture.name("main", COMMIT);
    fixture.remove("hf:org/repo/m-00001-of-00002.gguf").unwrap();
    assert_eq!(fixture.names(&format!("snapshots/{COMMIT}")), ["n.gguf"]);
    assert_eq!(fixture.names("blobs"), [sha256(b"GGUF n")]);
}

#[test]
fn nothing_behind_a_link_is_removed() {
    let outside = tempfile::tempdir().unwrap();
    let precious = outside.path().join("precious");
    let fill = || {
        fs::create_dir_all(&precious).unwrap();
        fs::write(precious.join("file.gguf"), GGUF).unwrap();
    };
    fill();
    // A link in a snapshot to somewhere else: the link goes.
    let fixture = offline();
    let snapshot = fixture.keep(COMMIT, MODEL);
    fixture.name("main", COMMIT);
    symlink(&precious, snapshot.join("dir")).unwrap();
    symlink(precious.join("file.gguf"), snapshot.join("m.gguf")).unwrap();
    fixture.remove("hf:org/repo/m.gguf").unwrap();
    let error = fixture.remove("hf:org/repo/dir/file.gguf").unwrap_err();
    assert!(error.to_string().contains("nothing is removed behind it"), "{error}");
    fixture.remove("hf:org/repo").unwrap();
    // The blobs are somewhere else: they stay.
    let snapshot = fixture.keep(COMMIT, MODEL);
    fixture.name("main", COMMIT);
    fs::rename(fixture.repo().join("blobs"), precious.join("blobs")).unwrap();
    symlink(precious.join("blobs"), fixture.repo().join("blobs")).unwrap();
    assert!(fixture.remove(&format!("hf:org/repo@{COMMIT}")).is_err());
    assert!(snapshot.is_dir());
    fixture.remove("hf:org/repo").unwrap();
    assert_eq!(fs::read_dir(precious.join("blobs")).unwrap().count(), 3);
    // The repository itself is a link: only that goes.
    fs::create_dir_all(precious.join("blobs")).unwrap();
    symlink(&precious, fixture.repo()).unwrap();
    fixture.remove("hf:org/repo").unwrap();
    assert!(fixture.repo().symlink_metadata().is_err());
    assert_eq!(fs::read(precious.join("file.gguf")).unwrap(), GGUF);
}

#[test]
fn a_wheel_goes_with_its_empty_directories() {
    let fixture = offline();
    let place = fixture.dir.path().join("cache/models/pypi/a==1");
    fs::create_dir_all(place.join("p")).unwrap();
    fs::write(place.join("p/m.gguf"), GGUF).unwrap();
    assert_eq!(fixture.list(), ["pypi:a==1!p/m.gguf"]);
    fixture.remove("pypi:a==1!p/m.gguf").unwrap();
    assert!(!place.exists() && fixture.dir.path().join("cache/models/pypi").is_dir());
}
