//! [`PackedModel`]: a model packed in memory, and how it is written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use pace_kernels::{InputOrder, PackedWeights, WeightLayout};
use serde_json::{Map, Value, json};

use super::manifest::{Loss, Manifest, MatrixEntry, Origin, OriginKind, PartEntry};
use super::{ALIGNMENT, checksum};
use crate::arch::Architecture;
use crate::{ModelError, QuantLoss};

/// The manifest's file.
pub const MANIFEST: &str = "pace.json";
/// The file of the weights.
pub const WEIGHTS: &str = "model.pace.safetensors";
/// The metadata of the GGUF file that a model was packed from. The name keeps it from being taken for a model.
pub const METADATA: &str = "metadata.gguf.bin";

/// Bytes that are written at a time.
const CHUNK: usize = 8 << 20;

/// The packed weights of a model, in memory.
#[derive(Debug)]
pub struct PackedModel {
    pub(crate) architecture: Architecture,
    pub(crate) search_scales: bool,
    pub(crate) importance: Option<String>,
    pub(crate) allow_nonfinite: bool,
    pub(crate) losses: Vec<QuantLoss>,
    pub(crate) matrices: Vec<PackedMatrix>,
    /// Names and numbers, as the source has them.
    pub(crate) vectors: Vec<(String, Vec<f32>)>,
}

/// A packed matrix, and the tensors in it with their rows.
#[derive(Debug)]
pub(crate) struct PackedMatrix {
    pub(crate) parts: Vec<(String, usize)>,
    pub(crate) weights: Arc<PackedWeights>,
}

impl PackedModel {
    /// Bytes that [`write`](Self::write) writes, but for headers of some kilobytes.
    pub fn bytes(&self) -> u64 {
        let matrices: u64 = self.matrices.iter().map(|m| padded(m.weights.bytes())).sum();
        let vectors: u64 = self.vectors.iter().map(|(_, vector)| size_of_val(&**vector) as u64).sum();
        matrices + vectors + self.orders().map(|order| size_of_val(order) as u64).sum::<u64>()
    }

    /// The orders of inputs, of those matrices that have one.
    fn orders(&self) -> impl Iterator<Item = &[u32]> {
        self.matrices.iter().filter_map(|m| m.weights.input_order()).map(InputOrder::as_slice)
    }

    /// What weights lost when they became integers.
    pub fn losses(&self) -> &[QuantLoss] {
        &self.losses
    }

    /// Writes weights and manifest into the directory `dir`, and sees to it that they are on the disk. `isa` is what
    /// computed them. `step` is called with the number of bytes just written; its error ends the writing.
    ///
    /// # Errors
    /// [`ModelError::Write`]: a file cannot be written, because the disk is full, say. What is in `dir` then is of no use.
    pub fn write(
        &self,
        dir: &Path,
        origin: Origin,
        kind: OriginKind,
        isa: &str,
        step: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> Result<(), ModelError> {
        let mut manifest = self.manifest(origin, kind, isa)?;
        let header = self.header(&manifest);
        manifest.header_sha256 = checksum::of_bytes([&header[..]]);
        let path = dir.join(WEIGHTS);
        self.write_weights(&path, &header, step).map_err(|source| ModelError::write(&path, source))?;
        let path = dir.join(MANIFEST);
        write_manifest(&path, &manifest).map_err(|source| ModelError::write(&path, source))
    }

    /// The manifest, but for the checksum of the header.
    fn manifest(&self, origin: Origin, kind: OriginKind, isa: &str) -> Result<Manifest, ModelError> {
        let hashes = checksum::of_all(&self.matrices, |m| Ok(checksum::of_bytes([m.weights.stored()])))?;
        let vectors = self.vectors.iter().map(|(_, vector)| bytemuck::cast_slice(vector));
        let loss =
            |l: &QuantLoss| Loss { format: l.format, weights: l.weights, relative_rms: l.relative_rms };
        Ok(Manifest {
            layout: PackedWeights::LAYOUT_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            isa: isa.to_owned(),
            architecture: self.architecture.name().to_owned(),
            origin,
            kind,
            search_scales: self.search_scales,
            importance: self.importance.clone(),
            allow_nonfinite: self.allow_nonfinite,
            // JSON has no NaN: what numbers lost that were not checked is left out.
            losses: self.losses.iter().filter(|l| l.relative_rms.is_finite()).map(loss).collect(),
            header_sha256: String::new(),
            vectors_sha256: checksum::of_bytes(vectors),
            matrices: self.matrices.iter().zip(hashes).map(|(m, sha256)| m.entry(sha256)).collect(),
        })
    }

    /// Everything before the data, padded so that these begin at a multiple of [`ALIGNMENT`].
    fn header(&self, manifest: &Manifest) -> Vec<u8> {
        let mut tensors = Map::new();
        tensors.insert("__metadata__".to_owned(), json!({"format": "pace", "id": manifest.id()}));
        let mut start = 0;
        let mut add = |name: String, dtype: &str, elements: u64, bytes: u64| {
            let offsets = [start, start + bytes];
            tensors.insert(name, json!({"dtype": dtype, "shape": [elements], "data_offsets": offsets}));
            start += bytes;
        };
        for entry in &manifest.matrices {
            let bytes = entry.bytes.next_multiple_of(ALIGNMENT);
            add(entry.name(), "U8", bytes, bytes);
        }
        for (name, vector) in &self.vectors {
            add(name.clone(), "F32", vector.len() as u64, size_of_val(&**vector) as u64);
        }
        for entry in manifest.matrices.iter().filter(|m| m.input_order.is_some()) {
            add(entry.order_name(), "U32", entry.k as u64, (entry.k * size_of::<u32>()) as u64);
        }
        let mut json = Value::Object(tensors).to_string().into_bytes();
        let length = size_of::<u64>();
        json.resize((length + json.len()).next_multiple_of(ALIGNMENT as usize) - length, b' ');
        [&(json.len() as u64).to_le_bytes(), &json[..]].concat()
    }

    fn write_weights(
        &self,
        path: &Path,
        header: &[u8],
        step: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(header)?;
        for matrix in &self.matrices {
            let bytes = matrix.weights.stored();
            for chunk in bytes.chunks(CHUNK) {
                file.write_all(chunk)?;
                step(chunk.len() as u64)?;
            }
            let padding = padded(bytes.len()) - bytes.len() as u64;
            file.write_all(&[0; ALIGNMENT as usize][..padding as usize])?;
            step(padding)?;
        }
        for (_, vector) in &self.vectors {
            file.write_all(bytemuck::cast_slice(vector))?;
            step(size_of_val(&**vector) as u64)?;
        }
        for order in self.orders() {
            file.write_all(bytemuck::cast_slice(order))?;
            step(size_of_val(order) as u64)?;
        }
        // Programs map the file and count on its numbers to stay: it is replaced, never changed.
        file.set_permissions(fs::Permissions::from_mode(0o444))?;
        file.sync_all()
    }
}

impl PackedMatrix {
    fn entry(&self, sha256: String) -> MatrixEntry {
        let weights = &self.weights;
        let order = weights.input_order();
        let (panel, paired) = match weights.layout() {
            WeightLayout::Rows => (None, false),
            WeightLayout::Panels { width, paired } => (Some(width), paired),
        };
        let part = |(name, rows): &(String, usize)| PartEntry { name: name.clone(), rows: *rows };
        MatrixEntry {
            parts: self.parts.iter().map(part).collect(),
            n: weights.n(),
            k: weights.k(),
            format: weights.format(),
            panel,
            paired,
            bytes: weights.bytes() as u64,
            sha256,
            input_order: order.map(|order| checksum::of_bytes([bytemuck::cast_slice(order.as_slice())])),
        }
    }
}

/// Bytes of a matrix in the file.
fn padded(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(ALIGNMENT)
}

fn write_manifest(path: &Path, manifest: &Manifest) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&serde_json::to_vec_pretty(manifest)?)?;
    file.write_all(b"\n")?;
    file.sync_all()
}
