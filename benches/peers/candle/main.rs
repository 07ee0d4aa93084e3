//! One test of candle: `candle-peer MODEL N_PROMPT N_GEN DEPTH BATCH`, JSON on stdout. Threads: `RAYON_NUM_THREADS`.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};

struct Model {
    llama: Llama,
    config: Config,
}

impl Model {
    fn load(dir: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(dir.join("config.json"))?;
        let config = serde_json::from_str::<LlamaConfig>(&text)?.into_config(false);
        let file = dir.join("model.safetensors");
        // SAFETY: nothing changes the file while this runs.
        let weights = unsafe { VarBuilder::from_mmaped_safetensors(&[file], DType::BF16, &Device::Cpu)? };
        Ok(Self { llama: Llama::load(weights, &config)?, config })
    }

    fn ids(&self, batch: usize, tokens: usize) -> Result<Tensor> {
        let vocab = self.config.vocab_size;
        let ids = (0..batch * tokens).map(|i| u32::try_from(i * 7919 % vocab)).collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::from_vec(ids, (batch, tokens), &Device::Cpu)?)
    }

    /// Tokens per second of the whole batch, after `depth` tokens.
    fn measure(&self, n_prompt: usize, n_gen: usize, depth: usize, batch: usize) -> Result<f64> {
        let mut cache = Cache::new(true, DType::BF16, &self.config, &Device::Cpu)?;
        if depth > 0 {
            self.llama.forward(&self.ids(batch, depth)?, 0, &mut cache)?;
        }
        let (prompt, mut token) = (self.ids(batch, n_prompt.max(1))?, None);
        let start = Instant::now();
        if n_prompt > 0 {
            token = Some(self.next(&prompt, depth, &mut cache)?);
        }
        for i in 0..n_gen {
            let input = token.as_ref().unwrap_or(&prompt);
            token = Some(self.next(input, depth + n_prompt + i, &mut cache)?);
        }
        Ok((batch * (n_prompt + n_gen)) as f64 / start.elapsed().as_secs_f64())
    }

    fn next(&self, input: &Tensor, position: usize, cache: &mut Cache) -> Result<Tensor> {
        let logits = self.llama.forward(input, position, cache)?;
        Ok(logits.argmax(1)?.unsqueeze(1)?)
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let model = args.next().context("the model's folder is missing")?;
    let numbers = args.map(|arg| arg.parse()).collect::<Result<Vec<usize>, _>>()?;
    let [n_prompt, n_gen, depth, batch] = numbers[..] else {
        anyhow::bail!("N_PROMPT N_GEN DEPTH BATCH are needed");
    };
    let model = Model::load(Path::new(&model))?;
    // Not counted: the first touch of the weights.
    model.measure(16, 1, 0, 1)?;
    println!("{{\"tokens_per_second\": {}}}", model.measure(n_prompt, n_gen, depth, batch)?);
    Ok(())
}
