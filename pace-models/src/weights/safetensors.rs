//! HF checkpoints: one `.safetensors` file, or several with an index.
//!
//! The header is read as hostile: bounded, streamed instead of held, every name, shape and offset checked before
//! the file counts as open. Tensors are read with positioned reads, or from a mapping, into the caller's slice.

mod dtype;
mod header;
mod index;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use crate::ModelError;
use crate::file::DataFile;

use super::{Naming, TensorInfo, WeightSource, first_not_finite};
use dtype::Dtype;
use header::Tensors;

/// The one file of a checkpoint that is not sharded.
const SINGLE: &str = "model.safetensors";
/// The list of shards of a checkpoint that is.
const INDEX: &str = "model.safetensors.index.json";
/// Most bytes that one read asks for.
const CHUNK_BYTES: usize = 256 << 10;

/// An open checkpoint in safetensors format, with HF's tensor names.
#[derive(Debug)]
pub struct SafetensorsSource {
    /// What was opened, a file or the index: for messages about tensors that no file has.
    root: PathBuf,
    shards: Vec<Shard>,
    tensors: Tensors,
    /// Positions in `tensors`, sorted by name.
    by_name: Vec<u32>,
}

#[derive(Debug)]
struct Shard {
    file: DataFile,
    /// Where the data section begins, in bytes.
    data_start: u64,
}

/// Where a tensor lies in its file.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredTensor {
    /// The type, in the format's spelling.
    pub(super) dtype: &'static str,
    /// First byte, in the file.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl SafetensorsSource {
    /// Opens a model directory (with `model.safetensors`, else with `model.safetensors.index.json`) or one
    /// `.safetensors` file, and checks all headers.
    ///
    /// # Errors
    /// A file is missing, cannot be read, is not a regular file, or its header is malformed; a shard lacks a
    /// tensor that the index places there, or two shards hold the same one.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let meta = std::fs::metadata(path).map_err(|e| ModelError::io(path, e))?;
        if !meta.is_dir() {
            return Self::open_file(path);
        }
        // A link whose target is gone is there, and its error should say so.
        let holds = |file: &PathBuf| file.symlink_metadata().is_ok();
        let (single, index) = (path.join(SINGLE), path.join(INDEX));
        if holds(&single) {
            return Self::open_files(single.clone(), vec![single]);
        }
        if !holds(&index) {
            return Err(ModelError::file(path, format!("holds neither {SINGLE} nor {INDEX}")));
        }
        let listed = index::read(&index)?;
        let shards = listed.shards.iter().map(|name| path.join(name)).collect();
        let source = Self::open_files(index, shards)?;
        source.check_index(&listed)?;
        Ok(source)
    }

    /// Opens one file, whatever it is called.
    pub(crate) fn open_file(path: &Path) -> Result<Self, ModelError> {
        Self::open_files(path.to_path_buf(), vec![path.to_path_buf()])
    }

    /// The string called `key` in `__metadata__` of the first file.
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.tensors.metadata.get(key).map(String::as_str)
    }

    fn open_files(root: PathBuf, paths: Vec<PathBuf>) -> Result<Self, ModelError> {
        let mut tensors = Tensors::default();
        let mut shards = Vec::with_capacity(paths.len());
        for (shard, path) in (0..).zip(paths) {
            let (file, len) = DataFile::open(path)?;
            let data_start = header::read(file.path(), file.file(), len, shard, &mut tensors)?;
            shards.push(Shard { file, data_start });
        }
        let by_name = tensors.sorted_by_name();
        let source = Self { root, shards, tensors, by_name };
        source.check_unique()?;
        Ok(source)
    }

    fn check_unique(&self) -> Result<(), ModelError> {
        for pair in self.by_name.windows(2) {
            let (first, second) = (pair[0] as usize, pair[1] as usize);
            let name = &self.tensors.infos[first].name;
            if *name != self.tensors.infos[second].name {
                continue;
            }
            let (one, other) = (self.shard(first).file.path(), self.shard(second).file.path());
            let what = if one == other {
                "appears twice in the header".to_owned()
            } else {
                format!("is also in {}; it must be in one shard", one.display())
            };
            return Err(ModelError::tensor(other, name, what));
        }
        Ok(())
    }

    fn check_index(&self, index: &index::Index) -> Result<(), ModelError> {
        for (name, shard) in &index.map {
            let path = self.shards[usize::from(*shard)].file.path();
            match self.find(name) {
                Some(at) if self.tensors.places[at].shard == *shard => {}
                Some(at) => {
                    let here = self.shard(at).file.path().display();
                    let what = format!("is in {here}, but {INDEX} places it here");
                    return Err(ModelError::tensor(path, name, what));
                }
                None => {
                    let what = format!("is missing, but {INDEX} places it here");
                    return Err(ModelError::tensor(path, name, what));
                }
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<usize> {
        let found =
            self.by_name.binary_search_by(|&at| self.tensors.infos[at as usize].name.as_str().cmp(name));
        found.ok().map(|at| self.by_name[at] as usize)
    }

    fn shard(&self, tensor: usize) -> &Shard {
        &self.shards[usize::from(self.tensors.places[tensor].shard)]
    }

    /// Where the bytes of a tensor lie in its file, whatever its type.
    pub(super) fn stored(&self, name: &str) -> Option<StoredTensor> {
        let at = self.find(name)?;
        let place = &self.tensors.places[at];
        let offset = self.shard(at).data_start + place.begin;
        Some(StoredTensor { dtype: place.dtype.name(), offset, bytes: place.end - place.begin })
    }

    /// The first file, the only one of a source that was opened by the name of a file.
    pub(super) fn single_file(&self) -> &DataFile {
        &self.shards[0].file
    }

    /// Where the data of that file begin.
    pub(super) fn single_data_start(&self) -> u64 {
        self.shards[0].data_start
    }

    /// [`WeightSource::read_f32`], or if not `finite` [`WeightSource::read_any_f32`].
    fn read(&self, name: &str, start: usize, out: &mut [f32], finite: bool) -> Result<(), ModelError> {
        let fail = |what: String| ModelError::tensor(self.path(name), name, what);
        let at = self.find(name).ok_or_else(|| fail("is missing".to_owned()))?;
        let (shard, place) = (self.shard(at), &self.tensors.places[at]);
        let size: usize = match place.dtype {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
            other => {
                let what = format!("has type {}; only F32, F16 and BF16 are read", other.name());
                return Err(fail(what));
            }
        };
        let held = (place.end - place.begin) / size as u64;
        let end = start.checked_add(out.len()).map(|end| end as u64);
        if end.is_none_or(|end| end > held) {
            let what = format!("has {held} elements; {} from {start} on were asked for", out.len());
            return Err(fail(what));
        }
        let chunk = CHUNK_BYTES / size;
        let mut halves = vec![0u16; if size == 2 { out.len().min(chunk) } else { 0 }];
        let mut first = start;
        for part in out.chunks_mut(chunk) {
            let offset = shard.data_start + place.begin + (first * size) as u64;
            read_part(&shard.file, offset, place.dtype, &mut halves, part)
                .map_err(|e| self.read_error(name, e))?;
            if let Some(at) = first_not_finite(part).filter(|_| finite) {
                let what = format!("element {} is {}; weights must be finite", first + at, part[at]);
                return Err(fail(what));
            }
            first += part.len();
        }
        Ok(())
    }

    /// Reads `out.len()` bytes of `name` from byte `start` on, as they are stored.
    ///
    /// # Errors
    /// The tensor is unknown, the range leaves it, or the file cannot be read or has changed.
    pub(super) fn read_bytes(&self, name: &str, start: usize, out: &mut [u8]) -> Result<(), ModelError> {
        let fail = |what: String| ModelError::tensor(self.path(name), name, what);
        let at = self.find(name).ok_or_else(|| fail("is missing".to_owned()))?;
        let (shard, place) = (self.shard(at), &self.tensors.places[at]);
        let held = place.end - place.begin;
        if start.checked_add(out.len()).is_none_or(|end| end as u64 > held) {
            return Err(fail(format!("has {held} bytes; {} from {start} on were asked for", out.len())));
        }
        let offset = shard.data_start + place.begin + start as u64;
        shard.file.read_exact_at(out, offset).map_err(|e| self.read_error(name, e))
    }

    fn read_error(&self, name: &str, error: std::io::Error) -> ModelError {
        match error.kind() {
            ErrorKind::UnexpectedEof => {
                let what = "ends too early: the file was changed or truncated";
                ModelError::tensor(self.path(name), name, what)
            }
            _ => ModelError::io(self.path(name), error),
        }
    }
}

impl WeightSource for SafetensorsSource {
    fn naming(&self) -> Naming {
        Naming::Hf
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors.infos
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.find(name).map(|at| &self.tensors.infos[at])
    }

    fn path(&self, name: &str) -> &Path {
        self.find(name).map_or(&self.root, |at| self.shard(at).file.path())
    }

    fn read_f32(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), ModelError> {
        self.read(name, start, out, true)
    }

    fn read_any_f32(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), ModelError> {
        self.read(name, start, out, false)
    }

    fn set_mapped(&self, mapped: bool) -> Result<(), ModelError> {
        self.shards.iter().try_for_each(|shard| shard.file.set_mapped(mapped))
    }

    fn check_unchanged(&self) -> Result<(), ModelError> {
        self.shards.iter().try_for_each(|shard| shard.file.check_unchanged())
    }
}

/// Reads `out.len()` little-endian numbers at `offset` and widens them. `halves` is room for the 16-bit types.
fn read_part(
    file: &DataFile,
    offset: u64,
    dtype: Dtype,
    halves: &mut [u16],
    out: &mut [f32],
) -> std::io::Result<()> {
    if dtype == Dtype::F32 {
        file.read_exact_at(bytemuck::cast_slice_mut(out), offset)?;
        for x in out {
            *x = f32::from_bits(u32::from_le(x.to_bits()));
        }
        return Ok(());
    }
    let halves = &mut halves[..out.len()];
    file.read_exact_at(bytemuck::cast_slice_mut(halves), offset)?;
    for bits in &mut *halves {
        *bits = u16::from_le(*bits);
    }
    if dtype == Dtype::F16 {
        halves.reinterpret_cast::<half::f16>().convert_to_f32_slice(out);
    } else {
        for (x, bits) in out.iter_mut().zip(halves) {
            *x = f32::from_bits(u32::from(*bits) << 16);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_hostile;
