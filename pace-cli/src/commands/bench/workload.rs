//! [`Workload`]: what one test computes, and how much work that is at least.

use std::fmt;

use anyhow::Result;
use pace_kernels::{Unit, WeightFormat};
use pace_models::{DecoderSpec, LoadOptions, ModelFormats};
use pace_runtime::{Limits, ModelFiles};

use crate::args::BenchArgs;
use crate::exit::Usage;

/// A test: `batch` sequences that each hold `depth` tokens, read `n_prompt` more and then make `n_gen` new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) n_prompt: usize,
    pub(super) n_gen: usize,
    pub(super) depth: usize,
    pub(super) batch: usize,
}

impl Workload {
    /// Every test that the flags ask for: prompts, answers, then both together.
    ///
    /// # Errors
    /// The flags ask for none.
    pub(super) fn list(args: &BenchArgs) -> Result<Vec<Self>> {
        let prompts = args.n_prompt.iter().map(|&n| (n, 0));
        let answers = args.n_gen.iter().map(|&n| (0, n));
        let lengths = prompts.chain(answers).filter(|&(p, n)| p + n > 0).chain(args.pg.iter().copied());
        let mut all = Vec::new();
        for (n_prompt, n_gen) in lengths {
            for &depth in &args.n_depth {
                all.extend(args.batch.iter().map(|&b| Self { n_prompt, n_gen, depth, batch: b as usize }));
            }
        }
        if all.is_empty() {
            return Err(Usage("nothing to measure: both -p and -n are 0".to_owned()).into());
        }
        Ok(all)
    }

    /// # Errors
    /// A sequence does not fit a context of `max` tokens.
    pub(super) fn check(&self, max: usize) -> Result<()> {
        if self.n_prompt.saturating_add(self.n_gen).saturating_add(self.depth) < max {
            return Ok(());
        }
        Err(Usage(format!("{}: the model's context holds {max} tokens", self.flags())).into())
    }

    /// Room that a sequence needs, in tokens.
    pub(super) const fn room(&self) -> usize {
        self.depth + self.n_prompt + self.n_gen + 1
    }

    /// The tokens that count, of one engine.
    pub(super) const fn tokens(&self) -> usize {
        self.batch * (self.n_prompt + self.n_gen)
    }

    /// The flags that ask for this test alone.
    fn flags(&self) -> String {
        let Self { n_prompt, n_gen, depth, .. } = *self;
        let length = match (n_prompt, n_gen) {
            (n, 0) => format!("-p {n}"),
            (0, n) => format!("-n {n}"),
            (p, n) => format!("-pg {p},{n}"),
        };
        if depth == 0 { length } else { format!("{length} -d {depth}") }
    }
}

/// `pp512`, `tg128@d2048`, `pp512+tg128`.
impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.n_prompt, self.n_gen) {
            (p, 0) => write!(f, "pp{p}")?,
            (0, n) => write!(f, "tg{n}")?,
            (p, n) => write!(f, "pp{p}+tg{n}")?,
        }
        if self.depth == 0 { Ok(()) } else { write!(f, "@d{}", self.depth) }
    }
}

/// The least that a model needs to compute and to read for a workload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    prefill: Part,
    decode: Part,
    unit: Unit,
}

/// What some forwards compute and read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Part {
    /// Of linear layers and attention; a multiply-add counts as two.
    flops: f64,
    /// Weights once for each forward, the cached keys and values that its tokens see once for each sequence.
    bytes: f64,
}

impl Work {
    /// `chunk` prompt tokens at most are in one forward.
    pub(super) fn new(workload: &Workload, files: &ModelFiles, load: &LoadOptions, chunk: usize) -> Self {
        Self::of(workload, files.spec(), &files.packed_formats(load), load, chunk)
    }

    fn of(
        workload: &Workload,
        spec: &DecoderSpec,
        formats: &ModelFormats,
        load: &LoadOptions,
        chunk: usize,
    ) -> Self {
        let model = Costs::new(spec, formats, load);
        let Workload { n_prompt, n_gen, depth, batch } = *workload;
        let prefill = model.prefill(batch, depth, n_prompt, chunk);
        let decode = model.decode(batch, depth + n_prompt, n_gen);
        Self {
            prefill,
            decode,
            unit: unit(formats.shares(spec).first().map_or(load.weights, |share| share.0)),
        }
    }

    pub(super) fn flops(&self) -> f64 {
        self.prefill.flops + self.decode.flops
    }

    pub(super) fn bytes(&self) -> f64 {
        self.prefill.bytes + self.decode.bytes
    }

    /// The least seconds that this can take: prefill is bound by the peak of the weights' type, decode by memory.
    pub(super) fn least_seconds(&self, limits: &Limits) -> f64 {
        self.prefill.flops / limits.flops(self.unit) + self.decode.bytes / limits.bytes
    }
}

/// What tokens cost in a model.
struct Costs {
    /// Weights, and their bytes, of the decoder's layers and of the LM head.
    layers: (f64, f64),
    head: (f64, f64),
    /// Operations for one token to see one.
    attention: f64,
    /// Bytes of keys and values of one token.
    kv: f64,
}

impl Costs {
    fn new(spec: &DecoderSpec, formats: &ModelFormats, load: &LoadOptions) -> Self {
        let head = spec.vocab_size * spec.hidden;
        let layers = spec.parameters() - if spec.tied_embeddings { head } else { 2 * head };
        let (layer_bytes, head_bytes) = formats.forward_bytes(spec);
        Self {
            layers: (layers as f64, layer_bytes as f64),
            head: (head as f64, head_bytes as f64),
            attention: (4 * spec.n_layers * spec.n_heads * spec.head_dim) as f64,
            kv: spec.kv_bytes_per_token(load.kv) as f64,
        }
    }

    /// `tokens` of a prompt after `first` others, in each of `batch` sequences; only the last one needs logits.
    fn prefill(&self, batch: usize, first: usize, tokens: usize, chunk: usize) -> Part {
        if tokens == 0 {
            return Part::default();
        }
        let sequences = batch as f64;
        let linear = 2.0 * (tokens as f64 * self.layers.0 + self.head.0);
        let forwards = (batch * tokens).div_ceil(chunk) as f64;
        let seen: usize = (0..tokens.div_ceil(chunk)).map(|i| first + tokens.min((i + 1) * chunk)).sum();
        Part {
            flops: sequences * (linear + self.attention * visible(first, tokens)),
            bytes: forwards * self.layers.1
                + sequences.min(forwards) * self.head.1
                + sequences * seen as f64 * self.kv,
        }
    }

    /// `tokens` forwards, each of one token of every sequence.
    fn decode(&self, batch: usize, first: usize, tokens: usize) -> Part {
        let (sequences, forwards, seen) = (batch as f64, tokens as f64, visible(first, tokens));
        let linear = 2.0 * forwards * (self.layers.0 + self.head.0);
        Part {
            flops: sequences * (linear + self.attention * seen),
            bytes: forwards * (self.layers.1 + self.head.1) + sequences * seen * self.kv,
        }
    }
}

/// How many tokens `tokens` tokens after `first` others see in all, each itself included.
fn visible(first: usize, tokens: usize) -> f64 {
    let (first, tokens) = (first as f64, tokens as f64);
    tokens * first + tokens * (tokens + 1.0) / 2.0
}

/// The unit that multiplies weights of `format` the fastest.
const fn unit(format: WeightFormat) -> Unit {
    match format {
        WeightFormat::F32 | WeightFormat::F16 => Unit::F32,
        WeightFormat::Bf16 => Unit::Bf16,
        _ => Unit::Int8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pace_kernels::DType;
    use pace_models::Architecture;
    use pace_models::weights::random::{RandomSource, random_spec};

    const NONE: Workload = Workload { n_prompt: 0, n_gen: 0, depth: 0, batch: 1 };

    #[test]
    fn names_are_those_of_llama_bench() {
        let name = |n_prompt, n_gen, depth| Workload { n_prompt, n_gen, depth, batch: 8 }.to_string();
        assert_eq!((name(512, 0, 0), name(0, 128, 2048)), ("pp512".to_owned(), "tg128@d2048".to_owned()));
        assert_eq!(name(512, 128, 64), "pp512+tg128@d64");
    }

    #[test]
    fn what_exceeds_the_context_is_told_by_its_flags() {
        let refused = |workload: Workload| workload.check(512).unwrap_err().to_string();
        assert!(Workload { n_gen: 511, ..NONE }.check(512).is_ok());
        assert!(refused(Workload { n_gen: 512, ..NONE }).starts_with("-n 512:"));
        assert!(
            refused(Workload { n_prompt: 400, n_gen: 100, depth: 12, ..NONE })
                .starts_with("-pg 400,100 -d 12:")
        );
        assert!(refused(Workload { n_prompt: usize::MAX, depth: usize::MAX, ..NONE }).contains("512 tokens"));
    }

    #[test]
    fn a_llama_of_one_billion_reads_and_computes_what_its_shape_says() {
        let (spec, load) =
            (random_spec("llama-1b").unwrap(), LoadOptions::new(WeightFormat::Bf16, DType::Bf16));
        let source = RandomSource::new(&spec, 1);
        let formats = ModelFormats::new(&source, Architecture::Llama, &spec, &load);
        let work = |workload: &Workload| Work::of(workload, &spec, &formats, &load, 512);
        let close = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-3, "{got:e} is not {want:e}");
        let (layers, head, kv) = (973.1e6, 262.7e6, 32_768.0);
        let decode = work(&Workload { n_gen: 2, depth: 100, ..NONE }).decode;
        close(decode.bytes, 2.0 * 2.0 * (layers + head) + (101.0 + 102.0) * kv);
        close(decode.flops, 2.0 * 2.0 * (layers + head) + 4.0 * 16.0 * 2048.0 * 203.0);
        let batch = work(&Workload { n_gen: 2, depth: 100, batch: 8, ..NONE });
        assert_eq!(batch.flops(), 8.0 * decode.flops);
        close(batch.bytes(), 2.0 * 2.0 * (layers + head) + 8.0 * (101.0 + 102.0) * kv);
        let prefill = work(&Workload { n_prompt: 1024, ..NONE }).prefill;
        close(prefill.flops, 2.0 * (1024.0 * layers + head) + 4.0 * 16.0 * 2048.0 * 1024.0 * 1025.0 / 2.0);
        close(prefill.bytes, 2.0 * (2.0 * layers + head) + (512.0 + 1024.0) * kv);
    }

    #[test]
    fn prefill_is_held_against_the_peak_and_decode_against_memory() {
        let part = |flops, bytes| Part { flops, bytes };
        let work = Work { prefill: part(40.0, 1.0), decode: part(1.0, 30.0), unit: Unit::Bf16 };
        let limits = Limits { f32_flops: 10.0, bf16_flops: 20.0, int8_ops: 40.0, bytes: 5.0 };
        assert_eq!(work.least_seconds(&limits), 2.0 + 6.0);
    }
}
