//! SHA-256 of the parts of a packed model, several at a time.

use std::fmt::Write as _;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{PackedSource, WEIGHTS};
use crate::ModelError;
use crate::file::DataFile;
use crate::weights::WeightSource;
use crate::weights::safetensors::SafetensorsSource;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

impl PackedSource {
    /// Reads all weights and compares them with the checksums of the manifest. `progress` is called with the number of
    /// bytes just read, from any thread.
    ///
    /// # Errors
    /// A file cannot be read or has changed, or a checksum is another: the error names the matrix.
    pub fn verify(&self, progress: &(dyn Fn(u64) + Sync)) -> Result<(), ModelError> {
        let file = self.weights.single_file();
        let matrices = self.manifest.matrices.iter().zip(&self.offsets);
        let mut expected: Vec<(String, &str)> =
            self.manifest.matrices.iter().map(|m| (m.name(), m.sha256.as_str())).collect();
        expected.push(("vectors".to_owned(), &self.manifest.vectors_sha256));
        let mut parts: Vec<Vec<(u64, u64)>> = matrices.map(|(m, &offset)| vec![(offset, m.bytes)]).collect();
        parts.push(self.vectors());
        for entry in &self.manifest.matrices {
            let Some(sha256) = &entry.input_order else { continue };
            let name = entry.order_name();
            parts.push(
                self.weights.stored(&name).map(|stored| (stored.offset, stored.bytes)).into_iter().collect(),
            );
            expected.push((name, sha256));
        }
        let found = of_all(&parts, |part| of_ranges(file, part, progress))?;
        for (found, (name, expected)) in found.iter().zip(expected) {
            if found != expected {
                let what = format!(
                    "has the SHA-256 checksum {found}, but pace.json says {}: {WEIGHTS} is damaged; {}",
                    crate::file::clip(expected),
                    self.manifest.again()
                );
                return Err(ModelError::tensor(file.path(), name, what));
            }
        }
        self.check_unchanged()
    }

    /// Where the vectors lie: offsets and bytes, in the order of the file.
    fn vectors(&self) -> Vec<(u64, u64)> {
        let names = self.weights.tensors().iter().map(|info| &info.name);
        let vectors = names.filter(|name| !self.matrices.contains_key(*name) && !self.orders.contains(*name));
        vectors
            .filter_map(|name| self.weights.stored(name))
            .map(|stored| (stored.offset, stored.bytes))
            .collect()
    }
}

/// The checksum of everything before the data.
pub(super) fn of_header(weights: &SafetensorsSource) -> Result<String, ModelError> {
    of_ranges(weights.single_file(), &[(0, weights.single_data_start())], &|_| {})
}

/// Calls `hash` for all `parts`, several at a time.
pub(super) fn of_all<T: Sync>(
    parts: &[T],
    hash: impl Fn(&T) -> Result<String, ModelError> + Send + Sync,
) -> Result<Vec<String>, ModelError> {
    // Indexed, so that the results, and the first error, are in the order of the parts.
    let hashed: Vec<_> = parts.par_iter().map(hash).collect();
    hashed.into_iter().collect()
}

/// The checksum of some bytes.
pub(super) fn of_bytes<'b>(parts: impl IntoIterator<Item = &'b [u8]>) -> String {
    let mut hash = Sha256::new();
    parts.into_iter().for_each(|bytes| hash.update(bytes));
    hex(&hash.finalize())
}

/// The checksum of ranges of a file, each an offset and a length, one behind the other.
fn of_ranges(
    file: &DataFile,
    ranges: &[(u64, u64)],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<String, ModelError> {
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; CHUNK]);
    for &(start, bytes) in ranges {
        let mut done = 0;
        while done < bytes {
            let part = &mut chunk[..usize::try_from(bytes - done).map_or(CHUNK, |left| left.min(CHUNK))];
            file.read_exact_at(part, start + done).map_err(|e| ModelError::io(file.path(), e))?;
            hash.update(&*part);
            done += part.len() as u64;
            progress(part.len() as u64);
        }
    }
    Ok(hex(&hash.finalize()))
}

/// Bytes as lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
