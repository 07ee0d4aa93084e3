//! `compare`.

use clap::Args;

use super::engine::{KvChoice, operator_entry, operator_json};
use super::quant::{Quant, QuantArgs, quant_format};
use super::{EngineArgs, Format, OperatorArgs, ScoreTextArgs, WeightChoice};

/// How far the predictions of a model are from those of a reference.
///
/// Both read the same text, and their distributions of the next token are compared at each token: KL divergence, the most
/// likely token, the probability of the text's own token. Without --reference a model is compared with itself in f32.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli compare --file article.txt
  pace-cli compare --quant int4:64 --reference-dtype bf16 --file article.txt
  pace-cli compare -m model-q4_1.gguf --reference ./SmolLM2 --file book.txt --max-tokens 20000
  pace-cli compare --dtype f32 --kv-dtype bf16 --file article.txt --format json
  pace-cli compare -m random:tiny --tokens 1,2,3")]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pub(crate) text: ScoreTextArgs,
    /// Tokens of a window [default: 512, or the models' context if that is less]. The text is cut into windows that know
    /// nothing of each other; the first token of each is not compared.
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<usize>,
    /// Stop after so many tokens have been compared [default: the whole text].
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    #[command(flatten)]
    pub(crate) reference: ReferenceArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// What the reference is, and how it is computed; all other flags are for both.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Reference")]
pub(crate) struct ReferenceArgs {
    /// The model that is held to be right [default: as --model].
    #[arg(long, value_name = "MODEL")]
    reference: Option<String>,
    /// The reference's weights and activations.
    #[arg(long, value_enum, value_name = "DTYPE", default_value_t = WeightChoice::F32)]
    reference_dtype: WeightChoice,
    /// The reference's weights, as --quant takes them [default: as --reference-dtype says].
    #[arg(long, value_name = "FORMAT", value_parser = quant_format)]
    reference_quant: Option<Quant>,
    /// The reference's cached keys and values [default: as --reference-dtype].
    #[arg(long, value_enum, value_name = "KV_DTYPE")]
    reference_kv_dtype: Option<KvChoice>,
    /// The reference's backends, as --op-config takes them.
    #[arg(long, value_name = "JSON", value_parser = operator_json)]
    reference_op_config: Option<String>,
    /// The backend of one of the reference's operators, as --op takes it.
    #[arg(long, value_name = "KEY=BACKEND", value_parser = operator_entry)]
    reference_op: Vec<(String, String)>,
}

impl CompareArgs {
    /// The flags of the reference's engine.
    pub(crate) fn reference_engine(&self) -> EngineArgs {
        let (own, both) = (self.reference.clone(), self.engine.clone());
        // Each field by its name: what is new has to be thought about.
        EngineArgs {
            model: own.reference.or(both.model),
            dtype: Some(own.reference_dtype),
            kv_dtype: own.reference_kv_dtype,
            operators: OperatorArgs { op_config: own.reference_op_config, op: own.reference_op },
            prefill_chunk: both.prefill_chunk,
            kv_memory: both.kv_memory,
            mmap: both.mmap,
            allow_nonfinite: both.allow_nonfinite,
            quant: QuantArgs { quant: own.reference_quant, ..QuantArgs::default() },
            kv: both.kv,
            platform: both.platform,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        compare: CompareArgs,
    }

    fn reference(args: &[&str]) -> EngineArgs {
        let args = [&["x", "--tokens", "1"], args].concat();
        Program::try_parse_from(args).unwrap().compare.reference_engine()
    }

    #[test]
    fn the_reference_is_the_model_in_f32_unless_told_otherwise() {
        let model = ["-m", "a", "--dtype", "bf16", "--kv-dtype", "bf16", "--op", "mlp=native", "--mmap"];
        let engine = reference(&model);
        assert_eq!((engine.model.as_deref(), engine.dtype), (Some("a"), Some(WeightChoice::F32)));
        assert!(engine.kv_dtype.is_none() && !engine.operators.is_given() && engine.mmap);
        let own = ["--reference", "b", "--reference-dtype", "bf16", "--reference-kv-dtype", "f32"];
        let engine = reference(&[&model[..], &own, &["--reference-op", "norm=native"]].concat());
        assert_eq!((engine.model.as_deref(), engine.dtype), (Some("b"), Some(WeightChoice::Bf16)));
        assert_eq!(engine.kv_dtype, Some(KvChoice::F32));
        assert_eq!(engine.operators.op, [("norm".to_owned(), "native".to_owned())]);
    }
}
