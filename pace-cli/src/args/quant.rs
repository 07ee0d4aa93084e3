//! Flags that make integers of weights.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use pace_kernels::{ActQuant, WeightFormat};
use pace_models::{Importance, LoadOptions};
use pace_runtime::RuntimeError;

use crate::exit::Usage;

/// How weights become integers.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct QuantArgs {
    /// Quantise weights while they are loaded: int8 (inputs rotated in blocks of 64, a scale for each; int8r: one scale an
    /// output), int8:GROUP, int4, int4:GROUP, int8m:GROUP and int4m:GROUP (with minima), mxfp4, or none. A group of inputs has a
    /// scale of its own: 32, 64 or 128, of int8 also 16 or 256; int4 is int4:32 [default: as the files have them].
    #[arg(long, value_name = "FORMAT", value_parser = quant_format)]
    pub(crate) quant: Option<Quant>,
    /// The same for embedding and LM head [default: as --quant; int8 where that has 4 bits].
    #[arg(long, value_name = "FORMAT", value_parser = quant_format)]
    pub(crate) quant_lm_head: Option<Quant>,
    /// How weights are rounded by --quant.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) quant_rounding: RoundingChoice,
    /// How much each input counts when weights become int4, as `pace-cli imatrix` collects it [default: all the same].
    #[arg(long, value_name = "FILE")]
    pub(crate) imatrix: Option<PathBuf>,
    /// Scales of activations that multiply integer weights: for each group of 64 inputs (32 for weights of 4 bits), or one a
    /// token, which is faster with --quant int8 (weights have one an output then, int8r) and loses more.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) act_quant: ActQuantChoice,
}

/// A value of `--quant`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quant {
    /// As floating-point numbers.
    None,
    /// In the format of 8 bits that suits the activations' scales: rotated, with a scale for each block of inputs, or for each
    /// output where activations have one a token.
    Int8,
    /// In a format of integers.
    Format(WeightFormat),
}

/// `--quant-rounding`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoundingChoice {
    /// Scales of the least squared error among some candidates.
    #[default]
    Search,
    /// Scales from the largest weight of a group.
    Nearest,
}

/// `--act-quant`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ActQuantChoice {
    #[default]
    Groups,
    Token,
}

impl QuantArgs {
    /// Puts what the flags say into `load`. `as_stored`: without `--quant`, matrices of integers stay what they are.
    ///
    /// # Errors
    /// The file of `--imatrix` cannot be read, or would not be used.
    pub(crate) fn apply(&self, load: &mut LoadOptions, as_stored: bool) -> Result<()> {
        let float = load.weights;
        let format = |quant| match quant {
            Quant::None => float,
            Quant::Int8 if self.act_quant == ActQuantChoice::Token => WeightFormat::Int8Rotated,
            Quant::Int8 => WeightFormat::Int8RotatedGroup,
            Quant::Format(format) => format,
        };
        load.own_formats = as_stored && self.quant.is_none();
        load.weights = self.quant.map_or(float, format);
        let head = load.weights.is_4_bit().then(|| format(Quant::Int8));
        load.lm_head = self.quant_lm_head.map(format).or(head);
        load.search_scales = self.quant_rounding == RoundingChoice::Search;
        load.act_quant = match self.act_quant {
            ActQuantChoice::Groups => ActQuant::Groups,
            ActQuantChoice::Token => ActQuant::Token,
        };
        load.importance = self.importance(load)?;
        Ok(())
    }

    /// The file of `--imatrix`, for what `load` is going to quantise.
    fn importance(&self, load: &LoadOptions) -> Result<Option<Arc<Importance>>> {
        let Some(path) = &self.imatrix else { return Ok(None) };
        let unused =
            |what: &str| Err(Usage(format!("--imatrix {} has no use: {what}", path.display())).into());
        if !load.search_scales {
            return unused("--quant-rounding nearest searches for nothing");
        }
        let searched = |format: WeightFormat| format.is_4_bit() && format != WeightFormat::Mxfp4;
        if !searched(load.weights) && !load.lm_head.is_some_and(searched) {
            return unused("only scales of int4 and int4m are searched for, so give --quant int4 or int4m");
        }
        Ok(Some(Arc::new(Importance::open(path).map_err(RuntimeError::from)?)))
    }
}

/// A format of integers by its name; int4 alone has groups of 32.
pub(super) fn quant_format(name: &str) -> Result<Quant, String> {
    match name.to_ascii_lowercase().as_str() {
        "none" => Ok(Quant::None),
        "int8" => Ok(Quant::Int8),
        "int4" => Ok(Quant::Format(WeightFormat::Int4(32))),
        "int4m" => Ok(Quant::Format(WeightFormat::Int4Min(32))),
        lower => match lower.parse::<WeightFormat>() {
            Ok(format) if format.is_quantised() => Ok(Quant::Format(format)),
            _ => Err("right are none, int8, int8r, int8r:64, int8:G (G 16, 32, 64, 128 or 256), int8m:G, int4, int4:G (G 32, 64 or 128), \
                      int4m:G and mxfp4"
                .to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_names_and_others_are_refused() {
        let format = |name| match quant_format(name) {
            Ok(Quant::Format(format)) => Some(format),
            _ => None,
        };
        assert_eq!(quant_format("none"), Ok(Quant::None));
        assert_eq!(format("int4"), Some(WeightFormat::Int4(32)));
        assert_eq!(format("INT4:128"), Some(WeightFormat::Int4(128)));
        assert_eq!(quant_format("int8"), Ok(Quant::Int8));
        assert_eq!(format("int8r"), Some(WeightFormat::Int8Rotated));
        assert_eq!(format("int8r:64"), Some(WeightFormat::Int8RotatedGroup));
        assert_eq!(format("int8:64"), Some(WeightFormat::Int8Group(64)));
        for wrong in ["bf16", "int4:16", "int8:48", "int2", ""] {
            assert!(quant_format(wrong).unwrap_err().contains("int4:G"), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_asked_for_stays_as_it_is() {
        let load = |args: QuantArgs, as_stored| {
            let mut load = LoadOptions::new(WeightFormat::Bf16, pace_kernels::DType::Bf16);
            args.apply(&mut load, as_stored).unwrap();
            (load.weights, load.lm_head, load.own_formats)
        };
        assert_eq!(load(QuantArgs::default(), true), (WeightFormat::Bf16, None, true));
        assert_eq!(load(QuantArgs::default(), false), (WeightFormat::Bf16, None, false));
        let int4 = QuantArgs { quant: Some(Quant::Format(WeightFormat::Int4(64))), ..QuantArgs::default() };
        let head = Some(WeightFormat::Int8RotatedGroup);
        assert_eq!(load(int4.clone(), true), (WeightFormat::Int4(64), head, false));
        let none = QuantArgs { quant_lm_head: Some(Quant::None), ..int4 };
        assert_eq!(load(none, true), (WeightFormat::Int4(64), Some(WeightFormat::Bf16), false));
        let int8 = QuantArgs { quant: Some(Quant::Int8), ..QuantArgs::default() };
        assert_eq!(load(int8.clone(), true), (WeightFormat::Int8RotatedGroup, None, false));
        let token = QuantArgs { act_quant: ActQuantChoice::Token, ..int8 };
        assert_eq!(load(token, true), (WeightFormat::Int8Rotated, None, false));
    }
}
