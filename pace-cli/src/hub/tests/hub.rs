//! A model from the hub: what is asked for, where it goes, and what a wrong hub is told.

use super::*;

#[test]
fn a_model_goes_into_the_hubs_own_cache() {
    let content = Content::model();
    let (fixture, server) = Fixture::with_hub(move |request| content.answer(request));
    let dir = fixture.get("hf:org/repo").unwrap();
    assert_eq!(dir, fixture.repo().join("snapshots").join(COMMIT));
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), WEIGHTS);
    let target = fs::read_link(dir.join("model.safetensors")).unwrap();
    assert_eq!(target, Path::new("../../blobs").join(sha256(WEIGHTS)));
    assert_eq!(fs::read_to_string(fixture.repo().join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fixture.names(&format!("snapshots/{COMMIT}")).len(), 4, "and no README.md");
    // config.json, model.safetensors, and one for the two that are the same.
    assert_eq!(fixture.names("blobs").len(), 3);
    let reported = fixture.reported();
    assert!(reported.contains("Downloading model.safetensors (17 B)"), "{reported}");

    let count = server.requests().len();
    assert_eq!(fixture.get("hf:org/repo").unwrap(), dir);
    assert_eq!(fixture.get(&format!("hf:org/repo@{COMMIT}")).unwrap(), dir);
    assert_eq!(server.requests().len(), count, "the second time needs no request");
}

#[test]
fn a_mirror_without_a_list_is_asked_by_name() {
    let content = Content { lists: false, ..Content::model() }.without("tokenizer_config.json");
    let (fixture, server) = Fixture::with_hub(move |request| content.answer(request));
    let dir = fixture.get("hf:org/repo@v1").unwrap();
    assert_eq!(dir, fixture.repo().join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(fixture.repo().join("refs/v1")).unwrap(), COMMIT);
    assert!(dir.join("tokenizer.json").is_file() && !dir.join("tokenizer_config.json").exists());
    let later = server.requests().pop().unwrap();
    assert!(later.path.contains(COMMIT), "all files are of the first one's commit: {}", later.path);
}

#[test]
fn a_server_that_names_neither_commit_nor_content_will_do() {
    let plain = |request: &Request| match Content::model().files.get(request.path.rsplit('/').next().unwrap())
    {
        Some(bytes) if request.path.contains("/resolve/main/") => Answer::ok(bytes.clone()),
        _ => Answer::status("404 Not Found"),
    };
    let (fixture, _server) = Fixture::with_hub(plain);
    let dir = fixture.get("hf:org/repo").unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), WEIGHTS);
    assert!(fixture.names("blobs").contains(&sha256(WEIGHTS)));
    assert_eq!(fixture.get("hf:org/repo").unwrap(), dir);
}

#[test]
fn shards_and_parts_come_together() {
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "sub/model-2.safetensors"}}"#;
    let content = Content::model()
        .without("model.safetensors")
        .with("model.safetensors.index.json", index)
        .with("model-1.safetensors", WEIGHTS)
        .with("sub/model-2.safetensors", WEIGHTS)
        .with("q/m-00001-of-00002.gguf", GGUF)
        .with("q/m-00002-of-00002.gguf", b"GGUF 2");
    let (fixture, _server) = Fixture::with_hub(move |request| content.answer(request));
    let dir = fixture.get("hf:org/repo").unwrap();
    assert_eq!(fs::read(dir.join("sub/model-2.safetensors")).unwrap(), WEIGHTS);
    let path = fixture.get("hf:org/repo/q/m-00001-of-00002.gguf").unwrap();
    assert_eq!(path, dir.join("q/m-00001-of-00002.gguf"));
    assert_eq!(fs::read(dir.join("q/m-00002-of-00002.gguf")).unwrap(), b"GGUF 2");
}

#[test]
fn a_repository_of_gguf_files_has_one_or_wants_a_name() {
    let one =
        Content { lists: true, ..Content::default() }.with("m.Q4_0.gguf", GGUF).with("config.json", b"{}");
    let two = one.clone().with("m.Q8_0.gguf", GGUF);
    let (fixture, _server) = Fixture::with_hub(move |request| one.answer(request));
    let path = fixture.get("hf:org/repo").unwrap();
    assert_eq!(fs::read(&path).unwrap(), GGUF);
    assert_eq!(fixture.get("hf:org/repo").unwrap(), path);
    let (fixture, _server) = Fixture::with_hub(move |request| two.answer(request));
    let error = fixture.fails("hf:org/repo");
    assert!(error.contains("hf:org/repo/FILE") && error.contains("m.Q4_0.gguf, m.Q8_0.gguf"), "{error}");
    assert!(!fixture.repo().join("snapshots").join(COMMIT).exists());
    let none = Content { lists: true, ..Content::default() }.with("model.onnx", b"");
    let (fixture, _server) = Fixture::with_hub(move |request| none.answer(request));
    assert!(fixture.fails("hf:org/repo").contains("neither safetensors nor GGUF"));
}

#[test]
fn redirects_carry_the_checksum_but_not_the_token() {
    let storage = Server::start(|request| Answer::file(WEIGHTS, request).header("ETag", "\"storage's\""));
    let blob = format!("{}/blob", storage.endpoint);
    let content = Content::model();
    let (fixture, hub) = Fixture::with_hub(move |request| {
        if request.path.ends_with("/model.safetensors") {
            return Answer::redirect(&blob)
                .header("X-Linked-Etag", &format!("\"{}\"", sha256(WEIGHTS)))
                .header("X-Linked-Size", &WEIGHTS.len().to_string());
        }
        if request.path.ends_with("/config.json") && !request.path.starts_with("/moved") {
            return Answer::redirect("/moved/config.json?x=1");
        }
        let moved = request.path.starts_with("/moved");
        if moved { Answer::ok("{}") } else { content.answer(request) }
    });
    let dir = fixture.get("hf:org/repo").unwrap();
    assert_eq!(fs::read(dir.join("config.json")).unwrap(), b"{}");
    assert!(fixture.names("blobs").contains(&sha256(WEIGHTS)));
    let token = |request: &Request| request.header("authorization").map(str::to_owned);
    assert!(hub.requests().iter().all(|request| token(request).as_deref() == Some("Bearer secret")));
    assert_eq!(storage.requests().len(), 1);
    assert_eq!(token(&storage.requests()[0]), None);
}

#[test]
fn endless_redirects_end() {
    let (fixture, server) = Fixture::with_hub(|request| Answer::redirect(&request.path));
    let error = fixture.fails("hf:org/repo");
    assert!(error.contains("more than 5 redirects"), "{error}");
    assert!(server.requests().len() <= 12);
}

#[test]
fn what_the_hub_refuses_is_explained() {
    for (status, reason) in [
        ("404 Not Found", "404 Not Found"),
        ("401 Unauthorized", "set HF_TOKEN"),
        ("403 Forbidden", "set HF_TOKEN"),
        ("410 Gone", "410 Gone"),
    ] {
        let content = Content::model();
        let (fixture, server) = Fixture::with_hub(move |request| {
            if request.path.ends_with("/config.json") {
                Answer::status(status)
            } else {
                content.answer(request)
            }
        });
        let error = fixture.fails("hf:org/repo");
        assert!(error.contains(reason) && error.contains("config.json (http"), "{error}");
        assert_eq!(server.requests().len(), 2, "{status} is not tried again");
        assert!(fixture.names("snapshots").is_empty());
    }
    let (fixture, _server) = Fixture::with_hub(|_| {
        Answer::status("403 Forbidden").header("X-Error-Message", "Access to it is restricted")
    });
    assert!(fixture.fails("hf:org/repo").contains("403 Forbidden: Access to it is restricted; it may"));
}

#[test]
fn names_from_the_hub_stay_in_the_cache() {
    let index = br#"{"weight_map": {"a": "../../../../escape.safetensors"}}"#;
    let content = Content::model().without("model.safetensors").with("model.safetensors.index.json", index);
    let (fixture, _server) = Fixture::with_hub(move |request| content.answer(request));
    assert!(fixture.fails("hf:org/repo").contains("escape.safetensors"));
    let content = Content::model();
    let (fixture, _server) = Fixture::with_hub(move |request| {
        let answer = content.answer(request);
        let named = request.path.ends_with("config.json");
        if named {
            answer.header("ETag", "\"../../../escape\"").header("X-Repo-Commit", "../../x")
        } else {
            answer
        }
    });
    let dir = fixture.get("hf:org/repo").unwrap();
    assert!(dir.starts_with(fixture.repo()) && !fixture.dir.path().join("escape").exists());
}

#[test]
fn offline_the_hub_is_not_asked() {
    let content = Content::model();
    let (mut fixture, server) = Fixture::with_hub(move |request| content.answer(request));
    fixture.models.hub.offline = true;
    assert!(fixture.fails("hf:org/repo").contains("HF_HUB_OFFLINE is set"));
    assert!(server.requests().is_empty());
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let content = Content::model();
    let (fixture, _server) = Fixture::with_hub(move |request| content.answer(request));
    fs::write(fixture.dir.path().join("hub"), "a file").unwrap();
    let error = fixture.fails("hf:org/repo");
    assert!(error.contains("cannot create the model cache") && error.contains("hub/models--"), "{error}");
}
