//! One request over HTTP: redirects followed by hand, what the hub announces collected, failures sorted.
//!
//! The HF hub announces a large file's checksum (`X-Linked-Etag`) and size (`X-Linked-Size`) on the redirect to its
//! storage and not on the last response, so redirects cannot be left to the HTTP client.

use std::fmt;
use std::io;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use pace_models::file::clip;
use pace_runtime::config::Secret;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::reference::{is_commit, is_name};

/// Name resolution and connecting each; another source waits for its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// From the request to the response's headers.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(8);
/// A body may take long, but not stand still.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_REDIRECTS: usize = 5;

/// A client and whom it may show its token.
pub(crate) struct Client {
    agent: Agent,
    endpoint: Uri,
    /// Sent to the endpoint's scheme and authority.
    token: Option<Secret>,
}

/// A response with status 200 or 206, its body not yet read.
pub(crate) struct Reply {
    /// The last response.
    pub(crate) response: Response<Body>,
    /// What it and the redirects before it announced.
    pub(crate) announced: Announced,
}

/// The rest of a file of which a part is here.
pub(crate) struct Range<'a> {
    /// Bytes that are here.
    pub(crate) from: u64,
    /// The validator that the part came with: a server whose file is another one now sends all of it.
    pub(crate) if_range: Option<&'a str>,
}

/// Why a request or a transfer failed, by what helps.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Nothing: the same request gives the same answer.
    Final(anyhow::Error),
    /// Waiting: the server or the connection may be better later. With the delay that the server asks for.
    Transient(anyhow::Error, Option<Duration>),
    /// Another source: there is no way to the host.
    Unreachable(anyhow::Error),
    /// Leaving out what is here: the server does not continue it.
    Restart(anyhow::Error),
}

/// A status that is no success.
#[derive(Debug)]
pub(crate) struct Status {
    /// The status.
    pub(crate) code: StatusCode,
    /// What the server or this client adds to it.
    pub(crate) detail: String,
}

impl Client {
    /// A client for `endpoint` (`https://host`); `token` is sent to it alone, never to where it redirects.
    pub(crate) fn new(endpoint: &str, token: Option<&Secret>) -> Result<Self> {
        let endpoint = parse(endpoint)?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("pace-cli/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(RESPONSE_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT));
        // No proxy can reach this machine's own loopback.
        if endpoint.host().is_some_and(is_loopback) {
            config = config.proxy(None);
        }
        Ok(Self { agent: config.build().new_agent(), endpoint, token: token.cloned() })
    }

    /// Asks for `url`, or for the rest of what is there.
    pub(crate) fn get(&self, url: &str, range: Option<&Range<'_>>) -> Result<Reply, Trouble> {
        let mut uri = parse(url).map_err(Trouble::Final)?;
        let mut announced = Announced::default();
        for _ in 0..=MAX_REDIRECTS {
            let at_endpoint =
                (self.endpoint.scheme(), self.endpoint.authority()) == (uri.scheme(), uri.authority());
            let response = self.request(&uri, at_endpoint, range)?;
            announced.read(response.headers(), at_endpoint);
            let status = response.status();
            if status.is_redirection() {
                let location = header(response.headers(), "Location").context("a redirect to nowhere");
                uri = location.and_then(|location| redirect(&uri, location)).map_err(Trouble::Final)?;
            } else if status == StatusCode::OK || (range.is_some() && status == StatusCode::PARTIAL_CONTENT) {
                return Ok(Reply { response, announced });
            } else {
                return Err(refused(&response, range.is_some()));
            }
        }
        Err(Trouble::Final(anyhow!("more than {MAX_REDIRECTS} redirects")))
    }

    fn request(
        &self,
        uri: &Uri,
        at_endpoint: bool,
        range: Option<&Range<'_>>,
    ) -> Result<Response<Body>, Trouble> {
        let mut request = self.agent.get(uri);
        if let Some(token) = self.token.as_ref().filter(|_| at_endpoint) {
            request = request.header("Authorization", format!("Bearer {}", token.reveal()));
        }
        if let Some(range) = range {
            request = request.header("Range", format!("bytes={}-", range.from));
            if let Some(validator) = range.if_range {
                request = request.header("If-Range", validator);
            }
        }
        request.call().map_err(|error| describe(error, uri))
    }
}

/// What the hub says about a file before sending it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Announced {
    /// The checksum of the file's bytes.
    pub(crate) sha256: Option<String>,
    /// Its size.
    pub(crate) bytes: Option<u64>,
    /// The hub's name of this content: the checksum, or a git object id for small files.
    pub(crate) etag: Option<String>,
    /// The commit that the revision stands for.
    pub(crate) commit: Option<String>,
}

impl Announced {
    fn read(&mut self, headers: &HeaderMap, at_endpoint: bool) {
        // A storage's own tags mean nothing: only the hub's name content.
        let own = header(headers, "ETag").filter(|_| at_endpoint && self.etag.is_none());
        let tag = header(headers, "X-Linked-Etag").or(own);
        let tag = tag.map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
        if let Some(tag) = tag.filter(|tag| is_name(tag)) {
            self.etag = Some(tag.to_owned());
            // Small files have a git object id (40 digits), which is not a checksum of the bytes alone.
            let is_sha256 = tag.len() == 64 && tag.bytes().all(|b| b.is_ascii_hexdigit());
            self.sha256 = is_sha256.then(|| tag.to_ascii_lowercase());
        }
        if let Some(bytes) = header(headers, "X-Linked-Size").and_then(|size| size.parse().ok()) {
            self.bytes = Some(bytes);
        }
        let commit = header(headers, "X-Repo-Commit").filter(|commit| is_commit(commit));
        if let Some(commit) = commit.filter(|_| at_endpoint) {
            self.commit = Some(commit.to_owned());
        }
    }
}

impl Trouble {
    /// The error itself.
    pub(crate) fn into_error(self) -> anyhow::Error {
        match self {
            Self::Final(error)
            | Self::Transient(error, _)
            | Self::Unreachable(error)
            | Self::Restart(error) => error,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP status {}", self.code)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

impl std::error::Error for Status {}

/// Sorts a status that is neither success nor redirect.
fn refused(response: &Response<Body>, ranged: bool) -> Trouble {
    let (code, headers) = (response.status(), response.headers());
    let hint = match code.as_u16() {
        401 | 403 => {
            "it may not exist, or it is private or gated: accept its terms on the hub, and set HF_TOKEN or \
             log in with `hf auth login`"
        }
        _ => "",
    };
    let told = header(headers, "X-Error-Message").map(clip).unwrap_or_default();
    let both = if told.is_empty() || hint.is_empty() { "" } else { "; " };
    let detail = format!("{told}{both}{hint}");
    let error = anyhow::Error::new(Status { code, detail });
    let delay = header(headers, "Retry-After").and_then(|text| text.parse().ok()).map(Duration::from_secs);
    match code.as_u16() {
        416 if ranged => Trouble::Restart(error),
        408 | 429 | 500 | 502 | 503 | 504 => Trouble::Transient(error, delay),
        _ => Trouble::Final(error),
    }
}

/// The value of a header, if it is text.
pub(crate) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn parse(url: &str) -> Result<Uri> {
    let uri: Uri = url.parse().map_err(|_| anyhow!("'{url}' is not a URL"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        bail!("'{url}' is not an http:// or https:// URL");
    }
    Ok(uri)
}

/// Where a redirect leads: an absolute URL, or one relative to `from`'s host or directory.
fn redirect(from: &Uri, location: &str) -> Result<Uri> {
    let (scheme, authority) =
        (from.scheme_str().unwrap_or("https"), from.authority().map_or("", |authority| authority.as_str()));
    let to = if location.contains("://") {
        parse(location)?
    } else if location.starts_with("//") {
        parse(&format!("{scheme}:{location}"))?
    } else if location.starts_with('/') {
        parse(&format!("{scheme}://{authority}{location}"))?
    } else {
        let dir = from.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        parse(&format!("{scheme}://{authority}{dir}/{location}"))?
    };
    if scheme == "https" && to.scheme_str() != Some("https") {
        bail!("a redirect from https to '{location}', which is not encrypted");
    }
    Ok(to)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// The reason in few words: it is one line of a list of sources.
fn describe(error: ureq::Error, uri: &Uri) -> Trouble {
    // A URL may hold a user's password before the host.
    let host = uri.host().unwrap_or("the host");
    match error {
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Trouble::Unreachable(anyhow!("connection refused by {host}"))
        }
        ureq::Error::Timeout(phase) => {
            Trouble::Unreachable(anyhow!("{host} does not answer (timeout: {phase})"))
        }
        ureq::Error::HostNotFound => Trouble::Unreachable(anyhow!("no address found for {host}")),
        ureq::Error::Io(error) if is_broken(&error) => Trouble::Transient(anyhow!("{host}: {error}"), None),
        ureq::Error::Io(error) => Trouble::Unreachable(anyhow!("{host}: {error}")),
        error => Trouble::Final(anyhow!("{host}: {error}")),
    }
}

/// A connection that was there and ended.
fn is_broken(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_like_a_browser_does() {
        let from: Uri = "https://a.example/x/y?q=1".parse().unwrap();
        for (location, to) in [
            ("https://b.example/z", "https://b.example/z"),
            ("//b.example/z?s=2", "https://b.example/z?s=2"),
            ("/z", "https://a.example/z"),
            ("z", "https://a.example/x/z"),
        ] {
            assert_eq!(redirect(&from, location).unwrap().to_string(), to);
        }
        for bad in ["http://a.example/z", "ftp://a.example/z", "https://"] {
            assert!(redirect(&from, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn loopback_hosts() {
        for host in ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["10.0.0.1", "example.org", "[2001:db8::1]"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn only_sha256_tags_are_checksums() {
        let read = |tag: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-linked-etag", tag.parse().unwrap());
            let mut announced = Announced::default();
            announced.read(&headers, false);
            announced.sha256
        };
        let digits = "ab".repeat(32);
        assert_eq!(read(&format!("\"{digits}\"")), Some(digits));
        assert_eq!(read(&format!("\"{}\"", "ab".repeat(20))), None);
        assert_eq!(read(&"xy".repeat(32)), None);
    }
}
