//! [`HeaderReader`]: the header of a GGUF file, read front to back with every length checked before memory is
//! asked for.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::ModelError;

/// Longest header that is read. Real ones, with a vocabulary of 256 Ki tokens and its merges, stay
/// below 20 MiB.
pub(super) const MAX_HEADER_BYTES: u64 = 128 << 20;

const BUFFER_BYTES: u64 = 64 << 10;

/// What went wrong, before it is known in which field or tensor.
#[derive(Debug)]
pub(super) enum Fault {
    /// The operating system refused.
    Io(io::Error),
    /// The bytes are wrong, and how.
    Wrong(String),
}

impl Fault {
    /// The fault of the whole file, or of a place in it that has no name yet.
    pub(super) fn in_file(self, path: &Path, place: &str) -> ModelError {
        self.named(path, |what| ModelError::file(path, format!("{place}: {what}")))
    }

    /// The fault of one metadata field.
    pub(super) fn in_field(self, path: &Path, key: &str) -> ModelError {
        self.named(path, |what| ModelError::field(path, key, what))
    }

    /// The fault of one tensor.
    pub(super) fn in_tensor(self, path: &Path, name: &str) -> ModelError {
        self.named(path, |what| ModelError::tensor(path, name, what))
    }

    fn named(self, path: &Path, wrong: impl FnOnce(String) -> ModelError) -> ModelError {
        match self {
            Self::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                wrong("the file changed while it was read: it became shorter".to_owned())
            }
            Self::Io(source) => ModelError::io(path, source),
            Self::Wrong(what) => wrong(what),
        }
    }
}

/// Shorthand for a [`Fault::Wrong`] result.
pub(super) fn wrong<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Wrong(what.into()))
}

/// A buffered little-endian reader that never asks for more memory than the file still has bytes.
pub(super) struct HeaderReader<'a> {
    file: &'a File,
    file_len: u64,
    /// Where reading stops: the end of the file or the longest header.
    end: u64,
    /// Offset in the file of the first byte that is not in `buffer`.
    fetched: u64,
    buffer: Vec<u8>,
    at: usize,
}

impl<'a> HeaderReader<'a> {
    /// Starts at the first byte of a file of `file_len` bytes.
    pub(super) fn new(file: &'a File, file_len: u64) -> Self {
        let end = file_len.min(MAX_HEADER_BYTES);
        Self { file, file_len, end, fetched: 0, buffer: Vec::new(), at: 0 }
    }

    /// Offset in the file of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.fetched - (self.buffer.len() - self.at) as u64
    }

    /// `count` as a length to allocate, once `count` items of at least `min_bytes` each can still follow.
    pub(super) fn claim(&self, count: u64, min_bytes: u64, items: &str) -> Result<usize, Fault> {
        let left = self.end - self.position();
        match (count.checked_mul(min_bytes), usize::try_from(count)) {
            (Some(bytes), Ok(count)) if bytes <= left => Ok(count),
            _ => wrong(format!(
                "{count} {items} of at least {min_bytes} bytes each cannot follow: {}",
                self.what_is_left()
            )),
        }
    }

    /// The next `N` bytes.
    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// The next 32-bit unsigned number.
    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.bytes().map(u32::from_le_bytes)
    }

    /// The next 64-bit unsigned number.
    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// `count` numbers of `N` bytes each.
    pub(super) fn numbers<T, const N: usize>(
        &mut self,
        count: u64,
        decode: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Fault> {
        let count = self.claim(count, N as u64, "array elements")?;
        let mut numbers = Vec::with_capacity(count);
        for _ in 0..count {
            numbers.push(decode(self.bytes()?));
        }
        Ok(numbers)
    }

    /// The next string: a 64-bit length and UTF-8, at most `max` bytes.
    pub(super) fn string(&mut self, max: u64) -> Result<String, Fault> {
        let len = self.u64()?;
        if len > max {
            return wrong(format!("a string of {len} bytes; at most {max} are right"));
        }
        if len > self.end - self.position() {
            return wrong(format!("a string of {len} bytes cannot follow: {}", self.what_is_left()));
        }
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).or_else(|error| wrong(format!("a string that is not UTF-8: {error}")))
    }

    /// The next string, as a name: not empty, and without control characters, because messages show it.
    pub(super) fn name(&mut self, max: u64) -> Result<String, Fault> {
        let name = self.string(max)?;
        if name.is_empty() || name.chars().any(char::is_control) {
            return wrong(format!("the name {name:?} is empty or holds control characters"));
        }
        Ok(name)
    }

    fn fill(&mut self, mut out: &mut [u8]) -> Result<(), Fault> {
        if out.len() as u64 > self.end - self.position() {
            return wrong(format!("bytes needed: {}; {}", out.len(), self.what_is_left()));
        }
        while !out.is_empty() {
            if self.at == self.buffer.len() {
                self.refill()?;
            }
            let n = out.len().min(self.buffer.len() - self.at);
            let (now, later) = out.split_at_mut(n);
            now.copy_from_slice(&self.buffer[self.at..self.at + n]);
            self.at += n;
            out = later;
        }
        Ok(())
    }

    fn refill(&mut self) -> Result<(), Fault> {
        let n = (self.end - self.fetched).min(BUFFER_BYTES);
        self.buffer.resize(n as usize, 0);
        self.file.read_exact_at(&mut self.buffer, self.fetched).map_err(Fault::Io)?;
        self.fetched += n;
        self.at = 0;
        Ok(())
    }

    fn what_is_left(&self) -> String {
        let left = self.end - self.position();
        if self.end == self.file_len {
            format!("the file has {} bytes, {left} of them left here", self.file_len)
        } else {
            format!("a header may take {MAX_HEADER_BYTES} bytes, {left} of them left here")
        }
    }
}
