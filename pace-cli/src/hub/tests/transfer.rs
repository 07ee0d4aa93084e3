//! Servers that break, lie and change their minds.

use super::*;

const BIG: &str = "model.gguf";
const NAME: &str = "hf:org/repo/model.gguf";

fn big() -> Vec<u8> {
    [GGUF, &noise(3_000_000)].concat()
}

/// A hub whose answers for the big file are changed by `change`, which sees the request and how many came before.
fn changed(change: impl Fn(Answer, &Request, usize) -> Answer + Send + 'static) -> (Fixture, Server) {
    let content = Content::model().with(BIG, &big());
    let mut count = 0;
    Fixture::with_hub(move |request| {
        let answer = content.answer(request);
        if !request.path.ends_with(BIG) {
            return answer;
        }
        count += 1;
        change(answer, request, count - 1)
    })
}

fn ranges(server: &Server) -> Vec<Option<usize>> {
    server.requests().iter().filter(|request| request.path.ends_with(BIG)).map(Request::from).collect()
}

#[test]
fn a_broken_download_is_continued() {
    let (fixture, server) = changed(|answer, _, at| match at {
        0 => answer.broken_after(1_000_000),
        1 => answer.broken_after(500_000),
        _ => answer,
    });
    let path = fixture.get(NAME).unwrap();
    assert_eq!(fs::read(path).unwrap(), big());
    assert_eq!(ranges(&server), [None, Some(1_000_000), Some(1_500_000)]);
    assert!(!fixture.names("blobs").iter().any(|name| name.ends_with(".incomplete")));
    assert!(fixture.reported().contains("trying again"), "{}", fixture.reported());
}

#[test]
fn a_killed_download_is_continued_by_the_next_process() {
    let (fixture, server) = changed(|answer, _, _| answer);
    let blobs = fixture.repo().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", sha256(&big())));
    fs::write(&partial, &big()[..2_000_000]).unwrap();
    assert_eq!(fs::read(fixture.get(NAME).unwrap()).unwrap(), big());
    assert_eq!(ranges(&server), [None, Some(2_000_000)]);
    assert!(!partial.exists());
}

#[test]
fn a_part_that_is_whole_needs_no_byte_and_a_wrong_one_is_replaced() {
    for (part, asked) in [
        (big(), vec![None]),
        (noise(2_000_000), vec![None, Some(2_000_000), None]),
        (noise(9_000_000), vec![None]),
        (noise(big().len()), vec![None, None]),
    ] {
        let (fixture, server) = changed(|answer, _, _| answer);
        let blobs = fixture.repo().join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{}.incomplete", sha256(&big()))), part).unwrap();
        assert_eq!(fs::read(fixture.get(NAME).unwrap()).unwrap(), big());
        assert_eq!(ranges(&server), asked);
    }
}

#[test]
fn a_server_that_ignores_ranges_starts_again() {
    let (fixture, server) = changed(|answer, request, at| {
        if at == 0 {
            return answer.broken_after(1_000_000);
        }
        assert!(request.from().is_some());
        Answer::ok(big())
    });
    assert_eq!(fs::read(fixture.get(NAME).unwrap()).unwrap(), big());
    assert_eq!(ranges(&server).len(), 2);
}

#[test]
fn a_range_elsewhere_is_not_taken() {
    for wrong in ["bytes 5-9/10", "bytes 1000000-3000034/7", "nonsense", ""] {
        let (fixture, server) = changed(move |answer, _, at| match at {
            0 => answer.broken_after(1_000_000),
            1 => answer.header("Content-Range", wrong),
            _ => answer,
        });
        assert_eq!(fs::read(fixture.get(NAME).unwrap()).unwrap(), big());
        assert_eq!(ranges(&server), [None, Some(1_000_000), None], "{wrong}");
    }
}

#[test]
fn status_416_starts_again() {
    let (fixture, server) = changed(|answer, _, at| match at {
        0 => answer.broken_after(1_000_000),
        1 => Answer::status("416 Range Not Satisfiable"),
        _ => answer,
    });
    assert_eq!(fs::read(fixture.get(NAME).unwrap()).unwrap(), big());
    assert_eq!(ranges(&server), [None, Some(1_000_000), None]);
}

#[test]
fn without_a_checksum_the_entity_tag_decides() {
    let unnamed = |answer: Answer| answer.without("X-Linked-Etag");
    // The same tag: continued, on the condition that it is still the same.
    let (fixture, server) = changed(move |answer, _, at| {
        let answer = unnamed(answer).header("ETag", "\"v1\"");
        if at == 0 { answer.broken_after(1_000_000) } else { answer }
    });
    assert_eq!(fs::read(fixture.get(NAME).unwrap()).unwrap(), big());
    assert_eq!(ranges(&server), [None, Some(1_000_000)]);
    assert_eq!(server.requests().last().unwrap().header("if-range"), Some("\"v1\""));
    // None: nothing says that the rest belongs to the part.
    let (fixture, server) =
        changed(
            move |answer, _, at| {
                if at == 0 { unnamed(answer).broken_after(1_000_000) } else { unnamed(answer) }
            },
        );
    assert_eq!(fs::read(fixture.get(NAME).unwrap()).unwrap(), big());
    assert_eq!(ranges(&server), [None, None]);
}

#[test]
fn a_file_that_changes_on_the_way_is_fetched_anew() {
    let other = [GGUF, &noise(3_000_000)[1..], b"x"].concat();
    let (fixture, server) = changed(move |answer, request, at| match at {
        0 => answer.broken_after(1_000_000),
        1 => Answer::file(&other, request),
        _ => answer,
    });
    assert_eq!(fs::read(fixture.get(NAME).unwrap()).unwrap(), big());
    assert_eq!(ranges(&server), [None, Some(1_000_000), None]);
}

#[test]
fn a_busy_server_gets_time_and_a_dead_one_does_not_get_forever() {
    let (fixture, server) = changed(|answer, _, at| match at {
        0 => Answer::status("503 Service Unavailable"),
        1 => Answer::status("429 Too Many Requests").header("Retry-After", "0"),
        _ => answer,
    });
    assert_eq!(fs::read(fixture.get(NAME).unwrap()).unwrap(), big());
    assert_eq!(ranges(&server).len(), 3);
    for status in ["500 Internal Server Error", "503 Service Unavailable"] {
        let (fixture, server) = changed(move |_, _, _| Answer::status(status));
        let error = fixture.fails(NAME);
        assert!(error.contains("given up after 5 tries") && error.contains(status), "{error}");
        assert_eq!(ranges(&server).len(), 5);
    }
}

#[test]
fn breaking_always_at_the_same_place_ends() {
    let (fixture, server) = changed(|answer, _, _| answer.broken_after(0));
    let error = fixture.fails(NAME);
    assert!(error.contains("given up after 5 tries") && error.contains("after 0"), "{error}");
    assert_eq!(ranges(&server).len(), 5);
    // What ignores ranges, too, gets nowhere.
    let (fixture, server) = changed(|_, _, _| Answer::ok(big()).broken_after(500_000));
    assert!(fixture.fails(NAME).contains("given up after 5 tries"));
    assert_eq!(ranges(&server).len(), 5);
}

/// What a server makes of an honest answer.
type Lie = Box<dyn Fn(Answer) -> Answer + Send>;

#[test]
fn lies_about_content_and_length_are_named() {
    let length = big().len().to_string();
    let wrong_sum = sha256(b"another file");
    let cases: [(&str, Lie); 6] = [
        (&wrong_sum, {
            let tag = format!("\"{wrong_sum}\"");
            Box::new(move |answer| answer.header("X-Linked-Etag", &tag))
        }),
        ("of a file of 7", Box::new(|answer| answer.header("X-Linked-Size", "7"))),
        ("how long", Box::new(|answer| answer.without("Content-Length").without("X-Linked-Size"))),
        (
            "plausible",
            Box::new(|answer| answer.without("X-Linked-Size").header("Content-Length", "99999999999999")),
        ),
        (
            "are needed",
            Box::new(|answer| answer.without("X-Linked-Size").header("Content-Length", "1000000000000")),
        ),
        ("no GGUF header", Box::new(|_| Answer::ok("<html>log in first</html>"))),
    ];
    for (reason, change) in cases {
        let (fixture, _server) = changed(move |answer, _, _| change(answer));
        let error = fixture.fails(NAME);
        assert!(error.contains(reason) && error.contains(BIG), "{reason}: {error}");
        assert!(fixture.names("snapshots").is_empty(), "{length} bytes were wrong");
        let left = fixture.names("blobs");
        assert!(!left.iter().any(|name| !name.ends_with(".incomplete")), "{left:?}");
    }
}

#[test]
fn more_than_announced_is_not_written() {
    let (fixture, _server) = changed(|answer, _, _| {
        answer.without("Content-Length").header("Transfer-Encoding", "chunked").header("X-Linked-Size", "10")
    });
    let error = fixture.fails(NAME);
    assert!(error.contains(BIG), "{error}");
    let bytes: u64 = bytes_at(&fixture.repo().join("blobs"));
    assert!(bytes <= 10, "{bytes}");
}

#[test]
fn an_unreachable_hub_is_given_up_at_once() {
    let start = std::time::Instant::now();
    let error = Fixture::new(&refusing_endpoint()).fails(NAME);
    assert!(error.contains("connection refused by 127.0.0.1"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn an_interrupt_leaves_what_can_be_continued() {
    let fixture = Fixture::with_hub({
        let content = Content::model().with(BIG, &big());
        move |request| content.answer(request)
    })
    .0;
    fixture.interrupted.store(true, Ordering::Relaxed);
    let error = fixture.get(NAME).expect_err("it was interrupted");
    assert!(error.is::<Interrupted>(), "{error:#}");
    assert!(fixture.names("snapshots").is_empty());
    fixture.interrupted.store(false, Ordering::Relaxed);
    assert_eq!(fs::read(fixture.get(NAME).unwrap()).unwrap(), big());
}

#[test]
fn a_checksum_of_the_catalogue_goes_before_what_the_server_says() {
    let (fixture, _server) = changed(|answer, _, _| answer);
    let source = |sha256: String| {
        let known = Known { bytes: big().len() as u64, sha256 };
        let Reference::Hub(reference) = Reference::parse(NAME).unwrap() else { panic!("a hub's name") };
        let files = Files::from([(BIG.to_owned(), known)]);
        Wanted { title: "it".to_owned(), entry: None, sources: vec![Source::Hub(reference, files)] }
    };
    let error = format!("{:#}", fixture.models.get(&source(sha256(b"other"))).unwrap_err());
    assert!(error.contains(&sha256(b"other")), "{error}");
    fixture.models.get(&source(sha256(&big()))).unwrap();
}
