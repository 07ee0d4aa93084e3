//! Which CPUs an engine's threads go to: flags first, then OpenMP's variables, then what the system allows.

use std::fmt;

use super::topology::{Cpu, Topology, format_cpu_list};

/// Where the value of a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A flag of the command line, with its dashes; or a field that a program set.
    Flag(&'static str),
    /// An environment variable.
    Variable(&'static str),
    /// The control group's CPU quota.
    Quota,
    /// The affinity mask of the process, which its cpuset cuts.
    Affinity,
    /// The machine: its CPUs, cores and nodes.
    Topology,
    /// Nothing says otherwise.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) | Self::Variable(name) => f.write_str(name),
            Self::Quota => f.write_str("CPU quota"),
            Self::Affinity => f.write_str("affinity mask"),
            Self::Topology => f.write_str("topology"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// What is asked for. Nothing at all is one thread for each physical core that the process may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CoreRequest {
    /// `--threads`: granted whatever the machine has (0 counts as 1).
    pub threads: Option<usize>,
    /// `--cores`: CPU numbers. Threads take one of each physical core before any sibling.
    pub cores: Option<Vec<usize>>,
    /// `--numa-node`: the CPUs of this node; counts where `cores` says nothing.
    pub numa_node: Option<usize>,
    /// `--no-pin`: threads stay inside the chosen CPUs, but none has one of its own.
    pub no_pin: bool,
    /// `OMP_NUM_THREADS`, where `threads` says nothing.
    pub omp_num_threads: Option<usize>,
    /// `GOMP_CPU_AFFINITY`, where neither `cores` nor `numa_node` says anything: thread by thread in this order, from
    /// the front again where there are more threads.
    pub gomp_cpu_affinity: Option<Vec<usize>>,
}

impl CoreRequest {
    /// So many threads, or one for each core.
    pub fn threads(threads: Option<usize>) -> Self {
        Self { threads, ..Self::default() }
    }

    /// The number of threads that is asked for, and by what.
    pub(super) fn count(&self) -> Option<(usize, Source)> {
        let flag = self.threads.map(|n| (n, Source::Flag("--threads")));
        flag.or_else(|| self.omp_num_threads.map(|n| (n, Source::Variable("OMP_NUM_THREADS"))))
            .map(|(n, source)| (n.max(1), source))
    }
}

/// CPUs that do not exist, or that this process must not use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// A CPU is offline, absent, or outside of the affinity mask.
    #[error("{setting}: CPU {cpu} is not among those that this process may use: {usable}")]
    Cpu {
        /// The flag or variable.
        setting: &'static str,
        /// The CPU.
        cpu: usize,
        /// Those that can be used, as the kernel writes lists.
        usable: String,
    },
    /// A list is empty.
    #[error("{setting}: no CPU is named; this process may use: {usable}")]
    NoCpu {
        /// The flag or variable.
        setting: &'static str,
        /// Those that can be used, as the kernel writes lists.
        usable: String,
    },
    /// There is no such NUMA node.
    #[error("--numa-node: there is no node {node}; this machine has: {nodes}")]
    Node {
        /// The node.
        node: usize,
        /// The nodes that there are, as the kernel writes lists.
        nodes: String,
    },
    /// A NUMA node has no CPU, or none for this process.
    #[error("--numa-node: node {node} has CPUs {cpus}; this process may use: {usable}")]
    NodeWithoutCpus {
        /// The node.
        node: usize,
        /// Its CPUs, as the kernel writes lists, or `none`.
        cpus: String,
        /// Those that can be used.
        usable: String,
    },
}

/// The CPUs to choose from.
pub(super) struct Chosen {
    /// In an order that threads must keep, if `ordered`.
    pub(super) cpus: Vec<Cpu>,
    /// Whether each of `cpus` gets a thread, in this order.
    pub(super) ordered: bool,
    /// Whether somebody named them, so that no other process is expected there.
    pub(super) named: bool,
    pub(super) source: Source,
}

/// The CPUs that `request` leaves of the `usable` ones.
pub(super) fn choose(
    topology: &Topology,
    usable: Vec<Cpu>,
    request: &CoreRequest,
) -> Result<Chosen, CoreError> {
    let named = |cpus, ordered, source| Chosen { cpus, ordered, named: true, source };
    if let Some(cores) = &request.cores {
        let mut cpus = pick("--cores", &usable, cores)?;
        cpus.sort_by_key(|cpu| cpu.id);
        return Ok(named(cpus, false, Source::Flag("--cores")));
    }
    if let Some(node) = request.numa_node {
        let cpus = pick_node(topology, &usable, node)?;
        return Ok(named(cpus, false, Source::Flag("--numa-node")));
    }
    if let Some(list) = &request.gomp_cpu_affinity {
        let cpus = pick("GOMP_CPU_AFFINITY", &usable, list)?;
        return Ok(named(cpus, true, Source::Variable("GOMP_CPU_AFFINITY")));
    }
    let source = if usable.len() < topology.cpus().len() { Source::Affinity } else { Source::Topology };
    Ok(Chosen { cpus: usable, ordered: false, named: false, source })
}

/// The CPUs of `list`, each once, in its order.
fn pick(setting: &'static str, usable: &[Cpu], list: &[usize]) -> Result<Vec<Cpu>, CoreError> {
    let mut picked: Vec<Cpu> = Vec::new();
    for &id in list {
        let Some(cpu) = usable.iter().find(|cpu| cpu.id == id) else {
            return Err(CoreError::Cpu { setting, cpu: id, usable: ids(usable) });
        };
        if picked.iter().all(|cpu| cpu.id != id) {
            picked.push(cpu.clone());
        }
    }
    if picked.is_empty() {
        return Err(CoreError::NoCpu { setting, usable: ids(usable) });
    }
    Ok(picked)
}

fn pick_node(topology: &Topology, usable: &[Cpu], node: usize) -> Result<Vec<Cpu>, CoreError> {
    let nodes: Vec<usize> = topology.nodes().iter().map(|node| node.id).collect();
    let Some(found) = topology.nodes().iter().find(|n| n.id == node) else {
        return Err(CoreError::Node { node, nodes: format_cpu_list(&nodes) });
    };
    let picked: Vec<Cpu> = usable.iter().filter(|cpu| found.cpus.contains(&cpu.id)).cloned().collect();
    if picked.is_empty() {
        let cpus = if found.cpus.is_empty() { "none".to_owned() } else { format_cpu_list(&found.cpus) };
        return Err(CoreError::NodeWithoutCpus { node, cpus, usable: ids(usable) });
    }
    Ok(picked)
}

fn ids(cpus: &[Cpu]) -> String {
    format_cpu_list(&cpus.iter().map(|cpu| cpu.id).collect::<Vec<_>>())
}

/// Reads `GOMP_CPU_AFFINITY` as GNU's OpenMP does: single CPUs, ranges `A-B` and strides `A-B:S`, separated by spaces
/// or commas, in the order of binding. `None` when it is malformed or names a CPU above 65535.
///
/// Source: the manual of libgomp, "GOMP_CPU_AFFINITY".
pub fn parse_gomp_affinity(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split([' ', ',', '\t']).filter(|part| !part.is_empty()) {
        let (range, stride) = match part.split_once(':') {
            Some((range, stride)) => (range, number(stride)?),
            None => (part, 1),
        };
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None if part.contains(':') => return None,
            None => (number(range)?, number(range)?),
        };
        if first > last || stride == 0 {
            return None;
        }
        cpus.extend((first..=last).step_by(stride));
        if cpus.len() > super::topology::MAX_CPUS {
            return None;
        }
    }
    (!cpus.is_empty()).then_some(cpus)
}

fn number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|&n| n < super::topology::MAX_CPUS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gnu_s_lists_keep_their_order() {
        let parse = parse_gomp_affinity;
        assert_eq!(parse("0-3"), Some(vec![0, 1, 2, 3]));
        assert_eq!(parse("0-8:2"), Some(vec![0, 2, 4, 6, 8]));
        // The example of the manual, and the same with commas.
        let manual = Some(vec![0, 3, 1, 2, 4, 6, 8, 10, 12, 14]);
        assert_eq!(parse("0 3 1-2 4-15:2"), manual);
        assert_eq!(parse("0,3, 1-2\t4-15:2 "), manual);
        assert_eq!(parse("5 5"), Some(vec![5, 5]));
        for bad in ["", " ", "a", "3-1", "0-", "-1", "0-8:0", "4:2", "0-8:2:2", "0-70000", "0;1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn sources_say_their_names() {
        let names = [Source::Flag("--cores"), Source::Variable("OMP_NUM_THREADS"), Source::Quota];
        assert_eq!(names.map(|s| s.to_string()), ["--cores", "OMP_NUM_THREADS", "CPU quota"]);
    }
}
