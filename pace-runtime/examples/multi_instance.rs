//! Several instances of one model on the cores of this machine, with one queue and one copy of the weights a NUMA node.
//!
//! `cargo run --release --example multi_instance -- [MODEL] [INSTANCES]`; without arguments random weights and an instance
//! for each core.

use std::sync::Arc;
use std::time::Instant;

use pace_runtime::platform::topology::Topology;
use pace_runtime::{DType, EngineConfig, Instances, ModelFiles, ModelRef, Request, RuntimeError, partition};

fn main() -> Result<(), RuntimeError> {
    let mut args = std::env::args().skip(1);
    let model = args.next().unwrap_or_else(|| "random:small".to_owned());
    let files = Arc::new(ModelFiles::open(&ModelRef::parse(&model)?)?);
    let config = EngineConfig::detect(DType::Bf16, None)?;
    let instances = args.next().and_then(|n| n.parse().ok()).unwrap_or(config.cpus.len());

    let parts = partition(&Topology::detect(), &config.cpus, instances)?;
    for (i, part) in parts.iter().enumerate() {
        println!("instance {i}: CPUs {:?}", part.cpus);
    }
    let instances = Instances::start(&files, &config, &parts, || Box::new(|_, _| {}))?;

    let prompt = |i: u32| (0..64).map(|t| (t * 31 + i) % 256).collect();
    let request = |i| Request { prompt: prompt(i), max_new_tokens: 32, ..Request::default() };
    let (start, mut tokens) = (Instant::now(), 0);
    instances.run((0..16).map(request).collect(), |answer| {
        println!("request {:2} by instance {}: {:?}", answer.index, answer.instance, &answer.tokens[..4]);
        tokens += answer.tokens.len();
    })?;
    println!("{:.1} tokens/s", tokens as f64 / start.elapsed().as_secs_f64());
    Ok(())
}
