//! What costs speed on this machine with these settings, and what to do about it.

mod checks;
mod machine;

use std::path::Path;

use pace_kernels::{Buffer, Isa, OutOfMemory};
use pace_ops::Limits;
use serde::Serialize;

use crate::platform::{ThreadBudget, topology};
use crate::profile::{memory_bytes, out_of_memory};
use crate::{EngineConfig, RuntimeError};

pub use self::checks::{Check, Facts, Status, checks};
pub use self::machine::Machine;

/// Bytes of the memory that is asked for in huge pages, as a test.
const HUGE_TEST_BYTES: usize = 64 << 20;
/// Bytes that are read for the bandwidth at most, unless the caches hold a good part of that: a report should not take
/// long.
const MOST_BYTES: usize = 1 << 30;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What costs speed, and what does not.
    pub checks: Vec<Check>,
    /// The machine.
    pub machine: Machine,
    /// The instruction sets in use.
    pub isa: String,
    /// What it computes and reads at most, on the configuration's threads.
    pub limits: Limits,
}

/// Looks at this machine, and measures it on the threads of `config` for about a second. `budget` is where those come
/// from; `weight_bytes` what the weights of a model take, if there is one.
///
/// # Errors
/// The CPU lacks the configuration's instruction sets, or there are no threads or no memory.
pub fn examine(
    config: &EngineConfig,
    budget: &ThreadBudget,
    weight_bytes: Option<u64>,
) -> Result<Report, RuntimeError> {
    let (limits, huge_share) = measure(config)?;
    let machine = Machine::detect();
    let facts = Facts {
        machine: &machine,
        isa: config.isa,
        best_isa: Isa::detect(),
        budget,
        placement: config.load.placement,
        huge_share,
        weight_bytes,
        kv_cache: config.kv_cache.kind,
        operators: &config.load.operators,
    };
    Ok(Report { checks: checks(&facts), isa: config.isa.to_string(), limits, machine })
}

/// The limits, and the share of huge pages of a test, by threads as the engine has them.
fn measure(config: &EngineConfig) -> Result<(Limits, Option<f64>), RuntimeError> {
    let run = || {
        let (kernels, pool) = (config.kernels()?, config.pool(config.cpus.len())?);
        let refused = |e: OutOfMemory| out_of_memory(e.bytes as u64, "to measure memory");
        let caches = topology::l3_bytes(Path::new("/")).unwrap_or(0);
        let bytes = memory_bytes().min(MOST_BYTES.max(caches.saturating_mul(2)));
        let limits = Limits::measure(kernels, pool.par(), bytes).map_err(refused)?;
        let mut buffer = Buffer::zeroed(HUGE_TEST_BYTES, config.load.placement).map_err(refused)?;
        buffer.as_mut_slice::<f32>().fill(1.0);
        Ok((limits, buffer.huge_share()))
    };
    // A thread of its own: the caller's is not to be pinned.
    std::thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|_| Err(RuntimeError::Internal("the measurement panicked".to_owned())))
}
