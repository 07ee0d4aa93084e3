//! [`GgufFile`]: weights and metadata of a GGUF file, versions 2 and 3, little-endian; or of the several files of
//! a model that is split.
//!
//! A file is read with positioned reads unless it is to be mapped: if it shrinks underneath, that is an error and not
//! a signal. Opening reads the header only; nothing in it is believed before it is checked against the size of the
//! file. Rows are turned into f32 exactly as ggml does it, or handed out as their integers and scales; the permutation that
//! llama.cpp's converter applied to the query and key rows is left to the caller.
//! Source: the public specification of the format, in ggml's documentation.

mod directory;
mod metadata;
mod quant;
mod reader;
mod split;
mod value;
mod write;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use pace_kernels::{CodeRows, WeightFormat};

pub use metadata::Metadata;
pub use value::{Array, Value};

use self::directory::{Directory, Extent};
use self::quant::GgmlType;
use self::reader::Fault;
use self::split::Part;
use super::codes::read_widened;
use super::{Naming, TensorInfo, WeightSource, first_not_finite};
use crate::ModelError;
use crate::file::DataFile;

/// An open GGUF file, or all files of a model that is split (`NAME-00001-of-00003.gguf`).
#[derive(Debug)]
pub struct GgufFile {
    metadata: Metadata,
    shards: Vec<DataFile>,
    tensors: Vec<TensorInfo>,
    /// Parallel to `tensors`.
    places: Vec<Place>,
    by_name: HashMap<String, usize>,
}

/// Where a tensor's data lie.
#[derive(Debug)]
struct Place {
    shard: usize,
    extent: Extent,
}

impl GgufFile {
    /// Opens `path` and reads its header. If it is a part of a split model, whichever, opens the other parts
    /// beside it, too.
    ///
    /// Tensors of types that cannot be read, such as `IQ2_XS`, are listed; reading one is an error.
    ///
    /// # Errors
    /// A file cannot be opened, is not a regular one, or its header is malformed; a part is missing, is not the
    /// part that its name says, or contradicts the first one. The error names the file and the field or the
    /// tensor.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let (Part { file, directory }, rest) = split::open(path)?;
        let Directory { metadata, tensors, extents } = directory;
        let (shards, places, by_name) = (Vec::new(), Vec::new(), HashMap::new());
        let mut model = Self { metadata, shards, tensors: Vec::new(), places, by_name };
        model.add(file, tensors, extents)?;
        for Part { file, directory } in rest {
            model.add(file, directory.tensors, directory.extents)?;
        }
        Ok(model)
    }

    fn add(
        &mut self,
        shard: DataFile,
        tensors: Vec<TensorInfo>,
        extents: Vec<Extent>,
    ) -> Result<(), ModelError> {
        for (info, extent) in tensors.into_iter().zip(extents) {
            if let Some(at) = self.by_name.insert(info.name.clone(), self.tensors.len()) {
                let other = self.shards[self.places[at].shard].path().display();
                let what = format!("is also in {other}; it must be in one file");
                return Err(ModelError::tensor(shard.path(), info.name, what));
            }
            self.tensors.push(info);
            self.places.push(Place { shard: self.shards.len(), extent });
        }
        self.shards.push(shard);
        Ok(())
    }

    /// The metadata, of the first file: architecture, hyperparameters, tokenizer.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The file, or the first of several.
    pub fn file_path(&self) -> &Path {
        self.metadata.path()
    }

    /// The tensor `name` and its place, once it is known to be of a type that can be read, and `len` elements from
    /// `start` on to be whole rows of it.
    fn find(&self, name: &str, start: usize, len: usize) -> Result<(&TensorInfo, &Place), ModelError> {
        let wrong = |what: String| ModelError::tensor(self.path(name), name, what);
        let Some(&at) = self.by_name.get(name) else {
            return Err(wrong("missing from the file".to_owned()));
        };
        let (info, place) = (&self.tensors[at], &self.places[at]);
        let extent = &place.extent;
        if !extent.kind.is_readable() {
            let readable = GgmlType::readable();
            return Err(wrong(format!("type {} cannot be read; these can: {readable}", extent.kind.name)));
        }
        let row = info.shape.last().copied().unwrap_or(1);
        if !start.is_multiple_of(row) || !len.is_multiple_of(row) {
            return Err(wrong(format!("{len} elements from {start} on are no whole rows of {row}")));
        }
        if start.checked_add(len).is_none_or(|end| end > extent.elements) {
            return Err(wrong(format!("{len} elements from {start} on leave its shape {:?}", info.shape)));
        }
        Ok((info, place))
    }

    /// [`WeightSource::read_f32`], or if not `finite` [`WeightSource::read_any_f32`].
    fn read(&self, name: &str, start: usize, out: &mut [f32], finite: bool) -> Result<(), ModelError> {
        let (_, place) = self.find(name, start, out.len())?;
        self.for_chunks(name, place, start, out.len(), |part, bytes| {
            let (first, out) = (start + part.start, &mut out[part]);
            place.extent.kind.dequantise(bytes, out);
            self.check_finite(name, out, finite, |at| format!("element {}", first + at))
        })
    }

    /// [`WeightSource::read_codes`], or if not `finite` [`WeightSource::read_any_codes`].
    fn read_integers(
        &self,
        name: &str,
        first_row: usize,
        format: WeightFormat,
        rows: &mut CodeRows<'_>,
        finite: bool,
    ) -> Result<(), ModelError> {
        let wrong = |what: String| ModelError::tensor(self.path(name), name, what);
        let k = self.info(name).and_then(|info| info.shape.last().copied()).unwrap_or(1);
        let Some(start) = first_row.checked_mul(k) else {
            return Err(wrong(format!("row {first_row} is beyond its end")));
        };
        let (_, place) = self.find(name, start, rows.codes.len())?;
        let kind = place.extent.kind;
        let Some(own) = kind.format() else {
            return Err(wrong(format!("type {} holds no integers", kind.name)));
        };
        read_widened(own, format, k, rows, wrong, |rows| {
            // A row is whole blocks, and a block whole groups.
            let group = rows.codes.len() / rows.scales.len().max(1);
            self.for_chunks(name, place, start, rows.codes.len(), |part, bytes| {
                let (first, groups) = (start + part.start, part.start / group..part.end / group);
                let mins = if rows.mins.is_empty() { 0..0 } else { groups.clone() };
                let (codes, scales) = (&mut rows.codes[part], &mut rows.scales[groups]);
                let mut rows = CodeRows { codes, scales, mins: &mut rows.mins[mins] };
                kind.unpack(bytes, &mut rows);
                let place = |what, at| format!("the {what} of element {}", first + at * group);
                self.check_finite(name, rows.scales, finite, |at| place("scale", at))?;
                self.check_finite(name, rows.mins, finite, |at| place("minimum", at))
            })
        })
    }

    /// Reads `len` elements of `name` from element `start` on in pieces, and calls `each` with the place of a piece
    /// among them and its bytes.
    fn for_chunks(
        &self,
        name: &str,
        place: &Place,
        start: usize,
        len: usize,
        mut each: impl FnMut(Range<usize>, &[u8]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let file = &self.shards[place.shard];
        let GgmlType { block_len, block_bytes, .. } = *place.extent.kind;
        let bytes_of = |elements: usize| elements / block_len * block_bytes;
        let step = CHUNK_BYTES / block_bytes * block_len;
        let mut buffer = vec![0; bytes_of(step.min(len))];
        for first in (0..len).step_by(step) {
            let part = first..len.min(first + step);
            let bytes = &mut buffer[..bytes_of(part.len())];
            let position = place.extent.start + bytes_of(start + first) as u64;
            let read = file.read_exact_at(bytes, position);
            read.map_err(|source| Fault::Io(source).in_tensor(file.path(), name))?;
            each(part, bytes)?;
        }
        Ok(())
    }

    /// Refuses numbers that are not finite, if they must be; `place` says where one is.
    fn check_finite(
        &self,
        name: &str,
        numbers: &[f32],
        finite: bool,
        place: impl FnOnce(usize) -> String,
    ) -> Result<(), ModelError> {
        let Some(at) = first_not_finite(numbers).filter(|_| finite) else { return Ok(()) };
        let what = format!("{} is {}; finite numbers are right", place(at), numbers[at]);
        Err(ModelError::tensor(self.path(name), name, what))
    }
}

impl WeightSource for GgufFile {
    fn naming(&self) -> Naming {
        Naming::Gguf
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&at| &self.tensors[at])
    }

    fn path(&self, name: &str) -> &Path {
        match self.by_name.get(name) {
            Some(&at) => self.shards[self.places[at].shard].path(),
            None => self.file_path(),
        }
    }

    fn read_f32(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), ModelError> {
        self.read(name, start, out, true)
    }

    fn read_any_f32(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), ModelError> {
        self.read(name, start, out, false)
    }

    fn codes(&self, name: &str) -> Option<WeightFormat> {
        self.by_name.get(name).and_then(|&at| self.places[at].extent.kind.format())
    }

    fn read_codes(
        &self,
        name: &str,
        first_row: usize,
        format: WeightFormat,
        rows: &mut CodeRows<'_>,
    ) -> Result<(), ModelError> {
        self.read_integers(name, first_row, format, rows, true)
    }

    fn read_any_codes(
        &self,
        name: &str,
        first_row: usize,
        format: WeightFormat,
        rows: &mut CodeRows<'_>,
    ) -> Result<(), ModelError> {
        self.read_integers(name, first_row, format, rows, false)
    }

    fn set_mapped(&self, mapped: bool) -> Result<(), ModelError> {
        self.shards.iter().try_for_each(|shard| shard.set_mapped(mapped))
    }

    fn check_unchanged(&self) -> Result<(), ModelError> {
        self.shards.iter().try_for_each(DataFile::check_unchanged)
    }
}

/// Bytes read at a time: a temporary of every reading thread.
const CHUNK_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests;
