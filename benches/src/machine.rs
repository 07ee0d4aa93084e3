//! The note on the machine that goes with every record.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

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
    /// Bytes of all last-level caches together, if known.
    pub l3_bytes: Option<usize>,
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
            l3_bytes: l3_bytes(),
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
    cache_bytes(Path::new("/sys/devices/system/cpu/cpu0/cache/index2"))
}

/// Bytes of all third-level caches together, if the system tells.
pub(crate) fn l3_bytes() -> Option<usize> {
    let cpus = fs::read_dir("/sys/devices/system/cpu").ok()?.filter_map(Result::ok);
    let caches: HashMap<String, usize> = cpus
        .filter_map(|cpu| {
            let cache = cpu.path().join("cache/index3");
            Some((fs::read_to_string(cache.join("shared_cpu_list")).ok()?, cache_bytes(&cache)?))
        })
        .collect();
    (!caches.is_empty()).then(|| caches.values().sum())
}

fn cache_bytes(cache: &Path) -> Option<usize> {
    let text = fs::read_to_string(cache.join("size")).ok()?;
    Some(text.trim().strip_suffix('K')?.parse::<usize>().ok()? * 1024)
}

/// The word in brackets.
fn huge_pages() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}
