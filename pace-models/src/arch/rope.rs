//! Rotary position embedding as configurations describe it.
//!
//! The HF half follows transformers 5 (`modeling_rope_utils.py`), which also reads what older releases wrote: the
//! parameters stand in `rope_parameters`, or in the older `rope_scaling` with `rope_theta` beside it. A non-empty
//! `rope_scaling` replaces `rope_parameters`, and `rope_type` wins over its older name `type`.

use crate::config::Section;
use crate::weights::WeightSource;
use crate::weights::gguf::Metadata;
use crate::{ModelError, RopeScaling, RopeSpec};

use super::llama::MAX_POSITIONS;

/// The base where none is given, in HF and in GGUF.
const DEFAULT_THETA: f64 = 10_000.0;

/// The tensor of a GGUF file with a divisor for each frequency.
pub(super) const FACTORS: &str = "rope_freqs.weight";

/// RoPE of an HF configuration, and the longest sequence in tokens. `trained` is `max_position_embeddings`, which
/// stays the trained length for `linear` and `dynamic` and includes the stretch for `llama3`.
pub(super) fn from_hf(
    root: &Section<'_>,
    head_dim: usize,
    trained: usize,
) -> Result<(RopeSpec, usize), ModelError> {
    let older = root.section("rope_scaling")?.filter(|section| !section.is_empty());
    let section = match older {
        Some(section) => Some(section),
        None => root.section("rope_parameters")?,
    };
    refuse_partial(root, section.as_ref())?;
    let theta = hf_theta(root, section.as_ref())?;
    let Some(section) = section else {
        return Ok((RopeSpec { theta, scaling: RopeScaling::Default }, trained));
    };
    let (key, kind) = match section.str("rope_type")? {
        Some(kind) => ("rope_type", kind),
        None => ("type", section.str("type")?.unwrap_or("default")),
    };
    let (scaling, longest) = match kind {
        "default" => (RopeScaling::Default, trained),
        "linear" => {
            let factor = hf_factor(&section)?;
            (RopeScaling::Linear { factor }, stretched(&section, trained, factor)?)
        }
        "dynamic" => hf_dynamic(root, &section, head_dim, trained)?,
        "llama3" => (hf_llama3(root, &section, trained)?, trained),
        other => {
            let what = format!(
                "`{}` is not supported; supported: default, linear, dynamic, llama3",
                crate::file::clip(other)
            );
            return Err(section.error(key, what));
        }
    };
    Ok((RopeSpec { theta, scaling }, longest))
}

/// RoPE of a GGUF file, and the longest sequence in tokens. As in llama.cpp, `linear` is what a factor without a
/// type means, and the factors in the tensor `rope_freqs.weight` (how converters store `llama3`) come on top.
pub(super) fn from_gguf(
    metadata: &Metadata,
    source: &dyn WeightSource,
    head_dim: usize,
    context: usize,
) -> Result<(RopeSpec, usize), ModelError> {
    const THETA: &str = "llama.rope.freq_base";
    const TYPE: &str = "llama.rope.scaling.type";
    const FACTOR: &str = "llama.rope.scaling.factor";
    const ORIGINAL: &str = "llama.rope.scaling.original_context_length";
    let fail = |key: &str, what: String| ModelError::field(metadata.path(), key, what);
    let theta = metadata.f64(THETA)?.unwrap_or(DEFAULT_THETA);
    check_theta(theta).map_err(|what| fail(THETA, what))?;
    let factor = match metadata.str(TYPE)? {
        Some("none") => 1.0,
        Some("linear") => metadata.require_f64(FACTOR)?,
        None => metadata.f64(FACTOR)?.unwrap_or(1.0),
        Some(other) => {
            let other = crate::file::clip(other);
            return Err(fail(TYPE, format!("`{other}` is not supported; supported: none, linear")));
        }
    };
    check_factor(factor).map_err(|what| fail(FACTOR, what))?;
    let scaling = match gguf_factors(source, head_dim, factor)? {
        Some(factors) => RopeScaling::Factors { factors },
        None if factor == 1.0 => RopeScaling::Default,
        None => RopeScaling::Linear { factor },
    };
    // With the original length beside it, the context length is the stretched one already.
    let longest = match metadata.u64(ORIGINAL)? {
        Some(_) => context,
        None => stretch(context, factor).map_err(|what| fail(FACTOR, what))?,
    };
    Ok((RopeSpec { theta, scaling }, longest))
}

fn refuse_partial(root: &Section<'_>, section: Option<&Section<'_>>) -> Result<(), ModelError> {
    for section in section.into_iter().chain([root]) {
        if section.f64("partial_rotary_factor")?.is_some_and(|part| part != 1.0) {
            return Err(
                section.error("partial_rotary_factor", "must be 1: partial rotation is not supported")
            );
        }
    }
    Ok(())
}

fn hf_theta(root: &Section<'_>, section: Option<&Section<'_>>) -> Result<f64, ModelError> {
    for section in section.into_iter().chain([root]) {
        if let Some(theta) = section.f64("rope_theta")? {
            check_theta(theta).map_err(|what| section.error("rope_theta", what))?;
            return Ok(theta);
        }
    }
    Ok(DEFAULT_THETA)
}

fn hf_factor(section: &Section<'_>) -> Result<f64, ModelError> {
    let factor = section.require_f64("factor")?;
    check_factor(factor).map_err(|what| section.error("factor", what))?;
    Ok(factor)
}

/// The base starts to grow at `max_position_embeddings`: transformers ignores
/// `original_max_position_embeddings` for this kind. The exponent is d / (d - 2).
fn hf_dynamic(
    root: &Section<'_>,
    section: &Section<'_>,
    head_dim: usize,
    trained: usize,
) -> Result<(RopeScaling, usize), ModelError> {
    if head_dim <= 2 {
        return Err(root.error("head_dim", "must be at least 4 for the rope type `dynamic`"));
    }
    let factor = hf_factor(section)?;
    let longest = stretched(section, trained, factor)?;
    Ok((RopeScaling::Dynamic { factor, original_max: trained }, longest))
}

/// `original_max_position_embeddings` beside `rope_scaling` wins over the one inside, and the trained length stands
/// in for both, as in transformers.
fn hf_llama3(root: &Section<'_>, section: &Section<'_>, trained: usize) -> Result<RopeScaling, ModelError> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let low_freq_factor = section.require_f64("low_freq_factor")?;
    let high_freq_factor = section.require_f64("high_freq_factor")?;
    if low_freq_factor <= 0.0 {
        return Err(section.error("low_freq_factor", format!("must be above 0, but is {low_freq_factor}")));
    }
    if high_freq_factor <= low_freq_factor {
        let what = format!("must be above low_freq_factor ({low_freq_factor}), but is {high_freq_factor}");
        return Err(section.error("high_freq_factor", what));
    }
    let inside = section.usize(ORIGINAL, 1..=MAX_POSITIONS)?;
    let original_max = root.usize(ORIGINAL, 1..=MAX_POSITIONS)?.or(inside).unwrap_or(trained);
    Ok(RopeScaling::Llama3 { factor: hf_factor(section)?, low_freq_factor, high_freq_factor, original_max })
}

fn stretched(section: &Section<'_>, trained: usize, factor: f64) -> Result<usize, ModelError> {
    stretch(trained, factor).map_err(|what| section.error("factor", what))
}

/// `trained * factor`, rounded down to whole tokens.
fn stretch(trained: usize, factor: f64) -> Result<usize, String> {
    let longest = trained as f64 * factor;
    if longest > MAX_POSITIONS as f64 {
        return Err(format!(
            "{factor} makes {trained} positions more than {MAX_POSITIONS}; it must be smaller"
        ));
    }
    Ok(longest as usize)
}

fn check_factor(factor: f64) -> Result<(), String> {
    if factor.is_finite() && factor >= 1.0 {
        return Ok(());
    }
    Err(format!("must be a finite number of at least 1, but is {factor}"))
}

/// Below 1 the wavelengths would shrink with the dimension, and the angles soon leave f32.
fn check_theta(theta: f64) -> Result<(), String> {
    if theta.is_finite() && theta >= 1.0 {
        return Ok(());
    }
    Err(format!("must be a finite number of at least 1, but is {theta}"))
}

/// The factors stored in the file times `scale`, if the file has any.
fn gguf_factors(
    source: &dyn WeightSource,
    head_dim: usize,
    scale: f64,
) -> Result<Option<Vec<f32>>, ModelError> {
    let fail = |what: String| ModelError::tensor(source.path(FACTORS), FACTORS, what);
    let Some(info) = source.info(FACTORS) else { return Ok(None) };
    let expected = [head_dim / 2];
    if info.shape != expected {
        return Err(fail(format!("has shape {:?}, but half of head_dim asks for {expected:?}", info.shape)));
    }
    let mut factors = vec![0.0; head_dim / 2];
    source.read_f32(FACTORS, 0, &mut factors)?;
    for (index, factor) in factors.iter_mut().enumerate() {
        let scaled = (f64::from(*factor) * scale) as f32;
        if !(scaled.is_finite() && scaled > 0.0) {
            return Err(fail(format!("element {index} must be above 0 and finite, but is {factor}")));
        }
        *factor = scaled;
    }
    Ok(Some(factors))
}
