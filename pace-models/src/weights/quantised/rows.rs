//! compressed-tensors: matrices that are stored output after output.
//!
//! ```text
//! int-quantized:  weight        I8  [out, in]
//! pack-quantized: weight_packed I32 [out, ceil(in * bits / 32)], words of neighbouring inputs, the first one in the low
//!                 bits, each with the middle code added; weight_shape: out, in
//! both:           weight_scale  F32, F16 or BF16: [out, groups], [out] or one
//! ```

use super::config::{check_groups, expect};
use super::module::{ByRows, Module, Stored, Unpacked};
use crate::ModelError;
use crate::weights::safetensors::SafetensorsSource;
use crate::weights::{TensorInfo, WeightSource};

/// The quantised matrix that `info` is the main part of, if it is one, with its parts checked.
pub(super) fn find(files: &SafetensorsSource, info: &TensorInfo) -> Result<Option<Module>, ModelError> {
    let (prefix, stored, (outputs, inputs), bits) =
        if let Some(prefix) = info.name.strip_suffix(".weight_packed") {
            let (outputs, inputs) = packed_shape(files, prefix)?;
            (prefix, ByRows::Words, (outputs, inputs), packed_bits(files, info, (outputs, inputs))?)
        } else if let Some(prefix) = info.name.strip_suffix(".weight").filter(|_| info.format == "I8") {
            let &[outputs, inputs] = info.shape.as_slice() else {
                let what = format!("has shape {:?}; two dimensions are right", info.shape);
                return Err(ModelError::tensor(files.path(&info.name), &info.name, what));
            };
            (prefix, ByRows::Bytes, (outputs, inputs), 8)
        } else {
            return Ok(None);
        };
    let groups = scale_groups(files, prefix, outputs)?;
    let path = files.path(&info.name);
    if groups == 0 || !inputs.is_multiple_of(groups) {
        let name = format!("{prefix}.weight_scale");
        let what = format!("{groups} groups do not divide {inputs} inputs");
        return Err(ModelError::tensor(path, name, what));
    }
    let group = check_groups(path, &info.name, (outputs, inputs), Some(inputs / groups))?;
    let (prefix, stored) = (prefix.to_owned(), Stored::Rows(stored));
    Ok(Some(Module { prefix, outputs, inputs, bits, group, symmetric: true, scattered: false, stored }))
}

/// Writes the codes of some rows from `first` on; returns what belongs to them.
pub(super) fn unpack(
    files: &SafetensorsSource,
    module: &Module,
    stored: ByRows,
    first: usize,
    codes: &mut [u8],
) -> Result<Unpacked, ModelError> {
    let n = codes.len() / module.inputs;
    match stored {
        ByRows::Bytes => {
            files.read_bytes(&module.weight(), first * module.inputs, codes)?;
            codes.iter_mut().for_each(|code| *code ^= 0x80);
        }
        ByRows::Words => read_packed(files, module, first, codes)?,
    }
    let (name, groups) = (module.scales(), module.groups());
    let mut scales = vec![0.0; n * groups];
    if files.info(&name).is_some_and(|info| info.shape.iter().product::<usize>() == 1) {
        let mut one = [0.0];
        files.read_any_f32(&name, 0, &mut one)?;
        scales.fill(one[0]);
    } else {
        files.read_any_f32(&name, first * groups, &mut scales)?;
    }
    Ok(Unpacked { zeros: vec![module.middle(); scales.len()], scales, order: Vec::new() })
}

fn read_packed(
    files: &SafetensorsSource,
    module: &Module,
    first: usize,
    codes: &mut [u8],
) -> Result<(), ModelError> {
    let bits = module.bits as usize;
    let (in_word, in_row) = (32 / bits, (module.inputs * bits).div_ceil(32));
    let mut words = vec![0u32; codes.len() / module.inputs * in_row];
    let start = first * in_row * size_of::<u32>();
    files.read_bytes(
        &format!("{}.weight_packed", module.prefix),
        start,
        bytemuck::cast_slice_mut(&mut words),
    )?;
    for (codes, words) in codes.chunks_exact_mut(module.inputs).zip(words.chunks_exact(in_row)) {
        for (codes, word) in codes.chunks_mut(in_word).zip(words) {
            for (j, code) in codes.iter_mut().enumerate() {
                *code = (u32::from_le(*word) >> (bits * j)) as u8 & (u8::MAX >> (8 - bits));
            }
        }
    }
    Ok(())
}

/// Outputs and inputs of a packed matrix, which a tensor of their own holds.
fn packed_shape(files: &SafetensorsSource, prefix: &str) -> Result<(usize, usize), ModelError> {
    let name = format!("{prefix}.weight_shape");
    expect(files, &name, &["I64", "I32"], &[2])?;
    let wide = files.info(&name).is_some_and(|info| info.format == "I64");
    let mut bytes = [0; 16];
    let size = if wide { 8 } else { 4 };
    files.read_bytes(&name, 0, &mut bytes[..2 * size])?;
    let number = |bytes: &[u8]| {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        usize::try_from(u64::from_le_bytes(wide)).unwrap_or(usize::MAX)
    };
    Ok((number(&bytes[..size]), number(&bytes[size..2 * size])))
}

/// The bits of a code, by how many words a row has.
fn packed_bits(
    files: &SafetensorsSource,
    info: &TensorInfo,
    (outputs, inputs): (usize, usize),
) -> Result<u32, ModelError> {
    let words = |bits: usize| inputs.checked_mul(bits).map_or(usize::MAX, |bits| bits.div_ceil(32));
    let bits = [4, 8].into_iter().find(|&bits| info.shape == [outputs, words(bits)]);
    match bits {
        Some(bits) if info.format == "I32" => Ok(bits as u32),
        _ => {
            let what = format!(
                "is {} of shape {:?}; for {outputs} outputs of {inputs} inputs, I32 of shape [{outputs}, {}] (4 bits) or [{outputs}, {}] (8 bits) is right",
                info.format,
                info.shape,
                words(4),
                words(8)
            );
            Err(ModelError::tensor(files.path(&info.name), &info.name, what))
        }
    }
}

/// The number of groups of a row, by the shape of the scales.
fn scale_groups(files: &SafetensorsSource, prefix: &str, outputs: usize) -> Result<usize, ModelError> {
    const TYPES: [&str; 3] = ["F32", "F16", "BF16"];
    let name = format!("{prefix}.weight_scale");
    let shape = files.info(&name).map_or(&[] as &[usize], |info| &info.shape);
    match shape {
        &[rows, groups] if rows == outputs => {
            expect(files, &name, &TYPES, &[outputs, groups])?;
            Ok(groups)
        }
        // One for each output, or one for all.
        [] | [1] if files.info(&name).is_some() => expect(files, &name, &TYPES, shape).map(|()| 1),
        _ => expect(files, &name, &TYPES, &[outputs]).map(|()| 1),
    }
}
