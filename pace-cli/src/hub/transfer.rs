//! One file over HTTP, to its end: what breaks is continued, what is continued is verified.
//!
//! A server may break the connection, ignore the request to continue, continue elsewhere, or lie about a length.
//! Whatever it does, the number of tries is bounded, no more than the expected bytes are written, and a file counts
//! only with the right length and, where one is known, the right checksum.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use ureq::http::StatusCode;

use super::catalogue::Known;
use super::checksum::expect_sha256;
use super::http::{Announced, Client, Range, Reply, Trouble, header};
use super::partial::{CopyError, Partial};
use super::progress::{Progress, Step};
use super::store::check_space;

/// Tries without progress before giving up.
const TRIES: u32 = 5;
/// Bytes that count as progress: a server cannot keep a client busy with one byte a try.
const PROGRESS_BYTES: u64 = 1 << 20;
/// The longest pause between two tries.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Between two looks at the interrupt while pausing.
const POLL: Duration = Duration::from_millis(50);

/// A file to fetch.
pub(crate) struct Transfer<'a> {
    /// Who asks.
    pub(crate) client: &'a Client,
    /// Where it is.
    pub(crate) url: String,
    /// What the user is told.
    pub(crate) name: &'a str,
    /// More bytes are not plausible.
    pub(crate) limit: u64,
    /// What is known in advance.
    pub(crate) known: Option<&'a Known>,
    /// The pause before the second try; each further one is twice as long.
    pub(crate) pause: Duration,
}

/// What a file must be.
pub(crate) struct Expected {
    /// Its length.
    pub(crate) bytes: Option<u64>,
    /// Its checksum.
    pub(crate) sha256: Option<String>,
    limit: u64,
}

impl Transfer<'_> {
    /// The first answer, its body not yet read, and what it says the file is.
    pub(crate) fn start(&self, progress: &Progress) -> Result<(Reply, Expected)> {
        let mut patience = Patience::new(self.pause);
        let reply = loop {
            match self.client.get(&self.url, None) {
                Ok(reply) => break reply,
                Err(Trouble::Transient(error, delay)) => patience.wait(error, delay, 0, progress, &|text| {
                    progress.line(&format!("{}: {text}", self.name));
                }),
                Err(trouble) => Err(trouble.into_error()),
            }
            .with_context(|| self.title())?;
        };
        let expected = self.expected(&reply).with_context(|| self.title())?;
        Ok((reply, expected))
    }

    /// Receives the body into `path` and returns its checksum, continuing what an earlier run left there if the checksum is known.
    ///
    /// What is left after an error may be continued, unless its content is wrong: then nothing is left.
    pub(crate) fn finish(
        &self,
        first: Reply,
        expected: &Expected,
        path: &Path,
        progress: &Progress,
    ) -> Result<String> {
        self.receive(first, expected, path, progress).with_context(|| self.title())
    }

    fn title(&self) -> String {
        format!("{} ({})", self.name, self.url)
    }

    fn expected(&self, reply: &Reply) -> Result<Expected> {
        let Announced { sha256, bytes, .. } = &reply.announced;
        let length = content_length(reply);
        if let (Some(announced), Some(length)) = (*bytes, length)
            && announced != length
        {
            bail!("the server sends {length} bytes of a file of {announced}");
        }
        let bytes = bytes.or(length);
        if bytes.is_none() && !reply.response.headers().contains_key("Transfer-Encoding") {
            bail!("the server does not say how long the file is");
        }
        let limit = bytes.unwrap_or(self.limit);
        if limit > self.limit {
            bail!("the server announces {limit} bytes, more than the {} that are plausible", self.limit);
        }
        let Some(known) = self.known else {
            return Ok(Expected { bytes, sha256: sha256.clone(), limit });
        };
        if bytes.is_some_and(|bytes| bytes != known.bytes) {
            bail!("the server announces {limit} bytes, expected {}", known.bytes);
        }
        Ok(Expected { bytes: Some(known.bytes), sha256: Some(known.sha256.clone()), limit: known.bytes })
    }

    fn receive(&self, first: Reply, expected: &Expected, path: &Path, progress: &Progress) -> Result<String> {
        let step = progress.step(&format!("Downloading {}", self.name), expected.bytes);
        let mut partial = Partial::open(path, expected.sha256.is_some(), expected.limit, &step)?;
        let mut continued = partial.bytes() > 0;
        // The first answer is of no use where only the rest is needed.
        let mut reply = Some(first).filter(|_| !continued);
        check_space(
            path.parent().unwrap_or(path),
            expected.bytes.unwrap_or(0).saturating_sub(partial.bytes()),
        )?;
        let mut patience = Patience::new(self.pause);
        let tell = |text: &str| step.line(&format!("{}: {text}", self.name));
        loop {
            let result = if Some(partial.bytes()) == expected.bytes && continued {
                Ok(())
            } else {
                self.attempt(reply.take(), expected, &mut partial, &step)
            };
            match result {
                Ok(()) => match verify(&partial, expected) {
                    Ok(()) => return partial.keep(),
                    // The parts may be of two files: one that a killed run left, or one that changed meanwhile.
                    Err(_) if continued => continued = false,
                    Err(error) => {
                        partial.remove();
                        return Err(error);
                    }
                },
                Err(Trouble::Restart(error)) => {
                    patience.wait(error, None, partial.bytes(), progress, &tell)?;
                }
                Err(Trouble::Transient(error, delay)) => {
                    patience.wait(error, delay, partial.bytes(), progress, &tell)?;
                    if expected.sha256.is_some() || partial.validator.is_some() {
                        continued = true;
                        continue;
                    }
                }
                // It was reachable a moment ago.
                Err(Trouble::Unreachable(error)) => {
                    patience.wait(error, None, partial.bytes(), progress, &tell)?;
                    continue;
                }
                Err(Trouble::Final(error)) => return Err(error),
            }
            partial.restart(&step)?;
        }
    }

    /// One request and as much of its body as comes.
    fn attempt(
        &self,
        reply: Option<Reply>,
        expected: &Expected,
        partial: &mut Partial,
        step: &Step<'_>,
    ) -> Result<(), Trouble> {
        let reply = match reply {
            Some(reply) => reply,
            None if partial.bytes() == 0 => self.client.get(&self.url, None)?,
            None => {
                let range = Range { from: partial.bytes(), if_range: partial.validator.as_deref() };
                self.client.get(&self.url, Some(&range))?
            }
        };
        if reply.response.status() == StatusCode::PARTIAL_CONTENT {
            check_range(&reply, partial.bytes(), expected.bytes)?;
        } else if partial.bytes() > 0 {
            // The server ignores ranges, or its file is another one now.
            partial.restart(step).map_err(Trouble::Final)?;
        }
        partial.validator =
            header(reply.response.headers(), "ETag").filter(|tag| tag.starts_with('"')).map(str::to_owned);
        let mut body = reply.response.into_body().into_reader();
        partial.append(&mut body, expected.limit, step).map_err(|error| match error {
            CopyError::Read(error) => {
                let done = partial.bytes();
                Trouble::Transient(anyhow!("the connection broke after {done} bytes: {error}"), None)
            }
            CopyError::Other(error) => Trouble::Final(error),
        })?;
        match expected.bytes {
            Some(bytes) if partial.bytes() < bytes => Err(Trouble::Transient(
                anyhow!("the connection ended after {} of {bytes} bytes", partial.bytes()),
                None,
            )),
            _ => Ok(()),
        }
    }
}

/// How often to try again, and when.
struct Patience {
    left: u32,
    pause: Duration,
    first_pause: Duration,
    furthest: u64,
}

impl Patience {
    fn new(pause: Duration) -> Self {
        Self { left: TRIES - 1, pause, first_pause: pause, furthest: 0 }
    }

    /// Waits before the next try, or gives `error` back if there is none. `done` bytes are there.
    fn wait(
        &mut self,
        error: anyhow::Error,
        delay: Option<Duration>,
        done: u64,
        progress: &Progress,
        tell: &dyn Fn(&str),
    ) -> Result<()> {
        if done >= self.furthest.saturating_add(PROGRESS_BYTES) {
            *self = Self { furthest: done, ..Self::new(self.first_pause) };
        }
        if self.left == 0 {
            return Err(error.context(format!("given up after {TRIES} tries")));
        }
        self.left -= 1;
        let pause = delay.unwrap_or(self.pause).min(MAX_PAUSE);
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        tell(&format!("{error:#}; trying again"));
        let start = Instant::now();
        while start.elapsed() < pause {
            progress.check()?;
            thread::sleep(POLL.min(pause));
        }
        progress.check()
    }
}

fn verify(partial: &Partial, expected: &Expected) -> Result<()> {
    if let Some(bytes) = expected.bytes.filter(|bytes| *bytes != partial.bytes()) {
        bail!("there are {} bytes, expected {bytes}", partial.bytes());
    }
    match &expected.sha256 {
        Some(sha256) => expect_sha256("the download", &partial.sha256(), sha256),
        None => Ok(()),
    }
}

fn content_length(reply: &Reply) -> Option<u64> {
    header(reply.response.headers(), "Content-Length")?.parse().ok()
}

/// A part that does not begin where the last one ended, or belongs to a file of another length, is of no use.
fn check_range(reply: &Reply, from: u64, total: Option<u64>) -> Result<(), Trouble> {
    let text = header(reply.response.headers(), "Content-Range").unwrap_or("");
    let parsed = text.strip_prefix("bytes ").and_then(|rest| {
        let (range, size) = rest.split_once('/')?;
        let (first, _) = range.split_once('-')?;
        Some((first.trim().parse::<u64>().ok()?, size.trim().parse::<u64>().ok()))
    });
    match parsed {
        Some((first, size)) if first == from && (size.is_none() || total.is_none() || size == total) => {
            Ok(())
        }
        _ => Err(Trouble::Restart(anyhow!(
            "asked to continue at byte {from}, the server sends '{}'",
            pace_models::file::clip(text)
        ))),
    }
}
