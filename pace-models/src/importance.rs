//! [`Importance`]: how much an error of each weight counts, by the input that it multiplies.
//!
//! What a product loses when its weights are rounded is the sum of each weight's error times its input. Where inputs do not
//! depend on each other, the mean square of that sum is the sum of squared errors, each times the mean square of its input.
//! So these are the weights of the error that [`Rounding::Search`](pace_kernels::Rounding::Search) makes small.
//!
//! They are kept in a safetensors file: for each product a tensor of F32 `[k]`, called `layers.3.qkv`, `layers.3.out`,
//! `layers.3.up`, `layers.3.down` or `lm_head`, and `__metadata__` with `format`, `version`, `tokens` and `model`. A file is
//! read as hostile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pace_ops::{InputMeans, Product};
use serde_json::json;

use crate::arch::{LayerRole, Role};
use crate::weights::WeightSource;
use crate::weights::safetensors::SafetensorsSource;
use crate::{DecoderSpec, ModelError};

/// `format` and `version` of a file's metadata.
const FORMAT: &str = "pace-imatrix";
const VERSION: &str = "1";
/// Most numbers that a file may hold: a model of 126 layers, 16 k hidden and 53 k intermediate dimensions has 13 million.
const MAX_NUMBERS: usize = 1 << 26;
/// No mean square comes near this: sums of its products with squares of weights would leave what f32 can hold.
const ABSURD: f32 = 1e30;
/// What is added to each importance, whose mean is 1: inputs that were 0 in the whole text may be others in the next one,
/// and f32 keeps every product.
const FLOOR: f32 = 1e-6;

/// The mean squares of the inputs of every matrix product of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    /// The file, for messages; empty for what was just collected.
    path: PathBuf,
    model: String,
    tokens: u64,
    /// By name.
    means: BTreeMap<String, Vec<f32>>,
}

impl Importance {
    /// What was seen of the inputs of a model's products.
    ///
    /// # Errors
    /// The inputs of a product are missing, or not finite.
    pub fn new(model: &str, spec: &DecoderSpec, inputs: Vec<InputMeans>) -> Result<Self, ModelError> {
        let mut inputs: BTreeMap<_, _> = inputs.into_iter().map(|i| ((i.layer, i.product), i)).collect();
        let (mut means, mut tokens) = (BTreeMap::new(), 0);
        for (layer, product, _) in products(spec) {
            let name = name(layer, product);
            let Some(seen) = inputs.remove(&(layer, product)).filter(|seen| seen.rows > 0) else {
                return Err(ModelError::Inputs {
                    name,
                    what: "were not seen; compute a token first".to_owned(),
                });
            };
            if let Some(what) = first_wrong(&seen.mean_squares) {
                return Err(ModelError::Inputs { name, what });
            }
            // Logits may be computed for some tokens alone.
            tokens = seen.rows.max(tokens);
            means.insert(name, seen.mean_squares);
        }
        Ok(Self { path: PathBuf::new(), model: model.to_owned(), tokens, means })
    }

    /// Reads a file that holds the bytes of [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    /// The file cannot be read or is malformed, it is something else or of another version, or a tensor has another type
    /// or shape than a vector of F32, or numbers that are no mean squares.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let source = SafetensorsSource::open_file(path)?;
        let field = |key: &str| {
            let missing =
                || ModelError::field(path, format!("__metadata__.{key}"), "is missing: no importance matrix");
            source.metadata(key).ok_or_else(missing)
        };
        for (key, right) in [("format", FORMAT), ("version", VERSION)] {
            let found = crate::file::clip(field(key)?);
            if found != right {
                let what = format!("is `{found}`; an importance matrix has `{right}`");
                return Err(ModelError::field(path, format!("__metadata__.{key}"), what));
            }
        }
        let tokens = field("tokens")?.parse().map_err(|_| {
            ModelError::field(path, "__metadata__.tokens", "must be a whole number, the tokens of the text")
        })?;
        let model = field("model")?.to_owned();
        let (mut means, mut numbers) = (BTreeMap::new(), 0usize);
        for info in source.tensors() {
            let fail = |what: String| ModelError::tensor(path, info.name.as_str(), what);
            let [k] = info.shape[..] else {
                return Err(fail(format!("has shape {:?}; a vector is needed", info.shape)));
            };
            numbers = numbers.saturating_add(k);
            if numbers > MAX_NUMBERS {
                return Err(fail(format!("and those before it hold more than {MAX_NUMBERS} numbers")));
            }
            if info.format != "F32" {
                return Err(fail(format!("has type {}; F32 is needed", info.format)));
            }
            let mut all = vec![0.0; k];
            source.read_any_f32(&info.name, 0, &mut all)?;
            if let Some(what) = first_wrong(&all) {
                return Err(fail(what));
            }
            means.insert(info.name.clone(), all);
        }
        source.check_unchanged()?;
        Ok(Self { path: path.to_path_buf(), model, tokens, means })
    }

    /// The file that [`open`](Self::open) reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (tokens, model) = (self.tokens.to_string(), &self.model);
        let metadata = json!({"format": FORMAT, "version": VERSION, "tokens": tokens, "model": model});
        let mut header = serde_json::Map::from_iter([("__metadata__".to_owned(), metadata)]);
        let mut data = Vec::new();
        for (name, means) in &self.means {
            let begin = data.len();
            data.extend(means.iter().flat_map(|x| x.to_le_bytes()));
            let entry = json!({"dtype": "F32", "shape": [means.len()], "data_offsets": [begin, data.len()]});
            header.insert(name.clone(), entry);
        }
        let mut header = serde_json::Value::from(header).to_string().into_bytes();
        // Numbers begin at a multiple of their size, so that a mapped file can be read in place.
        header.resize(header.len().next_multiple_of(8), b' ');
        [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
    }

    /// What the model was called.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Tokens that the means are over.
    pub const fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The mean squares, `[k]`, of every product by its name.
    pub fn means(&self) -> impl ExactSizeIterator<Item = (&str, &[f32])> {
        self.means.iter().map(|(name, means)| (name.as_str(), means.as_slice()))
    }

    /// Checks that there is a vector of the right length for each product of a model, and no other.
    pub(crate) fn check(&self, spec: &DecoderSpec) -> Result<(), ModelError> {
        let fail = |name: &str, what| Err(ModelError::tensor(&self.path, name, what));
        let wanted: BTreeMap<_, _> = products(spec).map(|(l, p, k)| (name(l, p), k)).collect();
        for (name, &k) in &wanted {
            match self.means.get(name) {
                None => return fail(name, format!("is missing; the model has {} layers", spec.n_layers)),
                Some(means) if means.len() != k => {
                    let what = format!("has {} numbers, the model's product has {k} inputs", means.len());
                    return fail(name, what);
                }
                Some(_) => {}
            }
        }
        match self.means.keys().find(|name| !wanted.contains_key(*name)) {
            None => Ok(()),
            Some(name) => {
                let what = format!("is no product of the model, which has {} layers", spec.n_layers);
                fail(name, what)
            }
        }
    }

    /// How much errors of the weights in `role` count by their input, `[k]`, about 1 on average and never 0; none for what
    /// is no matrix of a product. `tied`: whether the embedding is the LM head, too.
    pub(crate) fn of(&self, role: Role, tied: bool) -> Option<Vec<f32>> {
        let (layer, product) = match role {
            Role::LmHead => (None, Product::LmHead),
            Role::Embedding if tied => (None, Product::LmHead),
            Role::Embedding | Role::FinalNorm => return None,
            Role::Layer(layer, part) => match part {
                LayerRole::Q | LayerRole::K | LayerRole::V => (Some(layer), Product::Qkv),
                LayerRole::O => (Some(layer), Product::Out),
                LayerRole::Gate | LayerRole::Up => (Some(layer), Product::Up),
                LayerRole::Down => (Some(layer), Product::Down),
                _ => return None,
            },
        };
        let means = self.means.get(&name(layer, product))?;
        let mean = means.iter().copied().map(f64::from).sum::<f64>() / means.len() as f64;
        let scale = if mean > 0.0 { 1.0 / mean } else { 0.0 };
        Some(means.iter().map(|&x| (f64::from(x) * scale) as f32 + FLOOR).collect())
    }
}

/// Every product of a decoder: its layer, and the number of its inputs.
fn products(spec: &DecoderSpec) -> impl Iterator<Item = (Option<usize>, Product, usize)> {
    let &DecoderSpec { hidden, ffn, n_heads, head_dim, n_layers, .. } = spec;
    let of_layer = move |layer| {
        let layer = Some(layer);
        [
            (layer, Product::Qkv, hidden),
            (layer, Product::Out, n_heads * head_dim),
            (layer, Product::Up, hidden),
            (layer, Product::Down, ffn),
        ]
    };
    (0..n_layers).flat_map(of_layer).chain([(None, Product::LmHead, hidden)])
}

/// What a product is called in a file.
fn name(layer: Option<usize>, product: Product) -> String {
    let product = product.name();
    layer.map_or_else(|| product.to_owned(), |layer| format!("layers.{layer}.{product}"))
}

/// What is wrong with the first number that is no mean square.
fn first_wrong(means: &[f32]) -> Option<String> {
    let at = means.iter().position(|x| !(0.0..ABSURD).contains(x))?;
    Some(format!("element {at} is {:e}; a mean square is from 0 to {ABSURD:e}", means[at]))
}

#[cfg(test)]
mod tests;
