//! Quantised HF checkpoints: GPTQ, AWQ and compressed-tensors, as `quantization_config` in `config.json` says.
//!
//! A quantised matrix is several tensors, `….qweight`, `….scales` and so on. [`QuantisedSource`] shows them as the one
//! that they stand for, `….weight` of shape `[out, in]`, in f32 or as integers. All other tensors are what they are.
//!
//! GPTQ and AWQ store matrices by columns, so that some rows of one are bits of all its bytes. A matrix is therefore read
//! whole when its first rows are asked for, and forgotten with its last; the three latest are kept. Three, because
//! the largest fused matrix, query with key and value, is read from front to back. That takes at most the bytes of
//! three matrices as they are stored: for a model of 8 billion weights in 4 bits, 90 MB.
//!
//! Sources: the documentation of the formats by AutoGPTQ and GPTQModel, AutoAWQ, and compressed-tensors.

mod cache;
mod columns;
mod config;
mod module;
mod rows;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use pace_kernels::{CodeRows, InputOrder, WeightFormat};

use self::cache::Cache;
use self::columns::Columns;
use self::config::Scheme;
use self::module::{Module, Stored, Unpacked};
use super::codes::read_widened;
use super::safetensors::SafetensorsSource;
use super::{Naming, TensorInfo, WeightSource, first_not_finite};
use crate::ModelError;
use crate::config::HfConfig;

/// Opens the weights of a model directory: those of [`SafetensorsSource`], or of a [`QuantisedSource`] if `config` has a
/// `quantization_config`.
///
/// # Errors
/// As [`SafetensorsSource::open`] and [`QuantisedSource::open`].
pub fn open_directory(dir: &Path, config: &HfConfig) -> Result<Box<dyn WeightSource>, ModelError> {
    if config.root().get("quantization_config").is_some() {
        Ok(Box::new(QuantisedSource::open(dir, config)?))
    } else {
        Ok(Box::new(SafetensorsSource::open(dir)?))
    }
}

/// An open checkpoint, quantised, with HF's tensor names.
#[derive(Debug)]
pub struct QuantisedSource {
    files: SafetensorsSource,
    /// What the files hold and stand for.
    tensors: Vec<TensorInfo>,
    /// Parallel to `tensors`: how those are stored that are quantised.
    modules: Vec<Option<Module>>,
    by_name: HashMap<String, usize>,
    /// Matrices that are stored by columns, while they are read.
    columns: Cache<Columns>,
}

impl QuantisedSource {
    /// Opens a model directory whose `config` has a `quantization_config`, and checks the types and shapes of all tensors
    /// that a quantised matrix is made of.
    ///
    /// # Errors
    /// The method is unknown or of a kind that is not supported, a file is malformed (as [`SafetensorsSource::open`]), or a
    /// tensor is missing, or its type or shape is not that of the method; an input's group (`g_idx`) does not exist.
    pub fn open(dir: &Path, config: &HfConfig) -> Result<Self, ModelError> {
        const FIELD: &str = "quantization_config";
        let root = config.root();
        let Some(section) = root.section(FIELD)? else {
            return Err(root.error(FIELD, "is missing; it must be an object"));
        };
        let scheme = Scheme::read(&section)?;
        let source = Self::new(SafetensorsSource::open(dir)?, &scheme)?;
        if source.modules.iter().all(Option::is_none) {
            let what = format!("names a method whose tensors ({}) the files do not hold", scheme.marks());
            return Err(root.error(FIELD, what));
        }
        Ok(source)
    }

    fn new(files: SafetensorsSource, scheme: &Scheme) -> Result<Self, ModelError> {
        let (mut tensors, mut modules) = (Vec::new(), Vec::new());
        let mut parts = HashSet::new();
        for info in files.tensors() {
            let Some(module) = scheme.module(&files, info)? else { continue };
            parts.extend(module.parts());
            let shape = vec![module.outputs, module.inputs];
            tensors.push(TensorInfo { name: module.weight(), shape, format: module.label() });
            modules.push(Some(module));
        }
        for info in files.tensors().iter().filter(|info| !parts.contains(&info.name)) {
            tensors.push(info.clone());
            modules.push(None);
        }
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (at, info) in tensors.iter().enumerate() {
            if by_name.insert(info.name.clone(), at).is_some() {
                let what = "is there both quantised and not; it must be one of the two";
                return Err(ModelError::tensor(files.path(&info.name), &info.name, what));
            }
        }
        Ok(Self { files, tensors, modules, by_name, columns: Cache::default() })
    }

    fn module(&self, name: &str) -> Option<(usize, &Module)> {
        let at = *self.by_name.get(name)?;
        self.modules[at].as_ref().map(|module| (at, module))
    }

    fn wrong(&self, name: &str, what: impl Into<String>) -> ModelError {
        ModelError::tensor(self.path(name), name, what)
    }

    /// Rows of a quantised matrix as they are stored, from row `first` on and as many as `codes` has room for.
    fn unpack(
        &self,
        at: usize,
        module: &Module,
        first: usize,
        codes: &mut [u8],
        strict: bool,
    ) -> Result<Unpacked, ModelError> {
        let n = codes.len() / module.inputs;
        if first.checked_add(n).is_none_or(|end| end > module.outputs) {
            let what = format!("{n} rows from {first} on leave its {} rows", module.outputs);
            return Err(self.wrong(&module.weight(), what));
        }
        let unpacked = match module.stored {
            Stored::Rows(stored) => rows::unpack(&self.files, module, stored, first, codes)?,
            Stored::Columns(stored) => {
                let columns = self.columns.get(at, || Columns::load(&self.files, module))?;
                let unpacked = columns.unpack(&self.files, module, stored, first, codes)?;
                self.columns.count(at, n, module.outputs);
                unpacked
            }
        };
        if strict && let Some(i) = unpacked.scales.iter().position(|x| !x.is_finite() || *x == 0.0) {
            let groups = module.groups();
            let (output, group, scale) = (first + i / groups, i % groups, unpacked.scales[i]);
            let name = module.scales();
            let what = format!(
                "the scale of output {output}, group {group} is {scale}; finite numbers other than 0 are right"
            );
            return Err(ModelError::tensor(self.files.path(&name), name, what));
        }
        Ok(unpacked)
    }

    /// [`WeightSource::read_f32`], or if not `strict` [`WeightSource::read_any_f32`].
    fn read(&self, name: &str, start: usize, out: &mut [f32], strict: bool) -> Result<(), ModelError> {
        let Some((at, module)) = self.module(name) else {
            return if strict {
                self.files.read_f32(name, start, out)
            } else {
                self.files.read_any_f32(name, start, out)
            };
        };
        let k = module.inputs;
        if !start.is_multiple_of(k) || !out.len().is_multiple_of(k) {
            let what = format!("{} elements from {start} on are no whole rows of {k}", out.len());
            return Err(self.wrong(name, what));
        }
        let mut codes = vec![0; out.len().min(ROWS * k)];
        let mut first = start / k;
        for out in out.chunks_mut(ROWS * k) {
            let codes = &mut codes[..out.len()];
            let unpacked = self.unpack(at, module, first, codes, strict)?;
            module.dequantise(codes, &unpacked, out);
            if let Some(i) = first_not_finite(out).filter(|_| strict) {
                let what = format!("element {} is {}; finite numbers are right", first * k + i, out[i]);
                return Err(self.wrong(name, what));
            }
            first += out.len() / k;
        }
        Ok(())
    }

    /// [`WeightSource::read_codes`], or if not `strict` [`WeightSource::read_any_codes`].
    fn read_integers(
        &self,
        name: &str,
        first_row: usize,
        format: WeightFormat,
        rows: &mut CodeRows<'_>,
        strict: bool,
    ) -> Result<(), ModelError> {
        let Some((at, module)) = self.module(name) else {
            return self.files.read_codes(name, first_row, format, rows);
        };
        let wrong = |what: String| self.wrong(name, what);
        let Some(own) = module.format() else {
            return Err(wrong("is stored in groups that no format of integers has".to_owned()));
        };
        read_widened(own, format, module.inputs, rows, wrong, |rows| {
            let unpacked = self.unpack(at, module, first_row, rows.codes, strict)?;
            module.store(own, &unpacked, rows);
            Ok(())
        })
    }
}

impl WeightSource for QuantisedSource {
    fn naming(&self) -> Naming {
        Naming::Hf
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&at| &self.tensors[at])
    }

    fn path(&self, name: &str) -> &Path {
        match self.module(name) {
            Some((_, module)) => self.files.path(&module.scales()),
            None => self.files.path(name),
        }
    }

    fn read_f32(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), ModelError> {
        self.read(name, start, out, true)
    }

    fn read_any_f32(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), ModelError> {
        self.read(name, start, out, false)
    }

    fn codes(&self, name: &str) -> Option<WeightFormat> {
        self.module(name).and_then(|(_, module)| module.format())
    }

    fn input_order(&self, name: &str) -> Option<&InputOrder> {
        self.module(name).and_then(|(_, module)| module.input_order())
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
        self.files.set_mapped(mapped)
    }

    fn check_unchanged(&self) -> Result<(), ModelError> {
        self.files.check_unchanged()
    }
}

/// Rows that are unpacked at a time on their way to f32.
const ROWS: usize = 8;

#[cfg(test)]
mod tests;
