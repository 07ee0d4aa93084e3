//! What this process may use of its machine: CPUs for threads, memory for weights and KV.

pub mod affinity;
pub mod cgroup;
pub mod cores;
pub mod numa;
mod sys;
pub mod topology;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cgroup::CgroupLimits;
use cores::{Chosen, CoreError, CoreRequest, Source};
use topology::{Cpu, Topology};

/// The CPUs that a pool's threads go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadBudget {
    /// One CPU number per thread, in the order in which threads take them; never empty. Numbers repeat when more
    /// threads were asked for than there are CPUs.
    pub cpus: Vec<usize>,
    /// All CPUs that threads may use, ascending; at least those of `cpus`.
    pub within: Vec<usize>,
    /// How many of `cpus`, the first ones, steps without tokens of a prompt are for: the quota rounded down, where there is
    /// a thread more for prompts. None: all.
    pub decode_threads: Option<usize>,
    /// The NUMA nodes of `cpus`, ascending.
    pub nodes: Vec<usize>,
    /// There are more threads than usable physical cores, or than the CPU quota lets run at once although it did not
    /// decide how many there are.
    pub oversubscribed: bool,
    /// Each thread belongs on its own CPU: somebody named the CPUs, or there is one thread for each core that the
    /// process may use. Else pinning is not safe: two processes that each take a part would both pin to the same
    /// first cores.
    pub pin: bool,
    /// Somebody named the CPUs: threads must not leave `within`, pinned or not.
    pub named: bool,
    /// What decided how many threads there are.
    pub threads_source: Source,
    /// What decided on which CPUs they may run.
    pub cpus_source: Source,
    /// What decided whether they are pinned.
    pub pin_source: Source,
    /// Why there are so many threads, for logs and warnings.
    pub reason: String,
}

impl ThreadBudget {
    /// The budget of this process on this machine, for so many threads or by default; see [`thread_budget`].
    pub fn detect(requested: Option<usize>) -> Self {
        Self::for_request(&CoreRequest::threads(requested)).expect("a number alone is always granted")
    }

    /// The budget of this process on this machine; see [`thread_budget`].
    ///
    /// # Errors
    /// As [`thread_budget`].
    pub fn for_request(request: &CoreRequest) -> Result<Self, CoreError> {
        let quota = CgroupLimits::detect().cpu_quota;
        thread_budget(&Topology::detect(), &affinity::process_affinity(), quota, request)
    }
}

/// From this part of a CPU on, a thread that a quota stops for the rest of the time makes a prompt faster.
const USEFUL_PART: f64 = 0.25;

/// Chooses the CPUs for a pool.
///
/// `affinity` holds the CPU numbers on which the process may run (empty: unknown, all), `quota` CPUs' worth of time
/// per wall time. Unless a number of threads is asked for, there is one per physical core of the chosen CPUs, at most
/// the quota rounded down, at least one; a part of a CPU beyond that gets a thread for prompts only, if it is a quarter or
/// more. A number is granted whatever the machine has (0 counts as 1): physical cores
/// first, then their SMT siblings, then the same CPUs again. Cores come in the order package, node, L3, so that few
/// threads are close; CPUs of `GOMP_CPU_AFFINITY` come as they are listed, one thread each.
///
/// # Errors
/// A CPU is named that the process may not use, or a node that does not exist.
pub fn thread_budget(
    topology: &Topology,
    affinity: &[usize],
    quota: Option<f64>,
    request: &CoreRequest,
) -> Result<ThreadBudget, CoreError> {
    let Chosen { cpus: chosen, ordered, named, source } =
        cores::choose(topology, usable_cpus(topology, affinity), request)?;
    let (mut order, cores) = cores_before_siblings(&chosen);
    if ordered {
        order = chosen.iter().map(|cpu| cpu.id).collect();
    }
    // A thread that the quota stops mid-step stops all that wait for it at the next barrier. A step that memory bounds loses
    // by that, one that arithmetic bounds wins: 0.92 and 1.43 with two threads for a quota of 1.5.
    let whole_quota = quota.map_or(usize::MAX, |quota| (quota.floor() as usize).max(1));
    let has_part = quota.is_some_and(|quota| quota > 1.0 && quota.fract() >= USEFUL_PART);
    let by_quota = whole_quota.saturating_add(usize::from(has_part));
    let by_cpus = if ordered { order.len() } else { cores };
    let (threads, threads_source) = request.count().unwrap_or(if by_quota < by_cpus {
        (by_quota, Source::Quota)
    } else {
        (by_cpus, source)
    });
    let decode_threads = (request.count().is_none() && threads > whole_quota).then_some(whole_quota);
    let limit = cores.min(if decode_threads.is_some() { by_quota } else { whole_quota });
    let whole = threads == cores && threads <= whole_quota;
    let mut within = order.clone();
    within.sort_unstable();
    let cpus: Vec<usize> = order.iter().copied().cycle().take(threads).collect();
    Ok(ThreadBudget {
        nodes: topology.nodes_of(&cpus),
        cpus,
        decode_threads,
        within,
        oversubscribed: threads > limit,
        pin: !request.no_pin && if named { threads <= order.len() } else { whole },
        named,
        threads_source,
        cpus_source: source,
        pin_source: match (request.no_pin, named) {
            (true, _) => Source::Flag("--no-pin"),
            (false, true) => source,
            (false, false) => Source::Default,
        },
        reason: reason(request, threads, cores, quota),
    })
}

/// Why there are so many threads.
fn reason(request: &CoreRequest, threads: usize, cores: usize, quota: Option<f64>) -> String {
    let mut reason = match request.count() {
        Some((_, source)) => format!("{threads} requested by {source}; {cores} usable physical cores"),
        None => format!("{cores} usable physical cores"),
    };
    if let Some(quota) = quota {
        reason.push_str(&format!(", CPU quota {quota:.2}"));
    }
    reason
}

/// How much memory this process may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes: the smallest of physical memory and the limits of the control groups and of the process.
    pub bytes: u64,
    /// Bytes that can still be taken now without swapping or hitting a limit.
    pub available: u64,
    /// What leaves so little available: `physical memory`, a control group's file, `ulimit -v` or `ulimit -d`.
    pub source: String,
}

impl MemoryLimit {
    /// The limit of this process; `None` when the system tells nothing.
    pub fn detect() -> Option<Self> {
        Self::from_root(Path::new("/")).into_iter().chain(process_limits()).reduce(Self::tighter)
    }

    /// The limit read below `root`, the directory that holds `proc` and `sys`: of memory and control groups.
    pub fn from_root(root: &Path) -> Option<Self> {
        let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        let machine = meminfo_bytes(&meminfo, "MemTotal").map(|bytes| {
            let available = meminfo_bytes(&meminfo, "MemAvailable").unwrap_or(bytes).min(bytes);
            Self { bytes, available, source: "physical memory".to_owned() }
        });
        let groups = CgroupLimits::from_root(root).memory.into_iter().map(|memory| Self {
            bytes: memory.limit,
            available: memory.limit.saturating_sub(memory.used),
            source: memory.file.display().to_string(),
        });
        machine.into_iter().chain(groups).reduce(Self::tighter)
    }

    fn tighter(self, other: Self) -> Self {
        let bytes = self.bytes.min(other.bytes);
        let least = if other.available < self.available { other } else { self };
        Self { bytes, ..least }
    }
}

/// What `setrlimit` lets this process take of address space and of private memory.
#[cfg(target_os = "linux")]
fn process_limits() -> impl Iterator<Item = MemoryLimit> {
    use rustix::process::{Resource, getrlimit};

    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limit = move |(resource, field, source): (Resource, &str, &str)| {
        let bytes = getrlimit(resource).current?;
        let used = meminfo_bytes(&status, field).unwrap_or(0);
        Some(MemoryLimit { bytes, available: bytes.saturating_sub(used), source: source.to_owned() })
    };
    [(Resource::As, "VmSize", "ulimit -v"), (Resource::Data, "VmData", "ulimit -d")]
        .into_iter()
        .filter_map(limit)
}

#[cfg(not(target_os = "linux"))]
fn process_limits() -> impl Iterator<Item = MemoryLimit> {
    std::iter::empty()
}

/// Page faults of this process up to now; none where the system does not tell.
pub(crate) fn page_faults() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything; minor and major faults are the eighth and tenth fields behind it.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some(fields.get(7)?.parse::<u64>().ok()? + fields.get(9)?.parse::<u64>().ok()?)
}

/// Online CPUs in the affinity mask. Sources that contradict each other or say nothing leave the mask alone, then
/// all online CPUs, then CPU 0: there is always somewhere to run.
fn usable_cpus(topology: &Topology, affinity: &[usize]) -> Vec<Cpu> {
    let all = topology.cpus();
    let allowed: Vec<Cpu> = all.iter().filter(|cpu| affinity.contains(&cpu.id)).cloned().collect();
    match (allowed.is_empty(), affinity.is_empty(), all.is_empty()) {
        (false, ..) => allowed,
        (true, false, _) => Topology::flat(affinity).cpus().to_vec(),
        (true, true, false) => all.to_vec(),
        (true, true, true) => Topology::flat(&[0]).cpus().to_vec(),
    }
}

/// The CPU numbers, one of each physical core before any second one, and the number of physical cores.
fn cores_before_siblings(cpus: &[Cpu]) -> (Vec<usize>, usize) {
    let mut threads_seen: BTreeMap<usize, usize> = BTreeMap::new();
    let mut keyed: Vec<_> = cpus
        .iter()
        .map(|cpu| {
            let seen = threads_seen.entry(cpu.core()).or_default();
            *seen += 1;
            (*seen, cpu.package, cpu.node, cpu.l3, cpu.core(), cpu.id)
        })
        .collect();
    keyed.sort_unstable();
    (keyed.iter().map(|key| key.5).collect(), threads_seen.len())
}

/// A field of `/proc/meminfo`, which counts in KiB.
fn meminfo_bytes(meminfo: &str, field: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::topology::fake::{Machine, Numbering, put};
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn touching_memory_is_a_fault() {
        use pace_kernels::{Buffer, HugePages, Placement};

        let before = page_faults().unwrap();
        let mut memory = Buffer::zeroed(4 << 20, Placement { hugepages: HugePages::Never }).unwrap();
        memory.as_mut_slice::<f32>().fill(1.0);
        assert!(page_faults().unwrap() > before);
    }

    /// Two sockets of an EPYC with two cores in each CCX, in mode NPS2.
    const EPYC: Machine = Machine {
        packages: 2,
        nodes_per_package: 2,
        l3_per_node: 2,
        cores_per_l3: 2,
        smt: 2,
        numbering: Numbering::ThreadsLast,
    };

    fn read(machine: &Machine, offline: &[usize]) -> Topology {
        let root = tempfile::tempdir().unwrap();
        machine.write(root.path(), offline);
        Topology::from_root(root.path())
    }

    fn plain(topology: &Topology, affinity: &[usize], quota: Option<f64>, n: Option<usize>) -> ThreadBudget {
        thread_budget(topology, affinity, quota, &CoreRequest::threads(n)).unwrap()
    }

    fn all(cpus: usize) -> Vec<usize> {
        (0..cpus).collect()
    }

    #[test]
    fn default_is_one_thread_per_physical_core_in_every_shape() {
        let shape = |nodes, smt, numbering| Machine {
            nodes_per_package: nodes,
            l3_per_node: 4 / nodes,
            smt,
            numbering,
            ..EPYC
        };
        for machine in [
            shape(1, 1, Numbering::ThreadsLast),
            shape(1, 2, Numbering::PackagesInterleaved),
            shape(2, 2, Numbering::ThreadsAdjacent),
            shape(4, 1, Numbering::PackagesInterleaved),
            shape(4, 2, Numbering::ThreadsLast),
        ] {
            let budget = plain(&read(&machine, &[]), &all(64), None, None);
            let in_order: Vec<usize> =
                (0..2).flat_map(|package| (0..8).map(move |core| machine.cpu_id(package, core, 0))).collect();
            assert_eq!(budget.cpus, in_order, "{machine:?}");
            assert!(!budget.oversubscribed);
        }
    }

    #[test]
    fn quota_is_rounded_down_for_answers_but_never_to_zero() {
        let topology = read(&EPYC, &[]);
        let cases = [
            (0.5, 1, None),
            (1.0, 1, None),
            (1.5, 2, Some(1)),
            (2.0, 2, None),
            (3.1, 3, None),
            (3.99, 4, Some(3)),
            (15.5, 16, Some(15)),
            (16.5, 16, None),
            (1e9, 16, None),
        ];
        for (quota, threads, decode_threads) in cases {
            let budget = plain(&topology, &all(64), Some(quota), None);
            assert_eq!((budget.cpus.len(), budget.decode_threads), (threads, decode_threads), "{quota}");
            assert!(!budget.oversubscribed);
            assert!(budget.reason.contains("quota"), "{}", budget.reason);
        }
        let two = plain(&Topology::flat(&[4, 5]), &[], Some(1.5), None);
        assert_eq!((two.cpus, two.decode_threads, two.pin), (vec![4, 5], Some(1), false));
        assert_eq!(plain(&topology, &all(64), Some(1.5), Some(2)).decode_threads, None);
    }

    #[test]
    fn affinity_and_offline_cpus_narrow_the_choice() {
        let topology = read(&EPYC, &[1]);
        // Core 0 with both threads, core 1 whose first thread is offline, core 8 by its second thread only.
        let budget = plain(&topology, &[0, 1, 16, 17, 24], None, None);
        assert_eq!(budget.cpus, [0, 17, 24]);
        let budget = plain(&topology, &[0, 1, 16, 17, 24], None, Some(4));
        assert_eq!(budget.cpus, [0, 17, 24, 16]);
    }

    #[test]
    fn requests_are_granted_and_judged() {
        let topology = Topology::flat(&[4, 5]);
        let ask = |quota, requested| plain(&topology, &[4, 5], quota, requested);
        let judged = |quota, requested| {
            let budget = ask(quota, requested);
            (budget.cpus, budget.oversubscribed)
        };
        assert_eq!(judged(None, Some(0)), (vec![4], false));
        assert_eq!(judged(None, Some(1)), (vec![4], false));
        assert_eq!(judged(None, Some(2)), (vec![4, 5], false));
        assert_eq!(judged(None, Some(5)), (vec![4, 5, 4, 5, 4], true));
        assert_eq!(judged(Some(1.5), Some(2)), (vec![4, 5], true));
        let reason = ask(Some(1.5), Some(3)).reason;
        assert_eq!(reason, "3 requested by --threads; 2 usable physical cores, CPU quota 1.50");
    }

    #[test]
    fn chosen_cores_hold_one_thread_each() {
        let topology = read(&EPYC, &[]);
        let ask = |request: CoreRequest| thread_budget(&topology, &all(64), None, &request).unwrap();
        let cores = |list: &[usize]| CoreRequest { cores: Some(list.to_vec()), ..CoreRequest::default() };
        // CPU 16 is the sibling of CPU 0: no thread of its own unless asked for.
        let budget = ask(cores(&[8, 16, 0, 1]));
        assert_eq!((budget.cpus, budget.within), (vec![0, 1, 8], vec![0, 1, 8, 16]));
        assert_eq!((budget.pin, budget.named, budget.oversubscribed), (true, true, false));
        assert_eq!(budget.threads_source, Source::Flag("--cores"));
        let budget = ask(CoreRequest { threads: Some(4), ..cores(&[8, 16, 0, 1]) });
        assert_eq!((budget.cpus, budget.pin, budget.oversubscribed), (vec![0, 1, 8, 16], true, true));
        assert_eq!(budget.threads_source, Source::Flag("--threads"));
        // Two threads on one CPU would wait for each other at every barrier if neither could move.
        let budget = ask(CoreRequest { threads: Some(3), ..cores(&[8, 0]) });
        assert_eq!((budget.cpus, budget.pin), (vec![0, 8, 0], false));
        let budget = ask(CoreRequest { no_pin: true, ..cores(&[8, 0]) });
        assert_eq!((budget.pin, budget.pin_source), (false, Source::Flag("--no-pin")));
        let budget = ask(CoreRequest { numa_node: Some(1), ..CoreRequest::default() });
        assert_eq!((budget.cpus, budget.cpus_source), (vec![4, 5, 6, 7], Source::Flag("--numa-node")));
        assert_eq!(budget.within, [4, 5, 6, 7, 20, 21, 22, 23]);
    }

    #[test]
    fn openmp_s_variables_count_where_flags_are_silent() {
        let topology = read(&EPYC, &[]);
        let ask = |request: CoreRequest| thread_budget(&topology, &all(64), Some(9.0), &request).unwrap();
        let gomp = || CoreRequest { gomp_cpu_affinity: Some(vec![9, 3, 3, 1]), ..CoreRequest::default() };
        let budget = ask(gomp());
        assert_eq!((budget.cpus, budget.pin), (vec![9, 3, 1], true));
        assert_eq!(budget.cpus_source, Source::Variable("GOMP_CPU_AFFINITY"));
        let budget = ask(CoreRequest { omp_num_threads: Some(2), ..gomp() });
        assert_eq!((budget.cpus, budget.threads_source), (vec![9, 3], Source::Variable("OMP_NUM_THREADS")));
        let budget = ask(CoreRequest { omp_num_threads: Some(2), threads: Some(1), ..gomp() });
        assert_eq!((budget.cpus, budget.threads_source), (vec![9], Source::Flag("--threads")));
        let budget = ask(CoreRequest { cores: Some(vec![5]), ..gomp() });
        assert_eq!((budget.cpus, budget.cpus_source), (vec![5], Source::Flag("--cores")));
        assert_eq!(ask(CoreRequest::default()).threads_source, Source::Quota);
        let plain = thread_budget(&topology, &[0, 1], None, &CoreRequest::default()).unwrap();
        assert_eq!((plain.threads_source, plain.pin), (Source::Affinity, true));
    }

    #[test]
    fn cpus_and_nodes_that_are_not_there_are_errors() {
        let topology = read(&EPYC, &[5]);
        let ask = |affinity: &[usize], request: CoreRequest| {
            thread_budget(&topology, affinity, None, &request).unwrap_err().to_string()
        };
        let cores = |list: &[usize]| CoreRequest { cores: Some(list.to_vec()), ..CoreRequest::default() };
        let message = ask(&[0, 1, 2, 4], cores(&[0, 3]));
        assert_eq!(message, "--cores: CPU 3 is not among those that this process may use: 0-2,4");
        assert!(ask(&all(64), cores(&[5])).contains("CPU 5"), "offline");
        assert!(ask(&[0], cores(&[])).contains("no CPU is named"));
        let node = |node| CoreRequest { numa_node: Some(node), ..CoreRequest::default() };
        let message = ask(&all(64), node(4));
        assert_eq!(message, "--numa-node: there is no node 4; this machine has: 0-3");
        let message = ask(&[0], node(3));
        assert_eq!(message, "--numa-node: node 3 has CPUs 12-15,28-31; this process may use: 0");
        let gomp = CoreRequest { gomp_cpu_affinity: Some(vec![77]), ..CoreRequest::default() };
        assert!(ask(&all(64), gomp).starts_with("GOMP_CPU_AFFINITY: CPU 77"));
    }

    #[test]
    fn smt_siblings_count_as_oversubscription() {
        let topology = read(&Machine { packages: 1, l3_per_node: 1, cores_per_l3: 1, ..EPYC }, &[]);
        let budget = plain(&topology, &all(4), None, Some(4));
        assert_eq!((budget.cpus, budget.oversubscribed), (vec![0, 1, 2, 3], true));
    }

    #[test]
    fn unknown_or_contradicting_sources_still_run_somewhere() {
        let empty = Topology::flat(&[]);
        assert_eq!(plain(&empty, &[], None, None).cpus, [0]);
        assert_eq!(plain(&empty, &[7, 9], None, None).cpus, [7, 9]);
        assert_eq!(plain(&Topology::flat(&[1, 2]), &[], None, None).cpus, [1, 2]);
        assert_eq!(plain(&Topology::flat(&[1]), &[3], None, None).cpus, [3]);
    }

    #[test]
    fn single_core_container() {
        let budget = plain(&read(&EPYC, &[]), &[23], Some(1.0), None);
        assert_eq!(budget.cpus, [23]);
        assert!(!ThreadBudget::detect(None).cpus.is_empty());
    }

    #[test]
    fn memory_is_the_smaller_of_machine_and_group() {
        let root = tempfile::tempdir().unwrap();
        let proc = root.path().join("proc");
        assert_eq!(MemoryLimit::from_root(root.path()), None);
        put(&proc.join("meminfo"), "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  600 kB");
        let limit = MemoryLimit::from_root(root.path()).expect("meminfo is there");
        assert_eq!((limit.bytes, limit.available), (1_024_000, 614_400));
        assert_eq!(limit.source, "physical memory");

        put(&proc.join("self/cgroup"), "0::/");
        put(&proc.join("self/mountinfo"), "1 2 0:1 / /cg rw - cgroup2 none rw");
        put(&root.path().join("cg/memory.max"), "500000");
        put(&root.path().join("cg/memory.current"), "100000");
        let limit = MemoryLimit::from_root(root.path()).expect("both are there");
        assert_eq!((limit.bytes, limit.available), (500_000, 400_000));
        assert!(limit.source.ends_with("cg/memory.max"), "{}", limit.source);

        put(&root.path().join("cg/memory.max"), "5000000");
        let limit = MemoryLimit::from_root(root.path()).expect("both are there");
        assert_eq!((limit.bytes, limit.available), (1_024_000, 614_400));
    }
}
