//! `quantization_config`: the method of a quantised checkpoint.

use std::path::Path;

use serde_json::json;

use super::module::{ByColumns, Module};
use super::{columns, rows};
use crate::ModelError;
use crate::config::Section;
use crate::file::clip;
use crate::weights::safetensors::SafetensorsSource;
use crate::weights::{TensorInfo, WeightSource};

/// How the matrices of a checkpoint are quantised.
#[derive(Debug)]
pub(super) enum Scheme {
    /// GPTQ or AWQ.
    Columns {
        stored: ByColumns,
        bits: u32,
        /// Inputs that share a scale; none: all.
        group: Option<usize>,
        symmetric: bool,
        /// Whether `g_idx` must be there, because groups need not be made of neighbours.
        act_order: bool,
    },
    /// compressed-tensors, whose tensors say the rest themselves.
    Rows {
        zero_points: ZeroPoints,
        /// Inputs that share a scale, where that is one number for all matrices.
        group: Option<usize>,
    },
}

/// Which matrices have zero points that are not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZeroPoints {
    Never,
    /// Those with a tensor of zero points: some matrices have them by the configuration, and some do not.
    WhereStored,
    Always,
}

/// The most inputs that a matrix may have, as those of a configuration.
const MAX_INPUTS: usize = 1 << 20;

impl Scheme {
    /// Reads and checks `quantization_config`.
    pub(super) fn read(section: &Section<'_>) -> Result<Self, ModelError> {
        match section.require_str("quant_method")? {
            "gptq" => read_gptq(section),
            "awq" => read_awq(section),
            "compressed-tensors" => read_compressed(section),
            other => {
                let what = format!(
                    "`{}` is not supported; supported: gptq, awq, compressed-tensors, or the unquantised model",
                    clip(other)
                );
                Err(section.error("quant_method", what))
            }
        }
    }

    /// The ends of the names of the tensors that show that a matrix is quantised.
    pub(super) const fn marks(&self) -> &'static str {
        match self {
            Self::Columns { .. } => "`….qweight`",
            Self::Rows { .. } => "`….weight` of type I8, `….weight_packed`",
        }
    }

    /// The quantised matrix that the tensor `info` is the main part of, if it is one.
    pub(super) fn module(
        &self,
        files: &SafetensorsSource,
        info: &TensorInfo,
    ) -> Result<Option<Module>, ModelError> {
        match self {
            Self::Columns { .. } => {
                let prefix = info.name.strip_suffix(".qweight");
                prefix.map(|prefix| columns::find(files, prefix, info, self)).transpose()
            }
            &Self::Rows { zero_points, group } => rows::find(files, info, zero_points, group),
        }
    }
}

/// Checks the type and the shape of a part of a matrix.
pub(super) fn expect(
    files: &SafetensorsSource,
    name: &str,
    types: &[&str],
    shape: &[usize],
) -> Result<(), ModelError> {
    let fail = |what: String| Err(ModelError::tensor(files.path(name), name, what));
    let types_and_shape = || format!("{} of shape {shape:?} is right", types.join(" or "));
    match files.info(name) {
        None => fail(format!("is missing; {}", types_and_shape())),
        Some(info) if !types.contains(&info.format.as_str()) || info.shape != shape => {
            fail(format!("is {} of shape {:?}; {}", info.format, info.shape, types_and_shape()))
        }
        Some(_) => Ok(()),
    }
}

/// Checks the size of a matrix and how its rows are cut into groups; returns the inputs in a group.
pub(super) fn check_groups(
    path: &Path,
    tensor: &str,
    (outputs, inputs): (usize, usize),
    group: Option<usize>,
) -> Result<usize, ModelError> {
    let fail = |what: String| Err(ModelError::tensor(path, tensor, what));
    if outputs == 0 || inputs == 0 || inputs > MAX_INPUTS {
        return fail(format!("{outputs} outputs of {inputs} inputs; from 1 to {MAX_INPUTS} are right"));
    }
    let group = group.unwrap_or(inputs);
    if !inputs.is_multiple_of(group) {
        return fail(format!("groups of {group} inputs do not divide its {inputs} inputs"));
    }
    Ok(group)
}

fn read_gptq(section: &Section<'_>) -> Result<Scheme, ModelError> {
    let bits = bits(section, &[4, 8])?;
    let zero_offset = match section.str("checkpoint_format")? {
        None | Some("gptq") => 1,
        Some("gptq_v2") => 0,
        Some(other) => {
            let what = format!("`{}` is not supported; supported: gptq, gptq_v2", clip(other));
            return Err(section.error("checkpoint_format", what));
        }
    };
    if section.bool("is_marlin_format")?.unwrap_or(false) {
        return Err(section.error("is_marlin_format", "must be false: only GPTQ's own layout is supported"));
    }
    Ok(Scheme::Columns {
        stored: ByColumns::Gptq { zero_offset },
        bits,
        group: group_size(section)?,
        // Where nothing is said, whatever zeros there are hold.
        symmetric: section.bool("sym")?.unwrap_or(false),
        act_order: section.bool("desc_act")?.unwrap_or(false),
    })
}

fn read_awq(section: &Section<'_>) -> Result<Scheme, ModelError> {
    let bits = bits(section, &[4])?;
    let version = section.str("version")?.unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        let what = format!("`{}` is not supported; supported: gemm", clip(version));
        return Err(section.error("version", what));
    }
    if !section.bool("zero_point")?.unwrap_or(true) {
        return Err(section.error("zero_point", "must be true: AWQ without zero points is not supported"));
    }
    let group = group_size(section)?;
    Ok(Scheme::Columns { stored: ByColumns::Awq, bits, group, symmetric: false, act_order: false })
}

fn read_compressed(section: &Section<'_>) -> Result<Scheme, ModelError> {
    check_layout(section, &["int-quantized", "pack-quantized", "mixed-precision"])?;
    if let Some(sparsity) = section.section("sparsity_config")?
        && sparsity.str("format")?.unwrap_or("dense") != "dense"
    {
        return Err(sparsity.error("format", "must be dense: sparse checkpoints are not supported"));
    }
    if let Some(transforms) = section.section("transform_config")?
        && transforms.names().any(|name| transforms.get(name).is_some_and(|value| value != &json!({})))
    {
        return Err(section.error("transform_config", "must be empty: rotated weights are not supported"));
    }
    let Some(groups) = section.section("config_groups")? else {
        return Err(section.error("config_groups", "is missing; it must be an object"));
    };
    let (mut symmetric, mut sizes) = (Vec::new(), Vec::new());
    for name in groups.names() {
        if let Some(group) = groups.section(name)? {
            check_layout(&group, &["int-quantized", "pack-quantized"])?;
            if let Some(weights) = group.section("weights")? {
                check_weights(&weights)?;
                symmetric.push(weights.bool("symmetric")?.unwrap_or(true));
                sizes.push(if weights.str("strategy")? == Some("group") {
                    group_size(&weights)?
                } else {
                    None
                });
            }
        }
    }
    let zero_points = match (symmetric.contains(&true), symmetric.contains(&false)) {
        (_, false) => ZeroPoints::Never,
        (true, true) => ZeroPoints::WhereStored,
        (false, true) => ZeroPoints::Always,
    };
    let group = sizes.first().copied().flatten().filter(|_| sizes.windows(2).all(|two| two[0] == two[1]));
    Ok(Scheme::Rows { zero_points, group })
}

/// Checks the field `format` of compressed-tensors.
fn check_layout(section: &Section<'_>, known: &[&str]) -> Result<(), ModelError> {
    match section.str("format")? {
        Some(format) if !known.contains(&format) => {
            let what = format!("`{}` is not supported; supported: {}", clip(format), known.join(", "));
            Err(section.error("format", what))
        }
        _ => Ok(()),
    }
}

/// Checks how compressed-tensors quantised the weights of some modules.
fn check_weights(weights: &Section<'_>) -> Result<(), ModelError> {
    if weights.str("type")?.unwrap_or("int") != "int" {
        return Err(weights.error("type", "must be int: only integers are supported"));
    }
    let bits = weights.require_usize("num_bits", 1..=16)?;
    if ![4, 8].contains(&bits) {
        return Err(weights.error("num_bits", format!("must be 4 or 8, but is {bits}")));
    }
    if weights.bool("dynamic")?.unwrap_or(false) {
        return Err(weights.error("dynamic", "must be false: weights have stored scales"));
    }
    // With actorder "group", a tensor says which inputs belong together.
    if weights.str("actorder")?.is_some_and(|order| order == "group") {
        return Err(weights.error("actorder", "must be absent, static or weight: groups of neighbours"));
    }
    match weights.str("strategy")? {
        None | Some("tensor" | "channel" | "group") => Ok(()),
        Some(other) => {
            let what = format!("`{}` is not supported; supported: tensor, channel, group", clip(other));
            Err(weights.error("strategy", what))
        }
    }
}

fn bits(section: &Section<'_>, known: &[u32]) -> Result<u32, ModelError> {
    let bits = section.require_usize("bits", 1..=64)? as u32;
    if known.contains(&bits) {
        return Ok(bits);
    }
    let known: Vec<_> = known.iter().map(u32::to_string).collect();
    Err(section.error("bits", format!("must be {}, but is {bits}", known.join(" or "))))
}

/// Inputs that share a scale; none: all of an output.
fn group_size(section: &Section<'_>) -> Result<Option<usize>, ModelError> {
    if section.get("group_size").is_some_and(|value| value.as_i64() == Some(-1)) {
        return Ok(None);
    }
    section.require_usize("group_size", 1..=MAX_INPUTS).map(Some)
}
