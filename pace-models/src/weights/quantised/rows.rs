//! compressed-tensors: matrices that are stored output after output.
//!
//! ```text
//! int-quantized:  weight        I8  [out, in]
//! pack-quantized: weight_packed I32 [out, ceil(in * bits / 32)], words of neighbouring inputs, the first one in the low
//!                 bits, each with the middle code added; weight_shape: out, in
//! both:           weight_scale  F32, F16 or BF16: [out, groups], [out] or one
//!                 weight_zero_point, if not symmetric (else absent or zeros): I8 of the shape of the scales, or packed as the weights are, but
//!                 by columns: I32 [ceil(out * bits / 32), groups]
//! ```

use super::config::{ZeroPoints, check_groups, expect};
use super::module::{ByRows, Module, Stored, Unpacked};
use crate::ModelError;
use crate::weights::safetensors::SafetensorsSource;
use crate::weights::{TensorInfo, WeightSource};

/// The quantised matrix that `info` is the main part of, if it is one, with its parts checked.
pub(super) fn find(
    files: &SafetensorsSource,
    info: &TensorInfo,
    zero_points: ZeroPoints,
    group: Option<usize>,
) -> Result<Option<Module>, ModelError> {
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
    if let Some(group) = group.filter(|&group| inputs.div_ceil(group) != groups) {
        let name = format!("{prefix}.weight_scale");
        let what = format!(
            "{groups} groups of {inputs} inputs, but `group_size` of the `config_groups` is {group}: {} are right",
            inputs.div_ceil(group)
        );
        return Err(ModelError::tensor(path, name, what));
    }
    let group = check_groups(path, &info.name, (outputs, inputs), Some(inputs / groups))?;
    let symmetric =
        find_zeros(files, prefix, stored, [outputs.div_ceil((32 / bits) as usize), groups], zero_points)?;
    let (prefix, stored) = (prefix.to_owned(), Stored::Rows(stored));
    Ok(Some(Module { prefix, outputs, inputs, bits, group, symmetric, scattered: None, stored }))
}

/// Checks the tensor of zero points, if it is there or has to be, which has the shape `packed` if it is packed; returns
/// whether all of them are 0.
fn find_zeros(
    files: &SafetensorsSource,
    prefix: &str,
    stored: ByRows,
    packed: [usize; 2],
    zero_points: ZeroPoints,
) -> Result<bool, ModelError> {
    let name = zeros_name(prefix);
    let format = files.info(&name).map(|info| info.format.as_str());
    let symmetric = match zero_points {
        ZeroPoints::Never => true,
        ZeroPoints::WhereStored => format.is_none(),
        ZeroPoints::Always => false,
    };
    if symmetric && format.is_none() {
        return Ok(true);
    }
    // Where nothing but zeros is right, it does not matter how they are stored.
    if stored == ByRows::Bytes || (symmetric && format == Some("I8")) {
        expect(files, &name, &["I8"], scale_shape(files, prefix))?;
    } else {
        expect(files, &name, &["I32"], &packed)?;
    }
    Ok(symmetric)
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
    let mut zeros = vec![module.middle(); scales.len()];
    if is_one(files, &module.prefix) {
        let mut one = [0.0];
        files.read_any_f32(&name, 0, &mut one)?;
        scales.fill(one[0]);
    } else {
        files.read_any_f32(&name, first * groups, &mut scales)?;
    }
    if files.info(&zeros_name(&module.prefix)).is_some() {
        read_zeros(files, module, first, &mut zeros)?;
    }
    if module.symmetric
        && let Some(i) = zeros.iter().position(|&zero| zero != module.middle())
    {
        let (output, group) = (first + i / groups, i % groups);
        let zero = i16::from(zeros[i]) - i16::from(module.middle());
        let what = format!(
            "output {output}, group {group} has the zero point {zero}, but `symmetric` of the `config_groups` is true: 0 is right"
        );
        let name = zeros_name(&module.prefix);
        return Err(ModelError::tensor(files.path(&name), name, what));
    }
    Ok(Unpacked { scales, zeros })
}

/// The codes that stand for 0, `[rows, groups]`.
fn read_zeros(
    files: &SafetensorsSource,
    module: &Module,
    first: usize,
    zeros: &mut [u8],
) -> Result<(), ModelError> {
    let (name, groups) = (zeros_name(&module.prefix), module.groups());
    if files.info(&name).is_some_and(|info| info.format == "I8") {
        if is_one(files, &module.prefix) {
            let mut one = [0];
            files.read_bytes(&name, 0, &mut one)?;
            zeros.fill(one[0]);
        } else {
            files.read_bytes(&name, first * groups, zeros)?;
        }
        zeros.iter_mut().for_each(|zero| *zero = zero.wrapping_add(module.middle()));
        return Ok(());
    }
    let bits = module.bits as usize;
    let (in_word, end) = (32 / bits, first + zeros.len() / groups);
    let line = first / in_word;
    let mut words = vec![0u32; (end.div_ceil(in_word) - line) * groups];
    files.read_bytes(&name, line * groups * size_of::<u32>(), bytemuck::cast_slice_mut(&mut words))?;
    for (output, zeros) in (first..end).zip(zeros.chunks_exact_mut(groups)) {
        for (zero, word) in zeros.iter_mut().zip(&words[(output / in_word - line) * groups..]) {
            *zero = (u32::from_le(*word) >> (bits * (output % in_word))) as u8 & (u8::MAX >> (8 - bits));
        }
    }
    Ok(())
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

/// The name of the tensor of zero points.
fn zeros_name(prefix: &str) -> String {
    format!("{prefix}.weight_zero_point")
}

/// The shape of the scales; that of a single number if there are none.
fn scale_shape<'f>(files: &'f SafetensorsSource, prefix: &str) -> &'f [usize] {
    files.info(&format!("{prefix}.weight_scale")).map_or(&[], |info| &info.shape)
}

/// Whether one scale is that of all outputs.
fn is_one(files: &SafetensorsSource, prefix: &str) -> bool {
    scale_shape(files, prefix).iter().all(|&size| size == 1)
}

/// The number of groups of a row, by the shape of the scales.
fn scale_groups(files: &SafetensorsSource, prefix: &str, outputs: usize) -> Result<usize, ModelError> {
    let name = format!("{prefix}.weight_scale");
    let right = |shape: &[usize]| expect(files, &name, &["F32", "F16", "BF16"], shape);
    match scale_shape(files, prefix) {
        &[rows, groups] if rows == outputs => right(&[outputs, groups]).map(|()| groups),
        // One for all, or one for each output.
        shape if is_one(files, prefix) && files.info(&name).is_some() => right(shape).map(|()| 1),
        _ => right(&[outputs]).map(|()| 1),
    }
}
