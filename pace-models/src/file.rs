//! Opening files that somebody else wrote: regular files only, sizes known before reading, and JSON that stays
//! small in memory.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use pace_kernels::MappedFile;

use crate::ModelError;

/// Marks (`,`, `:`, `[`, `{`) that a JSON text may hold before it is parsed into a tree. Each stands for at most one
/// value, a value takes up to 130 bytes, and the configurations of real models have some hundred.
const MAX_JSON_MARKS: usize = 1 << 16;

/// Opens a regular file (or a link to one) and returns it with its length in bytes. A FIFO or a device would
/// block or never end, so they are refused before they are opened.
///
/// # Errors
/// There is no such file, it cannot be opened, or it is not a regular one.
pub fn open_regular(path: &Path) -> Result<(File, u64), ModelError> {
    let refuse = |meta: &std::fs::Metadata| {
        let what = if meta.is_dir() { "is a directory" } else { "is a device, a pipe or a socket" };
        ModelError::file(path, format!("{what}; it must be a regular file"))
    };
    let before = std::fs::metadata(path).map_err(|e| ModelError::io(path, e))?;
    if !before.is_file() {
        return Err(refuse(&before));
    }
    let file = File::open(path).map_err(|e| ModelError::io(path, e))?;
    let opened = file.metadata().map_err(|e| ModelError::io(path, e))?;
    if !opened.is_file() {
        return Err(refuse(&opened));
    }
    Ok((file, opened.len()))
}

/// A file of weights, open: it is read over seconds or minutes, from several threads, and must be one and the same
/// throughout.
#[derive(Debug)]
pub(crate) struct DataFile {
    path: PathBuf,
    file: File,
    stamp: Stamp,
    map: RwLock<Option<Arc<MappedFile>>>,
}

impl DataFile {
    /// As [`open_regular`].
    pub(crate) fn open(path: PathBuf) -> Result<(Self, u64), ModelError> {
        let (file, len) = open_regular(&path)?;
        let stamp = Stamp::of(&path, &file)?;
        Ok((Self { path, file, stamp, map: RwLock::new(None) }, len))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file itself, for reading its header.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// Reads `out.len()` bytes from `offset` on: by positioned reads, or from the mapping if there is one.
    pub(crate) fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        match &*self.map.read().unwrap_or_else(PoisonError::into_inner) {
            Some(map) => map.read_exact_at(out, offset),
            None => self.file.read_exact_at(out, offset),
        }
    }

    /// The mapping, if there is one.
    pub(crate) fn mapping(&self) -> Option<Arc<MappedFile>> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Maps the file, or gives the mapping up.
    pub(crate) fn set_mapped(&self, mapped: bool) -> Result<(), ModelError> {
        let map = mapped.then(|| MappedFile::new(&self.file).map(Arc::new)).transpose();
        let map = map.map_err(|e| ModelError::file(&self.path, format!("cannot be mapped: {e}")))?;
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = map;
        Ok(())
    }

    /// Whether the file still is what it was.
    pub(crate) fn check_unchanged(&self) -> Result<(), ModelError> {
        if Stamp::of(&self.path, &self.file)? == self.stamp {
            return Ok(());
        }
        Err(ModelError::file(
            &self.path,
            "was changed while the model was loaded; load it again once it is complete",
        ))
    }
}

/// What an open file was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl Stamp {
    /// The file as it is now.
    fn of(path: &Path, file: &File) -> Result<Self, ModelError> {
        let meta = file.metadata().map_err(|e| ModelError::io(path, e))?;
        Ok(Self { bytes: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) })
    }
}

/// Reads a whole regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open_regular`], or the file is longer than `limit`.
pub fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>, ModelError> {
    let (file, len) = open_regular(path)?;
    let too_long = |len: u64| ModelError::file(path, format!("has {len} bytes; at most {limit} are read"));
    if len > limit {
        return Err(too_long(len));
    }
    let mut bytes = Vec::with_capacity(len as usize);
    // The file may grow between the two calls: the cap holds for what is read, too.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| ModelError::io(path, e))?;
    if bytes.len() as u64 > limit {
        return Err(too_long(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Refuses a JSON text whose tree of values would take far more memory than the text: a file of `[0,0,0,...]`
/// becomes some forty times as large.
///
/// # Errors
/// The text holds more than 65,536 commas, colons and opening brackets.
pub fn check_json_size(path: &Path, json: &[u8]) -> Result<(), ModelError> {
    let marks = json.iter().filter(|byte| b",:[{".contains(byte)).count();
    if marks <= MAX_JSON_MARKS {
        return Ok(());
    }
    Err(ModelError::file(path, format!("holds up to {marks} JSON values; at most {MAX_JSON_MARKS} are read")))
}

/// `text` on one line and cut to a length that fits a message: text from a file may be megabytes long, and its
/// control characters would reach a terminal.
pub fn clip(text: &str) -> String {
    clip_to(text, 240)
}

/// As [`clip`], for a text that may have `most` characters.
pub fn clip_to(text: &str, most: usize) -> String {
    let mut clipped = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == most {
            clipped.push_str("...");
            break;
        }
        if c.is_control() { clipped.extend(c.escape_default()) } else { clipped.push(c) }
    }
    clipped
}

/// Reads a whole text file of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String, ModelError> {
    String::from_utf8(read_bytes(path, limit)?)
        .map_err(|e| ModelError::file(path, format!("is not UTF-8 at byte {}", e.utf8_error().valid_up_to())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_missing_files_and_long_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let message = open_regular(dir.path()).unwrap_err().to_string();
        assert!(message.contains("is a directory"), "{message}");
        let gone = dir.path().join("gone.json");
        assert!(matches!(open_regular(&gone), Err(ModelError::Io { .. })));
        let file = dir.path().join("a.json");
        std::fs::write(&file, "12345").unwrap();
        assert_eq!(read_text(&file, 5).unwrap(), "12345");
        let message = read_text(&file, 4).unwrap_err().to_string();
        assert!(message.contains("a.json: has 5 bytes; at most 4"), "{message}");
        std::fs::write(&file, [b'a', 0xff]).unwrap();
        let message = read_text(&file, 4).unwrap_err().to_string();
        assert!(message.contains("not UTF-8 at byte 1"), "{message}");
        // A device without an end: the length says 0, and the type says no.
        let message = read_text(Path::new("/dev/zero"), 4).unwrap_err().to_string();
        assert!(message.contains("/dev/zero: is a device"), "{message}");
    }

    #[test]
    fn a_mapped_file_reads_as_one_that_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        let bytes: Vec<_> = (0..9_000).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let (file, len) = DataFile::open(path.clone()).unwrap();
        assert_eq!(len, 9_000);
        for mapped in [false, true, true, false] {
            file.set_mapped(mapped).unwrap();
            let mut out = vec![0; 4_500];
            file.read_exact_at(&mut out, 4_500).unwrap();
            assert_eq!(out, bytes[4_500..]);
            let error = file.read_exact_at(&mut out, 4_501).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{mapped}");
        }
        file.check_unchanged().unwrap();
        std::fs::write(&path, &bytes[1..]).unwrap();
        let message = file.check_unchanged().unwrap_err().to_string();
        assert!(message.contains("weights: was changed while the model was loaded"), "{message}");
        std::fs::write(&path, "").unwrap();
        let message = file.set_mapped(true).unwrap_err().to_string();
        assert!(message.contains("weights: cannot be mapped"), "{message}");
    }

    #[test]
    fn a_json_text_of_too_many_values_is_refused() {
        let path = Path::new("a.json");
        let list = |n: usize| format!("[{}0]", "0,".repeat(n));
        check_json_size(path, list(MAX_JSON_MARKS - 1).as_bytes()).unwrap();
        let message = check_json_size(path, list(MAX_JSON_MARKS).as_bytes()).unwrap_err().to_string();
        assert!(message.contains("a.json: holds up to 65537 JSON values; at most 65536"), "{message}");
    }

    #[test]
    fn clipping_keeps_characters_whole_and_terminals_safe() {
        assert_eq!(clip("short"), "short");
        assert_eq!(clip("a\n\u{1b}[31m\u{9b}"), "a\\n\\u{1b}[31m\\u{9b}");
        let clipped = clip(&"é".repeat(500));
        assert_eq!(clipped.chars().count(), 243);
        assert!(clipped.ends_with("é..."));
    }
}
