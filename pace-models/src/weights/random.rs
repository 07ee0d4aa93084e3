//! [`RandomSource`]: a checkpoint made of a seed, for tests and benches that must not download anything.
//!
//! A number depends on the seed, its tensor's name and its index only, so that any range gives the same numbers
//! on any thread. Four numbers share one 64-bit hash of a counter (the finaliser of SplitMix64; Steele, Lea,
//! Flood, "Fast splittable pseudorandom number generators", 2014); each is uniform, and cut to bf16.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use pace_kernels::Activation;

use super::{Naming, TensorInfo, WeightSource};
use crate::ModelError;
use crate::spec::{DecoderSpec, RopeScaling, RopeSpec};

/// The names that [`random_spec`] knows.
pub const RANDOM_MODELS: &[&str] = &["tiny", "small", "smollm2-135m", "llama-1b", "llama-8b"];

/// The shape of a random model: of Llama 3.2 1B, Llama 3.1 8B, SmolLM2 135M, or one for tests: `tiny`, whose
/// dimensions are no multiples of 16, and `small`, which every backend computes and whose context is long.
///
/// # Errors
/// [`ModelError::UnknownRandomModel`]: `name` is not in [`RANDOM_MODELS`].
pub fn random_spec(name: &str) -> Result<DecoderSpec, ModelError> {
    match name {
        "tiny" => Ok(tiny()),
        "small" => Ok(small()),
        "smollm2-135m" => Ok(smollm2_135m()),
        "llama-1b" => Ok(llama_1b()),
        "llama-8b" => Ok(llama_8b()),
        _ => Err(ModelError::UnknownRandomModel { found: name.to_owned(), known: RANDOM_MODELS.join(", ") }),
    }
}

/// Random weights in HF naming for a decoder of the Llama family, every one a bf16 value.
///
/// Projections keep the size of their input, norms are near 1, biases are small, and logits spread by about 3.
#[derive(Debug)]
pub struct RandomSource {
    /// Stands where other sources have a file.
    path: PathBuf,
    tensors: Vec<TensorInfo>,
    /// Parallel to `tensors`.
    draws: Vec<Draw>,
    by_name: HashMap<String, usize>,
}

impl RandomSource {
    /// The checkpoint of `seed` for `spec`. Takes no memory for weights: they are made when they are read.
    pub fn new(spec: &DecoderSpec, seed: u64) -> Self {
        let (mut tensors, mut draws, mut by_name) = (Vec::new(), Vec::new(), HashMap::new());
        for (name, shape, role) in checkpoint(spec) {
            by_name.insert(name.clone(), tensors.len());
            draws.push(Draw::new(seed, &name, &shape, role));
            tensors.push(TensorInfo { name, shape, format: "BF16".to_owned() });
        }
        Self { path: PathBuf::from(format!("random weights of seed {seed}")), tensors, draws, by_name }
    }
}

impl WeightSource for RandomSource {
    fn naming(&self) -> Naming {
        Naming::Hf
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&at| &self.tensors[at])
    }

    fn path(&self, _name: &str) -> &Path {
        &self.path
    }

    fn read_f32(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), ModelError> {
        let wrong = |what: String| ModelError::tensor(&self.path, name, what);
        let Some(&at) = self.by_name.get(name) else {
            return Err(wrong("the model has no such tensor".to_owned()));
        };
        let shape = &self.tensors[at].shape;
        if start.checked_add(out.len()).is_none_or(|end| end > shape.iter().product()) {
            return Err(wrong(format!("{} elements from {start} on leave its shape {shape:?}", out.len())));
        }
        self.draws[at].fill(start, out);
        Ok(())
    }
}

/// What a tensor is for, which decides how its numbers are spread.
#[derive(Clone, Copy)]
enum Role {
    /// `[out, in]`.
    Projection,
    /// `[vocab, hidden]`: embedding and LM head.
    Vocabulary,
    Norm,
    Bias,
}

/// The uniform distribution of one tensor.
#[derive(Debug)]
struct Draw {
    key: u64,
    mean: f32,
    /// Times a whole number in -65535..=65535.
    step: f32,
}

/// Numbers made at a time.
const BLOCK: usize = 256;

impl Draw {
    fn new(seed: u64, name: &str, shape: &[usize], role: Role) -> Self {
        let width = shape.last().copied().unwrap_or(1) as f64;
        let (mean, deviation) = match role {
            Role::Projection => (0.0, 1.0 / width.sqrt()),
            // The final norm gives the hidden state elements of size 1.
            Role::Vocabulary => (0.0, 3.0 / width.sqrt()),
            Role::Norm => (1.0, 0.05),
            Role::Bias => (0.0, 0.05),
        };
        // FNV-1a of the name, on top of the mixed seed.
        let key =
            name.bytes().fold(mix(seed), |key, byte| (key ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        Self { key, mean, step: (deviation * 3f64.sqrt() / 65535.0) as f32 }
    }

    fn fill(&self, start: usize, out: &mut [f32]) {
        let mut at = start;
        let mut rest = out;
        while !rest.is_empty() {
            let skip = at % BLOCK;
            let n = rest.len().min(BLOCK - skip);
            let (part, later) = rest.split_at_mut(n);
            part.copy_from_slice(&self.block(at / BLOCK)[skip..skip + n]);
            at += n;
            rest = later;
        }
    }

    /// The numbers `BLOCK * index ..`.
    fn block(&self, index: usize) -> [f32; BLOCK] {
        let first = (index * (BLOCK / 4)) as u64;
        let words: [u64; BLOCK / 4] =
            std::array::from_fn(|i| mix(self.key.wrapping_add((first + i as u64).wrapping_mul(GOLDEN))));
        let draws: [u16; BLOCK] = bytemuck::cast(words);
        draws.map(|draw| {
            let value = self.mean + self.step * (2 * i32::from(draw) - 65535) as f32;
            f32::from_bits(value.to_bits() & 0xffff_0000)
        })
    }
}

/// 2^64 divided by the golden ratio: SplitMix64's counter step.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Name, shape and role of every tensor.
fn checkpoint(spec: &DecoderSpec) -> Vec<(String, Vec<usize>, Role)> {
    let vocabulary = vec![spec.vocab_size, spec.hidden];
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vocabulary.clone(), Role::Vocabulary)];
    for layer in 0..spec.n_layers {
        push_layer(&mut tensors, spec, &format!("model.layers.{layer}"));
    }
    tensors.push(("model.norm.weight".to_owned(), vec![spec.hidden], Role::Norm));
    if !spec.tied_embeddings {
        tensors.push(("lm_head.weight".to_owned(), vocabulary, Role::Vocabulary));
    }
    tensors
}

fn push_layer(tensors: &mut Vec<(String, Vec<usize>, Role)>, spec: &DecoderSpec, prefix: &str) {
    let (hidden, ffn) = (spec.hidden, spec.ffn);
    let (q, kv) = (spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim);
    let projections = [
        ("self_attn.q_proj", q, hidden, spec.qkv_bias),
        ("self_attn.k_proj", kv, hidden, spec.qkv_bias),
        ("self_attn.v_proj", kv, hidden, spec.qkv_bias),
        ("self_attn.o_proj", hidden, q, spec.out_bias),
        ("mlp.gate_proj", ffn, hidden, spec.mlp_bias),
        ("mlp.up_proj", ffn, hidden, spec.mlp_bias),
        ("mlp.down_proj", hidden, ffn, spec.mlp_bias),
    ];
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        tensors.push((format!("{prefix}.{norm}.weight"), vec![hidden], Role::Norm));
    }
    for (name, n_out, n_in, bias) in projections {
        tensors.push((format!("{prefix}.{name}.weight"), vec![n_out, n_in], Role::Projection));
        if bias {
            tensors.push((format!("{prefix}.{name}.bias"), vec![n_out], Role::Bias));
        }
    }
}

fn tiny() -> DecoderSpec {
    DecoderSpec {
        vocab_size: 259,
        hidden: 72,
        n_layers: 3,
        n_heads: 6,
        n_kv_heads: 2,
        head_dim: 12,
        ffn: 200,
        max_positions: 512,
        norm_eps: 1e-5,
        activation: Activation::Silu,
        qkv_bias: false,
        out_bias: false,
        mlp_bias: false,
        tied_embeddings: true,
        rope: RopeSpec { theta: 1e4, scaling: RopeScaling::Default },
    }
}

fn small() -> DecoderSpec {
    DecoderSpec {
        vocab_size: 1024,
        hidden: 128,
        n_heads: 4,
        head_dim: 32,
        ffn: 384,
        max_positions: 8192,
        ..tiny()
    }
}

fn smollm2_135m() -> DecoderSpec {
    DecoderSpec {
        vocab_size: 49_152,
        hidden: 576,
        n_layers: 30,
        n_heads: 9,
        n_kv_heads: 3,
        head_dim: 64,
        ffn: 1536,
        max_positions: 8192,
        rope: RopeSpec { theta: 1e5, scaling: RopeScaling::Default },
        ..tiny()
    }
}

fn llama_1b() -> DecoderSpec {
    DecoderSpec {
        vocab_size: 128_256,
        hidden: 2048,
        n_layers: 16,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 64,
        ffn: 8192,
        max_positions: 131_072,
        rope: llama3_rope(32.0),
        ..tiny()
    }
}

fn llama_8b() -> DecoderSpec {
    DecoderSpec {
        hidden: 4096,
        n_layers: 32,
        head_dim: 128,
        ffn: 14_336,
        tied_embeddings: false,
        rope: llama3_rope(8.0),
        ..llama_1b()
    }
}

fn llama3_rope(factor: f64) -> RopeSpec {
    let scaling =
        RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max: 8192 };
    RopeSpec { theta: 5e5, scaling }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn read(source: &RandomSource, name: &str, start: usize, len: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; len];
        source.read_f32(name, start, &mut out).unwrap();
        out
    }

    fn elements(info: &TensorInfo) -> usize {
        info.shape.iter().product()
    }

    #[test]
    fn numbers_depend_on_seed_name_and_index_only() {
        let spec = tiny();
        let (source, again, other) =
            (RandomSource::new(&spec, 7), RandomSource::new(&spec, 7), RandomSource::new(&spec, 8));
        for info in source.tensors() {
            let all = read(&source, &info.name, 0, elements(info));
            assert_eq!(all, read(&again, &info.name, 0, elements(info)), "{}", info.name);
            assert_ne!(all, read(&other, &info.name, 0, elements(info)), "{}", info.name);
        }
        let (q, k) = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight");
        assert_ne!(read(&source, q, 0, 720), read(&source, k, 0, 720));
    }

    #[test]
    fn any_range_gives_the_same_numbers() {
        let source = RandomSource::new(&tiny(), 1);
        let name = "model.embed_tokens.weight";
        let all = read(&source, name, 0, 259 * 72);
        for (start, len) in
            [(0, 1), (1, 3), (3, 255), (255, 2), (256, 256), (250, 1000), (72 * 258, 72), (5, 0)]
        {
            assert_eq!(read(&source, name, start, len), all[start..start + len], "{start} {len}");
        }
    }

    #[test]
    fn numbers_are_bf16_and_spread_as_described() {
        let source = RandomSource::new(&DecoderSpec { qkv_bias: true, ..tiny() }, 3);
        for info in source.tensors() {
            let numbers = read(&source, &info.name, 0, elements(info));
            assert!(
                numbers.iter().all(|&x| x.is_finite() && bf16::from_f32(x).to_f32() == x),
                "{}",
                info.name
            );
            let n = numbers.len() as f32;
            let mean = numbers.iter().sum::<f32>() / n;
            let deviation = (numbers.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt();
            let width = info.shape[info.shape.len() - 1] as f32;
            let (want_mean, want) = match info.name.as_str() {
                "model.embed_tokens.weight" => (0.0, 3.0 / width.sqrt()),
                name if name.contains("norm") => (1.0, 0.05),
                name if name.ends_with("bias") => (0.0, 0.05),
                _ => (0.0, 1.0 / width.sqrt()),
            };
            assert!((mean - want_mean).abs() < 5.0 * want / n.sqrt() + 0.01, "{}: mean {mean}", info.name);
            assert!((deviation / want - 1.0).abs() < 3.0 / n.sqrt() + 0.01, "{}: {deviation}", info.name);
        }
    }

    #[test]
    fn a_checkpoint_has_the_names_and_shapes_of_the_family() {
        let spec = DecoderSpec {
            qkv_bias: true,
            out_bias: true,
            mlp_bias: true,
            tied_embeddings: false,
            head_dim: 20,
            ..tiny()
        };
        let source = RandomSource::new(&spec, 0);
        let shape = |name: &str| source.info(name).map(|info| info.shape.clone());
        assert_eq!(source.naming(), Naming::Hf);
        assert_eq!(source.tensors().len(), 3 + 3 * (2 + 7 + 7));
        assert_eq!(shape("model.layers.2.self_attn.q_proj.weight"), Some(vec![120, 72]));
        assert_eq!(shape("model.layers.2.self_attn.v_proj.bias"), Some(vec![40]));
        assert_eq!(shape("model.layers.0.self_attn.o_proj.weight"), Some(vec![72, 120]));
        assert_eq!(shape("model.layers.0.self_attn.o_proj.bias"), Some(vec![72]));
        assert_eq!(shape("model.layers.1.mlp.gate_proj.bias"), Some(vec![200]));
        assert_eq!(shape("model.layers.1.mlp.down_proj.weight"), Some(vec![72, 200]));
        assert_eq!(shape("model.layers.1.post_attention_layernorm.weight"), Some(vec![72]));
        assert_eq!(shape("lm_head.weight"), Some(vec![259, 72]));
        assert_eq!(shape("model.layers.3.mlp.down_proj.weight"), None);
        assert!(RandomSource::new(&tiny(), 0).info("lm_head.weight").is_none());
        assert!(RandomSource::new(&tiny(), 0).tensors().iter().all(|info| !info.name.ends_with("bias")));
    }

    #[test]
    fn every_listed_model_has_a_consistent_shape() {
        for name in RANDOM_MODELS {
            let spec = random_spec(name).unwrap();
            assert_eq!(spec.n_heads % spec.n_kv_heads, 0, "{name}");
            assert_eq!(spec.head_dim % 2, 0, "{name}");
        }
        let parameters = |name: &str| -> usize {
            RandomSource::new(&random_spec(name).unwrap(), 0).tensors().iter().map(elements).sum()
        };
        assert_eq!(parameters("smollm2-135m"), 134_515_008);
        assert_eq!(parameters("llama-1b"), 1_235_814_400);
        assert_eq!(parameters("llama-8b"), 8_030_261_248);
    }

    #[test]
    fn what_does_not_exist_is_an_error_that_says_what_does() {
        let message = random_spec("llama-9b").unwrap_err().to_string();
        assert!(message.contains("llama-9b") && message.contains("smollm2-135m"), "{message}");
        let source = RandomSource::new(&tiny(), 5);
        let unknown = source.read_f32("lm_head.weight", 0, &mut [0.0]).unwrap_err().to_string();
        assert!(unknown.contains("lm_head.weight") && unknown.contains("seed 5"), "{unknown}");
        for start in [72, usize::MAX] {
            let range = source.read_f32("model.norm.weight", start, &mut [0.0]).unwrap_err().to_string();
            assert!(range.contains("model.norm.weight") && range.contains("[72]"), "{range}");
        }
    }
}
