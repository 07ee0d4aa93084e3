//! A server that answers as it is told, honestly or not.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What was asked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) path: String,
    /// Lines `name: value`, names in lower case.
    headers: Vec<String>,
}

/// What to answer.
#[derive(Clone)]
pub(super) struct Answer {
    status: &'static str,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes of the body that are sent before the connection ends.
    sent: usize,
}

/// It serves until the test process ends.
pub(super) struct Server {
    pub(super) endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The first byte of the range that is asked for.
    pub(super) fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

impl Answer {
    pub(super) fn ok(body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self { sent: body.len(), ..Self::status("200 OK") }.content(body)
    }

    pub(super) fn status(status: &'static str) -> Self {
        Self {
            status,
            headers: vec![("Content-Length".to_owned(), "0".to_owned())],
            body: Vec::new(),
            sent: 0,
        }
    }

    pub(super) fn redirect(to: &str) -> Self {
        Self::status("302 Found").header("Location", to)
    }

    /// A file, or the range of it that is asked for.
    pub(super) fn file(bytes: &[u8], request: &Request) -> Self {
        match request.from() {
            None => Self::ok(bytes),
            Some(from) if from < bytes.len() => Self::part(bytes, from),
            Some(_) => Self::status("416 Range Not Satisfiable"),
        }
    }

    /// What is behind the first `from` bytes.
    pub(super) fn part(bytes: &[u8], from: usize) -> Self {
        let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        Self { status: "206 Partial Content", ..Self::ok(&bytes[from..]) }.header("Content-Range", &range)
    }

    /// Sets a header in place of what it was.
    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    /// Ends the connection after `sent` bytes of the body.
    pub(super) fn broken_after(self, sent: usize) -> Self {
        Self { sent, ..self }
    }

    fn content(mut self, body: Vec<u8>) -> Self {
        let length = body.len().to_string();
        self.body = body;
        self.header("Content-Length", &length)
    }
}

impl Server {
    pub(super) fn start(mut answer: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let log = Arc::clone(&requests);
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let request = read(&stream);
                log.lock().unwrap().push(request.clone());
                let answer = answer(&request);
                let headers = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
                let head = format!(
                    "HTTP/1.1 {}\r\n{}Connection: close\r\n\r\n",
                    answer.status,
                    headers.collect::<String>()
                );
                // The client may have seen enough.
                let _ = stream
                    .write_all(head.as_bytes())
                    .and_then(|()| stream.write_all(&answer.body[..answer.sent.min(answer.body.len())]));
            }
        });
        Self { endpoint, requests }
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Request {
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let path = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or("").to_owned();
    let lower =
        |line: &String| line.split_once(':').map(|(name, value)| format!("{}:{value}", name.to_lowercase()));
    Request { path, headers: head.iter().skip(1).filter_map(lower).collect() }
}
