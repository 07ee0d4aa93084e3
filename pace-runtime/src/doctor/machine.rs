//! [`Machine`]: what a report says about the hardware and the system.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::platform::MemoryLimit;
use crate::platform::cgroup::CgroupLimits;
use crate::platform::topology::{Topology, l3_bytes};

/// The hardware and the system, as far as the system tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Online CPUs (hardware threads).
    pub cpus: usize,
    /// Physical cores.
    pub cores: usize,
    /// Sockets.
    pub sockets: usize,
    /// NUMA nodes.
    pub numa_nodes: usize,
    /// Third-level caches.
    pub l3_groups: usize,
    /// Bytes of a core's first-level data cache.
    pub l1d_bytes: Option<usize>,
    /// Bytes of a core's second-level cache.
    pub l2_bytes: Option<usize>,
    /// Bytes of all third-level caches together.
    pub l3_bytes: Option<usize>,
    /// Bytes of memory that this process may use.
    pub memory_bytes: Option<u64>,
    /// Bytes of it that can be taken now.
    pub memory_available_bytes: Option<u64>,
    /// What limits it.
    pub memory_limit: Option<String>,
    /// CPU time per wall time that the control group allows.
    pub cpu_quota: Option<f64>,
    /// The system's setting for transparent huge pages: `always`, `madvise` or `never`.
    pub huge_pages: Option<String>,
    /// Whether the system moves memory between NUMA nodes by itself.
    pub numa_balancing: Option<bool>,
    /// How the first CPU's frequency is governed.
    pub governor: Option<String>,
    /// The first CPU's frequency now and at most, in kHz.
    pub frequency_khz: Option<[usize; 2]>,
    /// The memory allocator of this process.
    pub allocator: &'static str,
}

impl Machine {
    /// This machine, with the CPUs and the memory that an engine finds.
    pub fn detect() -> Self {
        Self::read(Path::new("/"), &Topology::detect(), MemoryLimit::detect())
    }

    /// The machine below `root`, the directory that holds `proc` and `sys`.
    pub fn from_root(root: &Path) -> Self {
        Self::read(root, &Topology::from_root(root), MemoryLimit::from_root(root))
    }

    /// What files below `root` say beside `topology` and `memory`, which need not come from files.
    fn read(root: &Path, topology: &Topology, memory: Option<MemoryLimit>) -> Self {
        let first = topology.cpus().first().map_or(0, |cpu| cpu.id);
        let dir = root.join(format!("sys/devices/system/cpu/cpu{first}"));
        let khz = |name: &str| word(&dir.join("cpufreq").join(name))?.parse().ok();
        Self {
            cpu: cpu_name(root).unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: topology.cpus().len(),
            cores: topology.cores(),
            sockets: topology.packages(),
            numa_nodes: topology.nodes().len(),
            l3_groups: topology.l3_groups(),
            l1d_bytes: cache_bytes(&dir, "index0"),
            l2_bytes: cache_bytes(&dir, "index2"),
            l3_bytes: l3_bytes(root),
            memory_bytes: memory.as_ref().map(|limit| limit.bytes),
            memory_available_bytes: memory.as_ref().map(|limit| limit.available),
            memory_limit: memory.map(|limit| limit.source),
            cpu_quota: CgroupLimits::from_root(root).cpu_quota,
            huge_pages: bracketed(&root.join("sys/kernel/mm/transparent_hugepage/enabled")),
            numa_balancing: word(&root.join("proc/sys/kernel/numa_balancing")).map(|value| value != "0"),
            governor: word(&dir.join("cpufreq/scaling_governor")),
            frequency_khz: khz("scaling_cur_freq").zip(khz("cpuinfo_max_freq")).map(|(now, max)| [now, max]),
            allocator: allocator(&fs::read_to_string(root.join("proc/self/maps")).unwrap_or_default()),
        }
    }
}

fn cpu_name(root: &Path) -> Option<String> {
    let text = fs::read_to_string(root.join("proc/cpuinfo")).ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn word(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn cache_bytes(cpu: &Path, index: &str) -> Option<usize> {
    word(&cpu.join("cache").join(index).join("size"))?
        .strip_suffix('K')?
        .parse::<usize>()
        .ok()?
        .checked_mul(1024)
}

/// The choice among several that a file of the kernel shows in brackets.
fn bracketed(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// The allocator among a process's mappings; one that is linked in has no file of its own.
fn allocator(maps: &str) -> &'static str {
    let loaded =
        |name: &str| maps.lines().any(|line| line.rsplit('/').next().is_some_and(|f| f.starts_with(name)));
    match () {
        () if loaded("libtcmalloc") => "tcmalloc",
        () if loaded("libjemalloc") => "jemalloc",
        () if loaded("libmimalloc") => "mimalloc",
        () => "system",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::topology::fake::{self, Numbering, put};

    #[test]
    fn cpus_and_memory_are_those_that_an_engine_finds() {
        let (machine, topology) = (Machine::detect(), Topology::detect());
        assert_eq!((machine.cpus, machine.cores), (topology.cpus().len(), topology.cores()));
        assert_eq!(machine.memory_bytes, MemoryLimit::detect().map(|limit| limit.bytes));
        // Where no file says anything, the affinity mask and setrlimit still do.
        let limit = MemoryLimit { bytes: 300, available: 200, source: "ulimit -v".to_owned() };
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::read(root.path(), &Topology::flat(&[4, 5]), Some(limit));
        assert_eq!((machine.cpus, machine.cores, machine.sockets), (2, 2, 1));
        assert_eq!((machine.memory_bytes, machine.memory_available_bytes), (Some(300), Some(200)));
        assert_eq!(machine.memory_limit.as_deref(), Some("ulimit -v"));
    }

    #[test]
    fn a_server_is_read_and_an_empty_root_says_little() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Machine::from_root(root.path()).huge_pages, None);
        let epyc = fake::Machine {
            packages: 2,
            nodes_per_package: 4,
            l3_per_node: 1,
            cores_per_l3: 2,
            smt: 2,
            numbering: Numbering::ThreadsLast,
        };
        epyc.write(root.path(), &[]);
        put(&root.path().join("proc/cpuinfo"), "processor\t: 0\nmodel name\t: AMD EPYC 9654");
        put(&root.path().join("sys/kernel/mm/transparent_hugepage/enabled"), "always [madvise] never");
        let freq = root.path().join("sys/devices/system/cpu/cpu0/cpufreq");
        put(&freq.join("scaling_governor"), "powersave");
        put(&freq.join("scaling_cur_freq"), "1500000");
        put(&freq.join("cpuinfo_max_freq"), "3700000");
        put(&root.path().join("proc/sys/kernel/numa_balancing"), "1");
        put(&root.path().join("proc/self/maps"), "7f-80 r-xp 0 00:00 1  /usr/lib/libjemalloc.so.2");
        let machine = Machine::from_root(root.path());
        assert_eq!((machine.cpu.as_str(), machine.cpus, machine.cores), ("AMD EPYC 9654", 32, 16));
        assert_eq!((machine.sockets, machine.numa_nodes, machine.l3_groups), (2, 8, 8));
        assert_eq!(machine.l3_bytes, Some(8 * (32 << 20)));
        assert_eq!(machine.huge_pages.as_deref(), Some("madvise"));
        assert_eq!(machine.governor.as_deref(), Some("powersave"));
        assert_eq!(machine.frequency_khz, Some([1_500_000, 3_700_000]));
        assert_eq!((machine.allocator, machine.numa_balancing), ("jemalloc", Some(true)));
    }
}
