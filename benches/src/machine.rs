//! The note on the machine that goes with every record.

use std::fs;

use serde::Serialize;

use crate::Bench;

/// What a figure was measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// The instruction-set tier in use.
    pub isa: String,
    /// Threads in use.
    pub threads: usize,
    /// Processors that the system shows.
    pub cpus: usize,
    /// Bytes of each core's second-level cache, if known.
    pub l2_bytes: Option<usize>,
    /// The system's setting for huge pages.
    pub huge_pages: Option<String>,
    /// Version of PACE.
    pub version: &'static str,
}

impl Machine {
    /// This machine, as `bench` uses it.
    pub fn detect(bench: &Bench) -> Self {
        let cx = bench.cx();
        Self {
            cpu: cpu_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            isa: cx.kernels.isa().to_string(),
            threads: cx.par.threads(),
            cpus: cpus(),
            l2_bytes: l2_bytes(),
            huge_pages: huge_pages(),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

fn cpu_name() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn cpus() -> usize {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines().filter(|line| line.starts_with("processor")).count()
}

fn l2_bytes() -> Option<usize> {
    let text = fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size").ok()?;
    Some(text.trim().strip_suffix('K')?.parse::<usize>().ok()? * 1024)
}

/// The word in brackets.
fn huge_pages() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}
