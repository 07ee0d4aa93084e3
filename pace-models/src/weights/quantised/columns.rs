//! GPTQ and AWQ: matrices that are stored input after input.
//!
//! ```text
//! GPTQ: qweight I32 [in * bits / 32, out], words of neighbouring inputs, the first one in the low bits
//!       g_idx   I32 [in], the group of each input
//! AWQ:  qweight I32 [in, out / 8], words of neighbouring outputs, in the order 0 2 4 6 1 3 5 7
//! both: qzeros  I32 [groups, out * bits / 32], words of neighbouring outputs, AWQ's in the same order
//!       scales  F16 [groups, out]
//! ```
//! The first format of GPTQ stores zeros less 1, cut to their bits.

use super::config::{Scheme, check_groups, expect};
use super::module::{ByColumns, Module, Scattered, Stored, Unpacked};
use crate::ModelError;
use crate::weights::safetensors::SafetensorsSource;
use crate::weights::{TensorInfo, WeightSource};

/// A whole matrix as it is stored.
#[derive(Debug)]
pub(super) struct Columns {
    weights: Vec<u32>,
    zeros: Vec<u32>,
    scales: Vec<f32>,
}

/// Checks the parts of the matrix `prefix`, whose `qweight` is `info`.
pub(super) fn find(
    files: &SafetensorsSource,
    prefix: &str,
    info: &TensorInfo,
    scheme: &Scheme,
) -> Result<Module, ModelError> {
    let path = files.path(&info.name);
    let fail = |what: String| ModelError::tensor(path, &info.name, what);
    let (&Scheme::Columns { stored, bits, group, symmetric, act_order }, &[rows, columns]) =
        (scheme, info.shape.as_slice())
    else {
        return Err(fail(format!("has shape {:?}; two dimensions are right", info.shape)));
    };
    let in_word = (32 / bits) as usize;
    let sizes = match stored {
        ByColumns::Gptq { .. } => rows.checked_mul(in_word).map(|inputs| (columns, inputs)),
        ByColumns::Awq => columns.checked_mul(in_word).map(|outputs| (outputs, rows)),
    };
    let Some((outputs, inputs)) = sizes else {
        return Err(fail(format!("its shape {:?} is beyond any memory", info.shape)));
    };
    let group = check_groups(path, &info.name, (outputs, inputs), group)?;
    if !outputs.is_multiple_of(in_word) {
        return Err(fail(format!("{outputs} outputs; a multiple of {in_word} is right")));
    }
    let (prefix, stored) = (prefix.to_owned(), Stored::Columns(stored));
    let mut module = Module { prefix, outputs, inputs, bits, group, symmetric, scattered: None, stored };
    let name = |part: &str| format!("{}.{part}", module.prefix);
    expect(files, &info.name, &["I32"], &info.shape)?;
    expect(files, &name("qzeros"), &["I32"], &[module.groups(), outputs / in_word])?;
    expect(files, &name("scales"), &["F16", "BF16", "F32"], &[module.groups(), outputs])?;
    let order = name("g_idx");
    if files.info(&order).is_some() || act_order {
        expect(files, &order, &["I32"], &[inputs])?;
        module.scattered = scattered(files, &order, &module)?;
    }
    Ok(module)
}

impl Columns {
    /// Reads the whole matrix.
    pub(super) fn load(files: &SafetensorsSource, module: &Module) -> Result<Self, ModelError> {
        let name = |part: &str| format!("{}.{part}", module.prefix);
        let mut scales = vec![0.0; module.groups() * module.outputs];
        files.read_any_f32(&name("scales"), 0, &mut scales)?;
        let (weights, zeros) = (words(files, &name("qweight"))?, words(files, &name("qzeros"))?);
        Ok(Self { weights, zeros, scales })
    }

    /// Writes the codes of some rows from `first` on; returns what belongs to them.
    pub(super) fn unpack(
        &self,
        files: &SafetensorsSource,
        module: &Module,
        stored: ByColumns,
        first: usize,
        codes: &mut [u8],
    ) -> Result<Unpacked, ModelError> {
        match (stored, module.bits) {
            (ByColumns::Awq, _) => self.awq_codes(module, first, codes),
            (ByColumns::Gptq { .. }, 4) => self.gptq_codes::<4>(module, first, codes),
            (ByColumns::Gptq { .. }, _) => self.gptq_codes::<8>(module, first, codes),
        }
        let (n, groups) = (codes.len() / module.inputs, module.groups());
        let (mut scales, mut zeros) = (Vec::with_capacity(n * groups), Vec::with_capacity(n * groups));
        for output in first..first + n {
            for group in 0..groups {
                scales.push(self.scales[group * module.outputs + output]);
                let zero = self.zero(module, stored, group, output);
                if module.symmetric && zero != module.middle() {
                    let (name, middle) = (format!("{}.qzeros", module.prefix), module.middle());
                    let what = format!(
                        "output {output}, group {group} has the zero {zero}, but `quantization_config.sym` is true: {middle} is right"
                    );
                    return Err(ModelError::tensor(files.path(&name), name, what));
                }
                zeros.push(zero);
            }
        }
        Ok(Unpacked { scales, zeros })
    }

    fn gptq_codes<const BITS: usize>(&self, module: &Module, first: usize, codes: &mut [u8]) {
        let in_word = 32 / BITS;
        for (step, words) in self.weights.chunks_exact(module.outputs).enumerate() {
            for (row, &word) in codes.chunks_exact_mut(module.inputs).zip(&words[first..]) {
                for (j, code) in row[step * in_word..][..in_word].iter_mut().enumerate() {
                    *code = (word >> (BITS * j)) as u8 & (u8::MAX >> (8 - BITS));
                }
            }
        }
    }

    fn awq_codes(&self, module: &Module, first: usize, codes: &mut [u8]) {
        let (inputs, in_row) = (module.inputs, module.outputs / 8);
        let end = first + codes.len() / inputs;
        // Words of so many inputs at a time: rows are written in stretches, and both sides stay in the first cache.
        let mut tile = [0; 64];
        for (start, words) in (0..).step_by(tile.len()).zip(self.weights.chunks(tile.len() * in_row)) {
            for column in first / 8..end.div_ceil(8) {
                let tile = &mut tile[..words.len() / in_row];
                for (word, words) in tile.iter_mut().zip(words.chunks_exact(in_row)) {
                    *word = words[column];
                }
                for output in first.max(column * 8)..end.min(column * 8 + 8) {
                    let out = &mut codes[(output - first) * inputs + start..][..tile.len()];
                    for (code, word) in out.iter_mut().zip(&*tile) {
                        *code = (word >> AWQ_SHIFTS[output % 8]) as u8 & 15;
                    }
                }
            }
        }
    }

    /// The code that stands for 0.
    fn zero(&self, module: &Module, stored: ByColumns, group: usize, output: usize) -> u8 {
        let in_word = (32 / module.bits) as usize;
        let word = self.zeros[(group * module.outputs + output) / in_word];
        let (shift, offset) = match stored {
            ByColumns::Gptq { zero_offset } => (module.bits as usize * (output % in_word), zero_offset),
            ByColumns::Awq => (AWQ_SHIFTS[output % 8], 0),
        };
        ((word >> shift) as u8).wrapping_add(offset) & (u8::MAX >> (8 - module.bits))
    }
}

/// The lowest bit of each of the eight outputs of a word.
const AWQ_SHIFTS: [usize; 8] = [0, 16, 4, 20, 8, 24, 12, 28];

/// Where the inputs of the groups are, if they are not neighbours, once all groups are known to exist.
fn scattered(
    files: &SafetensorsSource,
    name: &str,
    module: &Module,
) -> Result<Option<Scattered>, ModelError> {
    let of_inputs = words(files, name)?;
    let groups = module.groups();
    if let Some(at) = of_inputs.iter().position(|&group| group as usize >= groups) {
        let what =
            format!("element {at} is {}; from 0 to {} is right", of_inputs[at].cast_signed(), groups - 1);
        return Err(ModelError::tensor(files.path(name), name, what));
    }
    let in_order = of_inputs.iter().enumerate().all(|(input, &group)| group as usize == input / module.group);
    Ok((!in_order).then(|| Scattered::new(of_inputs, module.group)))
}

/// All of a tensor of 32-bit words.
fn words(files: &SafetensorsSource, name: &str) -> Result<Vec<u32>, ModelError> {
    let elements = files.info(name).map_or(0, |info| info.shape.iter().product());
    let mut words = vec![0u32; elements];
    files.read_bytes(name, 0, bytemuck::cast_slice_mut(&mut words))?;
    words.iter_mut().for_each(|word| *word = u32::from_le(*word));
    Ok(words)
}
