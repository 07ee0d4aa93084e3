//! The header of a GGUF file: preamble, metadata, and where each tensor's data lies.
//!
//! ```text
//! "GGUF" | version u32 | tensors u64 | pairs u64
//! pairs   x { key string, type u32, value }
//! tensors x { name string, n u32, n x dimension u64 (fastest first), type u32, offset u64 }
//! padding to a multiple of general.alignment, then the data that the offsets count from
//! ```

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;

use super::metadata::Metadata;
use super::quant::GgmlType;
use super::reader::{Fault, HeaderReader, wrong};
use super::value::Value;
use crate::ModelError;
use crate::weights::TensorInfo;

/// Everything before the data.
pub(super) struct Directory {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
    /// Parallel to `tensors`.
    pub(super) extents: Vec<Extent>,
}

/// Where a tensor's data lies and how it is stored.
#[derive(Debug)]
pub(super) struct Extent {
    pub(super) kind: &'static GgmlType,
    /// Numbers in the tensor.
    pub(super) elements: usize,
    /// Offset in the file.
    pub(super) start: u64,
    bytes: u64,
}

impl Directory {
    /// Reads and checks the header of a file of `file_len` bytes.
    pub(super) fn read(file: &File, path: &Path, file_len: u64) -> Result<Self, ModelError> {
        let mut reader = HeaderReader::new(file, file_len);
        let (n_tensors, n_pairs) =
            read_preamble(&mut reader).map_err(|fault| fault.in_file(path, "header"))?;
        let metadata = read_metadata(&mut reader, path, n_pairs)?;
        let alignment = alignment(&metadata)?;
        let (tensors, mut extents) = read_tensors(&mut reader, path, n_tensors)?;
        let data = reader.position().checked_next_multiple_of(alignment);
        for (info, extent) in tensors.iter().zip(&mut extents) {
            extent.place(data, alignment, file_len).map_err(|fault| fault.in_tensor(path, &info.name))?;
        }
        refuse_overlap(path, &tensors, &extents)?;
        Ok(Self { metadata, tensors, extents })
    }
}

impl Extent {
    /// Turns the offset in the data into one in the file.
    fn place(&mut self, data: Option<u64>, alignment: u64, file_len: u64) -> Result<(), Fault> {
        let offset = self.start;
        if !offset.is_multiple_of(alignment) {
            return wrong(format!("its offset {offset} is not a multiple of the alignment {alignment}"));
        }
        let start = data.and_then(|data| data.checked_add(offset));
        match start.and_then(|start| Some((start, start.checked_add(self.bytes)?))) {
            Some((start, end)) if end <= file_len => {
                self.start = start;
                Ok(())
            }
            _ => wrong(format!(
                "its {} bytes at offset {offset} of the data leave the file, which has {file_len} bytes; \
                 is the file complete?",
                self.bytes
            )),
        }
    }
}

const MAX_PAIRS: u64 = 65_536;
const MAX_TENSORS: u64 = 65_536;
const MAX_KEY_BYTES: u64 = 65_535;
const MAX_NAME_BYTES: u64 = 256;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
/// A key's length and one letter, a type, a value of one byte.
const MIN_PAIR_BYTES: u64 = 8 + 1 + 4 + 1;
/// A name's length and one letter, a dimension count and one dimension, a type, an offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// The counts of tensors and of metadata pairs.
fn read_preamble(reader: &mut HeaderReader<'_>) -> Result<(usize, usize), Fault> {
    let magic: [u8; 4] = reader.bytes()?;
    if magic != *b"GGUF" {
        return wrong(format!("the file starts with \"{}\"; \"GGUF\" is right", magic.escape_ascii()));
    }
    match reader.u32()? {
        2 | 3 => {}
        version if (1..=3).contains(&version.swap_bytes()) => {
            return wrong("the file is big-endian; only little-endian files can be read");
        }
        version => return wrong(format!("GGUF version {version}; 2 and 3 can be read")),
    }
    let n_tensors = reader.u64()?;
    let n_pairs = reader.u64()?;
    if n_tensors > MAX_TENSORS {
        return wrong(format!("{n_tensors} tensors; at most {MAX_TENSORS} are right"));
    }
    if n_pairs > MAX_PAIRS {
        return wrong(format!("{n_pairs} metadata pairs; at most {MAX_PAIRS} are right"));
    }
    reader.claim(n_pairs, MIN_PAIR_BYTES, "metadata pairs")?;
    reader.claim(n_tensors, MIN_TENSOR_BYTES, "tensors")?;
    Ok((n_tensors as usize, n_pairs as usize))
}

fn read_metadata(reader: &mut HeaderReader<'_>, path: &Path, n_pairs: usize) -> Result<Metadata, ModelError> {
    let mut metadata = Metadata::new(path);
    for i in 0..n_pairs {
        let key = reader.name(MAX_KEY_BYTES);
        let key = key.map_err(|fault| fault.in_file(path, &format!("key of metadata pair {i}")))?;
        Value::read(reader)
            .and_then(|value| metadata.insert(&key, value))
            .map_err(|fault| fault.in_field(path, &key))?;
    }
    Ok(metadata)
}

fn alignment(metadata: &Metadata) -> Result<u64, ModelError> {
    let alignment = metadata.u64("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment < 8 || !alignment.is_power_of_two() {
        let what = format!("{alignment}; a power of two of 8 or more is right");
        return Err(ModelError::field(metadata.path(), "general.alignment", what));
    }
    Ok(alignment)
}

fn read_tensors(
    reader: &mut HeaderReader<'_>,
    path: &Path,
    n_tensors: usize,
) -> Result<(Vec<TensorInfo>, Vec<Extent>), ModelError> {
    let mut tensors = Vec::with_capacity(n_tensors);
    let mut extents = Vec::with_capacity(n_tensors);
    let mut names = HashSet::with_capacity(n_tensors);
    for i in 0..n_tensors {
        let name = reader.name(MAX_NAME_BYTES);
        let name = name.map_err(|fault| fault.in_file(path, &format!("name of tensor {i}")))?;
        let (shape, extent) = read_tensor(reader).map_err(|fault| fault.in_tensor(path, &name))?;
        if !names.insert(name.clone()) {
            return Err(ModelError::tensor(path, name, "the name occurs twice; each may occur once"));
        }
        tensors.push(TensorInfo { name, shape, format: extent.kind.name.to_owned() });
        extents.push(extent);
    }
    Ok((tensors, extents))
}

/// What follows a tensor's name: its row-major shape and its extent, which still starts at an offset in the data.
fn read_tensor(reader: &mut HeaderReader<'_>) -> Result<(Vec<usize>, Extent), Fault> {
    let n_dims = reader.u32()?;
    if !(1..=MAX_DIMENSIONS).contains(&n_dims) {
        return wrong(format!("{n_dims} dimensions; 1 to {MAX_DIMENSIONS} are right"));
    }
    let mut dims = reader.numbers(n_dims.into(), u64::from_le_bytes)?;
    let fastest = dims[0];
    dims.reverse();
    let id = reader.u32()?;
    let Some(kind) = GgmlType::from_id(id) else {
        return wrong(format!("unknown tensor type {id}; these can be read: {}", GgmlType::readable()));
    };
    let start = reader.u64()?;
    if dims.contains(&0) {
        return wrong(format!("its shape {dims:?} holds no element"));
    }
    if !fastest.is_multiple_of(kind.block_len as u64) {
        return wrong(format!(
            "rows of {fastest} elements; {} stores blocks of {}, of which a row must be a multiple",
            kind.name, kind.block_len
        ));
    }
    let Some((shape, elements, bytes)) = sizes(&dims, kind) else {
        return wrong(format!("its shape {dims:?} is beyond any memory"));
    };
    Ok((shape, Extent { kind, elements, start, bytes }))
}

/// Shape, number of elements and bytes, where all of them can be counted.
fn sizes(dims: &[u64], kind: &GgmlType) -> Option<(Vec<usize>, usize, u64)> {
    let shape: Vec<usize> = dims.iter().map(|&dim| dim.try_into().ok()).collect::<Option<_>>()?;
    let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
    // An f32 copy must be countable too.
    elements.checked_mul(size_of::<f32>())?;
    let bytes = (elements / kind.block_len).checked_mul(kind.block_bytes)?;
    Some((shape, elements, bytes as u64))
}

fn refuse_overlap(path: &Path, tensors: &[TensorInfo], extents: &[Extent]) -> Result<(), ModelError> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| extents[i].start);
    for pair in order.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        // `place` has checked this sum.
        if extents[before].start + extents[before].bytes > extents[after].start {
            let what = format!("its data overlap those of tensor `{}`", tensors[before].name);
            return Err(ModelError::tensor(path, &tensors[after].name, what));
        }
    }
    Ok(())
}
