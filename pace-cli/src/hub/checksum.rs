//! SHA-256 of what passes by.

use std::fmt::Write as _;
use std::io::{Read, Write};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::progress::Step;

/// Bytes per read: large enough that hashing and not the calls costs the time.
pub(crate) const CHUNK: usize = 256 << 10;

/// Copies everything from `from` to `to` and returns its checksum. More than `limit` bytes are an error, so that a source cannot fill the disk.
pub(crate) fn copy_hashed(
    from: &mut dyn Read,
    to: &mut dyn Write,
    limit: u64,
    step: &Step<'_>,
) -> Result<String> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let read = from.read(&mut chunk).with_context(|| format!("reading stopped after {bytes} bytes"))?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        if bytes > limit {
            bail!("there are more than the expected {limit} bytes");
        }
        hash.update(&chunk[..read]);
        to.write_all(&chunk[..read]).context("writing failed")?;
        step.advance(read as u64)?;
    }
    Ok(hex(&hash.finalize()))
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Fails unless the checksum is the expected one.
pub(crate) fn expect_sha256(what: &str, found: &str, expected: &str) -> Result<()> {
    if !found.eq_ignore_ascii_case(expected) {
        bail!("{what} has the SHA-256 checksum {found}, expected {expected}");
    }
    Ok(())
}
