//! Running the binary in an environment of its own.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a run may take: far more than any needs, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// What the binary did.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// One call of the binary: an empty home, no network, and nothing of the tester's own settings but `PACE_ISA`, so
/// that the suite can run on each tier.
pub(crate) struct Call {
    command: Command,
    stdin: Vec<u8>,
    _home: TempDir,
}

impl Call {
    pub(crate) fn new(args: &[&str]) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_pace-cli"));
        command.args(args).env("HOME", home.path()).env("PACE_CACHE", home.path().join("cache"));
        command.env("HF_HUB_OFFLINE", "1").env("PIP_NO_INDEX", "1");
        for name in
            ["PACE_LOG_LEVEL", "PACE_OP_CONFIG", "LIBXSMM_BLOCK_SIZE", "IMBPS_BLOCK_SIZE", "XDG_CACHE_HOME"]
        {
            command.env_remove(name);
        }
        for name in [
            "OMP_NUM_THREADS",
            "GOMP_CPU_AFFINITY",
            "HF_ENDPOINT",
            "HF_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HOME",
            "HF_HUB_CACHE",
        ] {
            command.env_remove(name);
        }
        Self { command, stdin: Vec::new(), _home: home }
    }

    /// Sets a variable; an empty value is as good as none.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn stdin(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.stdin = bytes.as_ref().to_vec();
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Outcome {
        self.run_reading(true)
    }

    /// Runs it to its end, with a standard output that is closed at once unless it is to be `read`.
    pub(crate) fn run_reading(self, read: bool) -> Outcome {
        self.run_with(read, |_| {})
    }

    /// The same, with something to do `meanwhile`, once all input is on its way.
    pub(crate) fn run_with(mut self, read: bool, meanwhile: impl FnOnce(&Child)) -> Outcome {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().expect("the binary starts");
        let stdout = child.stdout.take().filter(|_| read);
        let stderr = child.stderr.take();
        let mut stdin = child.stdin.take().expect("standard input is a pipe");
        let stdout = stdout.map(drain);
        let stderr = stderr.map(drain);
        let input = std::mem::take(&mut self.stdin);
        // The binary may end without having read it all.
        let writer = thread::spawn(move || drop(stdin.write_all(&input)));
        meanwhile(&child);
        let code = wait(&mut child, &self.command);
        writer.join().expect("writing standard input");
        let collect = |reader: Option<JoinHandle<Vec<u8>>>| {
            reader.map_or_else(Vec::new, |reader| reader.join().expect("reading a pipe"))
        };
        let stderr = String::from_utf8(collect(stderr)).expect("messages are UTF-8");
        assert!(!stderr.contains("panicked"), "{:?} panicked: {stderr}", self.command);
        Outcome { code, stdout: collect(stdout), stderr }
    }
}

impl Outcome {
    /// Standard output of a run that must have succeeded.
    pub(crate) fn text(&self) -> &str {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        std::str::from_utf8(&self.stdout).expect("standard output is UTF-8")
    }

    /// Checks that the run failed with `code`, wrote nothing to standard output, and named every one of `words`.
    pub(crate) fn assert_refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "wanted {words:?}: {}", self.stderr);
        assert!(self.stdout.is_empty(), "{:?}", String::from_utf8_lossy(&self.stdout));
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not in: {}", self.stderr);
        }
    }
}

/// A run of the binary with `args`.
pub(crate) fn pace(args: &[&str]) -> Outcome {
    Call::new(args).run()
}

/// Where a fixture of the runtime's tests lies.
pub(crate) fn fixture(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pace-runtime/tests/fixtures").join(name);
    assert!(path.exists(), "{} is missing", path.display());
    path
}

/// A path as an argument.
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A copy of a fixture's directory that a test may change.
pub(crate) fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for entry in std::fs::read_dir(fixture(name)).expect("a fixture's directory") {
        let from = entry.expect("an entry of a fixture's directory").path();
        let to = dir.path().join(from.file_name().expect("a file has a name"));
        std::fs::copy(&from, to).expect("copying a file");
    }
    dir
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("reading a pipe");
        bytes
    })
}

/// The exit code; none for a signal.
fn wait(child: &mut Child, command: &Command) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waiting for the binary") {
            return status.code();
        }
        if start.elapsed() > DEADLINE {
            child.kill().expect("ending the binary");
            panic!("{command:?} did not end within {DEADLINE:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
}
