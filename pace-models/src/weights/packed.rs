//! [`PackedSource`]: a model that was packed into a directory, as `pace-cli quantize` and `pace-cli pack` write it.
//!
//! ```text
//! pace.json                what was packed: the manifest
//! model.pace.safetensors   matrices as they lie in memory (U8), one for each fused matrix; then vectors (F32), and the
//!                          orders of inputs (U32) of matrices that have them in another one than the model
//! ```
//!
//! Matrices start at multiples of 64 bytes, so that they can be used from a mapping, and are zeros up to the next one. They
//! are read into the memory of the model by every thread its own part, or borrowed from the mapping; nothing is computed
//! from them. Opening checks the manifest against the header of the file; [`PackedSource::verify`] reads all bytes.

mod checksum;
mod manifest;
mod write;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use pace_kernels::{
    Arena, DType, InputOrder, PackError, PackSpec, PackedWeights, Par, WeightFormat, WeightLayout,
};

pub use self::manifest::{Loss, Manifest, MatrixEntry, Origin, OriginFile, OriginKind, PartEntry};
pub(crate) use self::write::PackedMatrix;
pub use self::write::{MANIFEST, METADATA, PackedModel, WEIGHTS};
use super::safetensors::{SafetensorsSource, StoredTensor};
use super::{Naming, TensorInfo, WeightSource};
use crate::arch::{Architecture, Role};
use crate::file::clip;
use crate::{LoadOptions, ModelError, QuantLoss};

/// Matrices start at multiples of so many bytes of the file.
const ALIGNMENT: u64 = 64;
/// No matrix of a model has as many rows or columns.
const MAX_SIDE: usize = 1 << 31;

/// An open packed model. Its matrices are had in their packed form alone; vectors are read like those of other sources.
#[derive(Debug)]
pub struct PackedSource {
    manifest_path: PathBuf,
    manifest: Manifest,
    weights: SafetensorsSource,
    /// Parts of matrices, then vectors.
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    /// Where each matrix of the manifest begins in the file.
    offsets: Vec<u64>,
    matrices: HashMap<String, usize>,
    /// The names of the orders of inputs.
    orders: HashSet<String>,
}

impl PackedSource {
    /// Whether `dir` holds a packed model, or what should be one.
    pub fn is_in(dir: &Path) -> bool {
        // A link whose target is gone is there, and its error should say so.
        dir.join(MANIFEST).symlink_metadata().is_ok()
    }

    /// Opens the packed model in `dir` and checks its manifest and the header of its weights.
    ///
    /// # Errors
    /// A file is missing or malformed; the layout is of another version; manifest and weights do not belong together, or
    /// contradict each other.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let manifest_path = dir.join(MANIFEST);
        let manifest = Manifest::read(&manifest_path)?;
        if cfg!(target_endian = "big") {
            let what =
                "packed weights are little-endian, this CPU is not; use the model that they were made from";
            return Err(ModelError::file(&manifest_path, what));
        }
        let weights = SafetensorsSource::open_file(&dir.join(WEIGHTS))?;
        let header = checksum::of_header(&weights)?;
        if header != manifest.header_sha256 {
            let what = format!(
                "does not belong to {WEIGHTS}: the checksum of its header is another; {}",
                manifest.again()
            );
            return Err(ModelError::field(&manifest_path, "header_sha256", what));
        }
        let (tensors, by_name, matrices) = (Vec::new(), HashMap::new(), HashMap::new());
        let (offsets, orders) = (Vec::new(), HashSet::new());
        let mut source =
            Self { manifest_path, manifest, weights, tensors, by_name, offsets, matrices, orders };
        source.add_matrices()?;
        source.add_vectors()?;
        if source.weights.metadata("id") != Some(&source.manifest.id()) {
            let what = format!(
                "are not what {WEIGHTS} was written with: something in pace.json was changed, or another PACE wrote it; {}",
                source.manifest.again()
            );
            return Err(source.manifest_error("matrices", what));
        }
        Ok(source)
    }

    /// What was packed.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What weights lost when they became integers.
    pub(crate) fn losses(&self) -> Vec<QuantLoss> {
        let loss =
            |l: &Loss| QuantLoss { format: l.format, weights: l.weights, relative_rms: l.relative_rms };
        self.manifest.losses.iter().map(loss).collect()
    }

    /// The error of the manifest's field `field`.
    pub fn manifest_error(&self, field: &str, what: impl Into<String>) -> ModelError {
        ModelError::field(&self.manifest_path, field, what)
    }

    /// The format of the matrix of these tensors, one below the other.
    pub(crate) fn format(&self, tensors: &[&str]) -> Option<WeightFormat> {
        self.matrices.get(&manifest::joined(tensors)).map(|&at| self.manifest.matrices[at].format)
    }

    /// The `[n, k]` matrix of these tensors: borrowed from the mapping if there is one, else read into `arena`.
    pub(crate) fn matrix(
        &self,
        tensors: &[&str],
        (n, k): (usize, usize),
        spec: PackSpec,
        arena: &Arena,
        par: &Par<'_>,
    ) -> Result<PackedWeights, ModelError> {
        let name = manifest::joined(tensors);
        let Some(&at) = self.matrices.get(&name) else {
            let what = format!("is not packed as one matrix; {}", self.manifest.again());
            return Err(ModelError::tensor(&self.manifest_path, name, what));
        };
        let entry = &self.manifest.matrices[at];
        self.check_asked(entry, n, k, spec)?;
        let weights = self.stored_matrix(entry, self.offsets[at], arena, par)?;
        if entry.input_order.is_none() {
            return Ok(weights);
        }
        Ok(weights.with_input_order(self.input_order(entry)?))
    }

    /// A matrix, its inputs as they are stored.
    fn stored_matrix(
        &self,
        entry: &MatrixEntry,
        offset: u64,
        arena: &Arena,
        par: &Par<'_>,
    ) -> Result<PackedWeights, ModelError> {
        let (n, k, spec, name) = (entry.n, entry.k, entry.spec(), entry.name());
        let file = self.weights.single_file();
        let wrong = |e| ModelError::io(file.path(), e);
        if let Some(map) = file.mapping() {
            return PackedWeights::mapped(&map, offset, spec, n, k).map_err(wrong);
        }
        let read = |range: Range<usize>, out: &mut [u8]| file.read_exact_at(out, offset + range.start as u64);
        PackedWeights::read_in(arena, spec, n, k, par, read).map_err(|error| match error {
            PackError::OutOfMemory(e) => ModelError::OutOfMemory { tensor: name, bytes: e.bytes },
            PackError::Fill(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                ModelError::tensor(file.path(), name, "ends too early: the file was changed or truncated")
            }
            PackError::Fill(e) => wrong(e),
        })
    }

    /// The order in which the inputs of a matrix are stored.
    fn input_order(&self, entry: &MatrixEntry) -> Result<InputOrder, ModelError> {
        let (name, mut order) = (entry.order_name(), vec![0u32; entry.k]);
        self.weights.read_bytes(&name, 0, bytemuck::cast_slice_mut(&mut order))?;
        InputOrder::new(order).ok_or_else(|| {
            let what = format!("does not have each of {} inputs once; {}", entry.k, self.manifest.again());
            ModelError::tensor(self.weights.path(&name), name, what)
        })
    }

    /// Refuses a matrix that is packed in another way than is asked for.
    fn check_asked(&self, entry: &MatrixEntry, n: usize, k: usize, spec: PackSpec) -> Result<(), ModelError> {
        if (entry.n, entry.k) != (n, k) {
            let what = format!("is packed as [{}, {}], but the model has it as [{n}, {k}]", entry.n, entry.k);
            return Err(ModelError::tensor(&self.manifest_path, entry.name(), what));
        }
        if entry.spec() == spec {
            return Ok(());
        }
        let (is, wanted) = (described(entry.spec()), described(spec));
        let (name, again) = (entry.name(), self.manifest.again());
        let what = format!(
            "`{name}` is packed as {is}, but this run computes {wanted}; say what it was packed with here, too, or {again}"
        );
        Err(ModelError::PackedOtherwise { path: self.manifest_path.clone(), what })
    }

    /// The error of a matrix that is packed otherwise than the options say.
    fn otherwise(&self, entry: &MatrixEntry, what: String) -> ModelError {
        let what = format!("`{}` {what}; leave it as it is, or {}", entry.name(), self.manifest.again());
        ModelError::PackedOtherwise { path: self.manifest_path.clone(), what }
    }

    /// Checks that the model was packed as the options ask for.
    ///
    /// # Errors
    /// [`ModelError::PackedOtherwise`]: it was not, and says what it was packed as.
    pub(crate) fn check_options(&self, arch: Architecture, options: &LoadOptions) -> Result<(), ModelError> {
        let vocabulary = [Role::Embedding, Role::LmHead].map(|role| arch.tensor_name(self.naming(), role));
        for entry in &self.manifest.matrices {
            let of_vocabulary = entry.parts.iter().any(|part| vocabulary.contains(&part.name));
            let asked = match (options.own_formats, of_vocabulary) {
                (true, false) => None,
                (true, true) => options.lm_head,
                (false, true) => Some(options.lm_head.unwrap_or(options.weights)),
                (false, false) => Some(options.weights),
            };
            self.check_entry(entry, asked, options)?;
        }
        if self.manifest.allow_nonfinite && !options.allow_nonfinite {
            let what = "the model was packed with --allow-nonfinite: its numbers were not checked; give the flag here, too";
            return Err(self.manifest_error("allow_nonfinite", what));
        }
        Ok(())
    }

    /// Refuses a matrix that is not in the format that is asked for, if one is, or was made for other options.
    fn check_entry(
        &self,
        entry: &MatrixEntry,
        asked: Option<WeightFormat>,
        options: &LoadOptions,
    ) -> Result<(), ModelError> {
        if let Some(asked) = asked.filter(|&asked| asked != entry.format) {
            let what = format!("is packed as {}, but {asked} is asked for", entry.format);
            return Err(self.otherwise(entry, what));
        }
        let activations = match entry.format {
            WeightFormat::F32 => DType::F32,
            WeightFormat::F16 | WeightFormat::Bf16 => DType::Bf16,
            _ => options.activations,
        };
        if activations != options.activations {
            let what = format!("is packed as {}, which --dtype {activations} computes with", entry.format);
            return Err(self.otherwise(entry, what));
        }
        if options.importance.is_some() {
            let what = "is rounded already, and --imatrix says how to round".to_owned();
            return Err(self.otherwise(entry, what));
        }
        let searched = self.manifest.search_scales;
        if asked.is_some() && entry.format.is_quantised() && searched != options.search_scales {
            let name = |search| if search { "search" } else { "nearest" };
            let (is, asked) = (name(searched), name(options.search_scales));
            let what = format!("is packed with --quant-rounding {is}, but {asked} is asked for");
            return Err(self.otherwise(entry, what));
        }
        Ok(())
    }

    fn add_matrices(&mut self) -> Result<(), ModelError> {
        let in_panels = self.manifest.matrices.iter().find(|entry| entry.panel.is_some());
        for (at, entry) in self.manifest.matrices.iter().enumerate() {
            let fail = |what: String| Err(ModelError::tensor(&self.manifest_path, entry.name(), what));
            let fits = in_panels.map_or(Ok(()), |other| entry.check_width(other));
            if let Err(what) = entry.check().and(fits) {
                return fail(format!("{what}; {}", self.manifest.again()));
            }
            let Some(stored) = self.weights.stored(&entry.name()) else {
                return fail(format!("is not in {WEIGHTS}; {}", self.manifest.again()));
            };
            if let Err(what) = check_place(entry, &stored) {
                return fail(format!("{what}; {}", self.manifest.again()));
            }
            if entry.input_order.is_some() {
                let stored = self.weights.info(&entry.order_name());
                if stored.is_none_or(|info| info.format != "U32" || info.shape != [entry.k]) {
                    let (name, k, again) = (entry.order_name(), entry.k, self.manifest.again());
                    return fail(format!("has no `{name}`, U32 of shape [{k}], in {WEIGHTS}; {again}"));
                }
                self.orders.insert(entry.order_name());
            }
            for part in &entry.parts {
                let format = entry.format.to_string();
                let info = TensorInfo { name: part.name.clone(), shape: vec![part.rows, entry.k], format };
                if self.by_name.insert(info.name.clone(), self.tensors.len()).is_some() {
                    return fail(format!("holds `{}`, which another matrix holds, too", clip(&info.name)));
                }
                self.tensors.push(info);
            }
            self.offsets.push(stored.offset);
            self.matrices.insert(entry.name(), at);
        }
        Ok(())
    }

    /// What else is in the file: vectors, and nothing that the manifest does not know.
    fn add_vectors(&mut self) -> Result<(), ModelError> {
        for info in self.weights.tensors() {
            if self.matrices.contains_key(&info.name) || self.orders.contains(&info.name) {
                continue;
            }
            let fail =
                |what| Err(ModelError::tensor(self.weights.path(&info.name), info.name.as_str(), what));
            if info.format != "F32" || info.shape.len() != 1 {
                return fail("is no vector in F32, and pace.json does not name it".to_owned());
            }
            if self.by_name.insert(info.name.clone(), self.tensors.len()).is_some() {
                return fail("is a part of a matrix, too".to_owned());
            }
            self.tensors.push(info.clone());
        }
        Ok(())
    }
}

impl WeightSource for PackedSource {
    fn naming(&self) -> Naming {
        match self.manifest.kind {
            OriginKind::Gguf => Naming::Gguf,
            OriginKind::Hf | OriginKind::Random => Naming::Hf,
        }
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&at| &self.tensors[at])
    }

    fn path(&self, name: &str) -> &Path {
        self.weights.path(name)
    }

    fn read_f32(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), ModelError> {
        self.weights.read_f32(name, start, out)
    }

    fn read_any_f32(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), ModelError> {
        self.weights.read_any_f32(name, start, out)
    }

    fn packed(&self) -> Option<&PackedSource> {
        Some(self)
    }

    fn set_mapped(&self, mapped: bool) -> Result<(), ModelError> {
        self.weights.set_mapped(mapped)
    }

    fn check_unchanged(&self) -> Result<(), ModelError> {
        self.weights.check_unchanged()
    }
}

/// Whether a matrix lies in the file as the manifest says.
fn check_place(entry: &MatrixEntry, stored: &StoredTensor) -> Result<(), String> {
    // Sides are bounded, so a size that does not fit is a lie.
    let needed = PackedWeights::stored_bytes(entry.spec(), entry.n, entry.k).ok().map(|bytes| bytes as u64);
    if needed != Some(entry.bytes) {
        let needs = needed.map_or_else(|| "more than there can be".to_owned(), |bytes| bytes.to_string());
        let (n, k, spec) = (entry.n, entry.k, described(entry.spec()));
        return Err(format!("says {} bytes, but [{n}, {k}] as {spec} takes {needs}", entry.bytes));
    }
    let padded = entry.bytes.next_multiple_of(ALIGNMENT);
    if stored.dtype != "U8" || stored.bytes != padded {
        let StoredTensor { dtype, bytes, .. } = stored;
        return Err(format!("{WEIGHTS} has it as {bytes} bytes of {dtype}; {padded} bytes of U8 are right"));
    }
    if !stored.offset.is_multiple_of(ALIGNMENT) {
        return Err(format!(
            "lies at byte {} of {WEIGHTS}, which is no multiple of {ALIGNMENT}",
            stored.offset
        ));
    }
    Ok(())
}

/// A way to pack, in words.
fn described(spec: PackSpec) -> String {
    match spec.layout {
        WeightLayout::Rows => format!("{} in rows (backend native)", spec.format),
        WeightLayout::Panels { width, paired } => {
            let paired = if paired { ", gate and up paired" } else { "" };
            format!("{} in panels of {width} (LIBXSMM_BLOCK_SIZE={width}){paired}", spec.format)
        }
    }
}

#[cfg(test)]
mod tests;
