//! A conversation on a terminal, which is a pseudo-terminal here.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tempfile::TempDir;

use super::common::{arg, fixture};

/// How long a machine that is busy with other tests may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the line editor writes once it reads what is typed (bracketed paste is switched on). What is typed before is lost.
const READY: &str = "\x1b[?2004h";

/// A running conversation, and what it has written since it was last looked at.
struct Talk {
    child: Child,
    terminal: File,
    written: Receiver<Vec<u8>>,
    unread: String,
    home: TempDir,
}

impl Talk {
    /// `chat` on a terminal, up to its first prompt.
    fn start(model: &Path) -> Self {
        let home = tempfile::tempdir().unwrap();
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let path = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
        let end = || OpenOptions::new().read(true).write(true).open(path).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_pace-cli"))
            .args(["chat", "-m", arg(model), "--dtype", "f32", "--temperature", "0", "-n", "12", "-t", "1"])
            .env("HOME", home.path())
            .env("PACE_CACHE", home.path().join("cache"))
            .env("TERM", "xterm")
            .env("NO_COLOR", "1")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let terminal = File::from(controller);
        let mut reader = terminal.try_clone().unwrap();
        let (send, written) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Reading fails once nobody has the other end any more.
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                if send.send(bytes[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut talk = Self { child, terminal, written, unread: String::new(), home };
        talk.until(READY);
        talk
    }

    /// Types a line, returns what is written up to and with `end`, and waits for the next prompt.
    fn say(&mut self, line: &str, end: &str) -> String {
        self.enter(line);
        let written = self.until(end);
        self.until(READY);
        written
    }

    fn enter(&mut self, line: &str) {
        self.terminal.write_all(line.as_bytes()).unwrap();
        self.terminal.write_all(b"\r").unwrap();
    }

    /// What is written up to and with `end`.
    fn until(&mut self, end: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.unread.find(end) {
                let rest = self.unread.split_off(at + end.len());
                return std::mem::replace(&mut self.unread, rest);
            }
            match self.written.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.unread += &String::from_utf8_lossy(&bytes),
                Err(error) => panic!("no `{end}` ({error}) in: {}", self.unread),
            }
        }
    }

    /// Waits for its end, and returns its exit code.
    fn end(mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            // A terminal that nobody reads would hold it up.
            if matches!(
                self.written.recv_timeout(Duration::from_millis(10)),
                Err(RecvTimeoutError::Disconnected)
            ) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        panic!("it does not end: {}", self.unread);
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_conversation_remembers_what_was_said_and_computes_it_once() {
    let mut talk = Talk::start(&fixture("gqa-tied"));
    talk.say("/set temperature 0", "temperature is 0.");
    talk.say("What closed?", "");
    let first = talk.say("/stats", "conversation");
    assert!(first.contains("tokens/s"), "{first}");
    talk.say("What else?", "");
    let second = talk.say("/stats", " prompt tokens were cached");
    let cached = second.trim_end_matches(" prompt tokens were cached").rsplit(' ').next();
    assert!(cached.is_some_and(|n| n.parse::<usize>().is_ok_and(|n| n > 5)), "{second}");

    let [file, again] = ["talk.json", "again.json"].map(|name| talk.home.path().join(name));
    talk.say(&format!("/save {}", arg(&file)), "4 messages are saved");
    let saved = std::fs::read_to_string(&file).unwrap();
    assert!(saved.contains("What closed?") && saved.contains("What else?"), "{saved}");
    talk.say("/reset", "");
    talk.say(&format!("/load {}", arg(&file)), "4 messages are loaded");
    talk.say(&format!("/save {}", arg(&again)), "4 messages are saved");
    assert_eq!(std::fs::read_to_string(again).unwrap(), saved);
    talk.terminal.write_all(b"\x04").unwrap();
    assert_eq!(talk.end(), Some(0));
}

#[test]
fn commands_that_make_no_sense_say_what_does_and_the_conversation_goes_on() {
    let mut talk = Talk::start(&fixture("gqa-tied"));
    talk.say("/frob", "/frob is no command. /help lists them.");
    talk.say("/set frob 1", "frob is no setting; /set lists them");
    talk.say("/set temperature x", "`x` is no number");
    talk.say("/load /no/such/file", "error: ");
    talk.say("/help", "Ctrl-C stops an answer.");
    // An entry of several lines is one message.
    talk.say("\"\"\"one", "");
    talk.say("two\"\"\"", "");
    let file = talk.home.path().join("talk.json");
    talk.say(&format!("/save {}", arg(&file)), "2 messages are saved");
    assert!(std::fs::read_to_string(file).unwrap().contains("one\\ntwo"));
    talk.enter("/quit");
    assert_eq!(talk.end(), Some(0));
}
