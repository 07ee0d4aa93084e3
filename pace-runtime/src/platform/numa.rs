//! On which NUMA nodes an engine's memory lies: set before it is touched first, looked up afterwards.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Once;

use super::sys::{self, Policy};
use super::topology::{Topology, format_cpu_list, node_bytes};

/// Bytes between two pages that are looked up: a huge page.
const STEP: usize = 2 << 20;
/// Pages that are looked up at most.
const SAMPLES: usize = 4096;

/// Where an engine's memory goes on a machine with several NUMA nodes; on others it makes no difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NumaMemory {
    /// To the nodes of the engine's CPUs, and nowhere else: the kernel then drops cached files there instead of
    /// going to a remote node. As `Default` where the weights do not fit there.
    #[default]
    Bind,
    /// Page by page over all nodes.
    Interleave,
    /// To the node of the CPU that touches it first, or wherever there is room: the kernel's own rule.
    Default,
}

impl NumaMemory {
    /// The name used everywhere: lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Interleave => "interleave",
            Self::Default => "default",
        }
    }
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    policy: Option<(Policy, Vec<usize>)>,
    warning: Option<String>,
}

/// Sets the memory policy of the calling thread, and of those that it starts from now on, for an engine on the nodes
/// `own` that needs `need` bytes for its weights. Gives the nodes that memory is bound to, none where it may come from
/// all. What the system refuses is a warning, once.
pub(crate) fn place(choice: NumaMemory, own: &[usize], need: u64) -> Vec<usize> {
    static REFUSED: Once = Once::new();
    let free = |node: usize| free_bytes(Path::new("/"), node);
    let plan = plan(choice, &Topology::detect(), own, need, &free);
    if let Some(warning) = plan.warning {
        tracing::warn!("{warning}");
    }
    let Some((policy, nodes)) = plan.policy else { return Vec::new() };
    let list = format_cpu_list(&nodes);
    match sys::set_memory_policy(policy, &nodes) {
        Ok(()) => {
            tracing::info!("memory policy: {} on NUMA nodes {list}", choice.name());
            if policy == Policy::Bind { nodes } else { Vec::new() }
        }
        Err(error) => {
            REFUSED.call_once(|| {
                tracing::warn!(
                    "memory cannot be placed on NUMA nodes {list}: {error}; the kernel's rule holds"
                );
            });
            Vec::new()
        }
    }
}

/// Bytes that are free on `nodes` or hold cached files there; none without nodes, or if the system does not tell.
pub(crate) fn free_bytes_of(nodes: &[usize]) -> Option<u64> {
    let free = nodes.iter().map(|&node| free_bytes(Path::new("/"), node)).sum();
    if nodes.is_empty() { None } else { free }
}

fn plan(
    choice: NumaMemory,
    topology: &Topology,
    own: &[usize],
    need: u64,
    free: &dyn Fn(usize) -> Option<u64>,
) -> Plan {
    let nothing = Plan { policy: None, warning: None };
    let with_memory: Vec<usize> =
        topology.nodes().iter().filter(|node| node.bytes != Some(0)).map(|node| node.id).collect();
    if with_memory.len() < 2 {
        return nothing;
    }
    let own: Vec<usize> = own.iter().copied().filter(|node| with_memory.contains(node)).collect();
    match choice {
        NumaMemory::Default => nothing,
        NumaMemory::Interleave => Plan { policy: Some((Policy::Interleave, with_memory)), warning: None },
        // First touch does the same there.
        NumaMemory::Bind if own.is_empty() || own.len() == with_memory.len() => nothing,
        NumaMemory::Bind => {
            let room: Option<u64> = own.iter().map(|&node| free(node)).sum();
            match room {
                Some(room) if room < need => {
                    let list = format_cpu_list(&own);
                    let warning = format!(
                        "NUMA nodes {list} have {room} bytes free and the weights need {need}: \
                         some will lie on remote nodes; --numa-memory interleave spreads them evenly"
                    );
                    Plan { policy: None, warning: Some(warning) }
                }
                _ => Plan { policy: Some((Policy::Bind, own)), warning: None },
            }
        }
    }
}

/// Bytes of a node that are free or hold cached files, if the system tells.
fn free_bytes(root: &Path, node: usize) -> Option<u64> {
    let dir = root.join(format!("sys/devices/system/node/node{node}"));
    node_bytes(&dir, &["MemFree", "Active(file)", "Inactive(file)"])
}

/// The part of the memory of `ranges`, from 0 to 1, that lies on other nodes than `own`, by a sample of its pages.
/// None where there is only one node, nothing is mapped, or the system does not tell.
fn remote_share(ranges: &[Range<usize>], own: &[usize]) -> Option<f64> {
    static REFUSED: Once = Once::new();
    if Topology::detect().nodes().len() < 2 {
        return None;
    }
    // A filter of system calls that refuses the first lets the second be read.
    match sys::nodes_of(&sample(ranges)) {
        Ok(nodes) => share_outside(&nodes, own),
        Err(refused) => {
            let text = std::fs::read_to_string("/proc/self/numa_maps");
            let warn = |error: &io::Error| {
                REFUSED.call_once(|| {
                    tracing::warn!(
                        "the system does not tell where memory lies: {refused}, numa_maps: {error}"
                    );
                });
            };
            share_in(&text.inspect_err(warn).ok()?, ranges, own)
        }
    }
}

/// The part of the memory of `ranges` that lies on other nodes than `own`, as [`remote_share`] has it; more than a little
/// is a warning that calls the memory `what`.
pub(crate) fn verify(what: &str, ranges: &[Range<usize>], own: &[usize]) -> Option<f64> {
    let share = remote_share(ranges, own)?;
    if share > 0.05 {
        tracing::warn!(
            "{:.0} % of {what} lies on other NUMA nodes than it should ({}): free memory there, or choose another by \
             --numa-node",
            100.0 * share,
            format_cpu_list(own)
        );
    }
    Some(share)
}

/// As [`remote_share`], by the lines of `numa_maps`, each of which counts the pages of a mapping by node. A mapping counts
/// with all its pages, those of its neighbours that the kernel has merged with it included.
fn share_in(numa_maps: &str, ranges: &[Range<usize>], own: &[usize]) -> Option<f64> {
    let start = |line: &str| usize::from_str_radix(line.split(' ').next()?, 16).ok();
    let mappings: Vec<(usize, &str)> =
        numa_maps.lines().filter_map(|line| Some((start(line)?, line))).collect();
    let (mut all, mut remote) = (0.0, 0.0);
    for (i, (start, line)) in mappings.iter().enumerate() {
        // Where it ends is not said: at the next one at the latest.
        let end = mappings.get(i + 1).map_or(usize::MAX, |next| next.0);
        if !ranges.iter().any(|range| range.start < end && *start < range.end) {
            continue;
        }
        let number = |field: &str, name: &str| field.strip_prefix(name)?.parse::<f64>().ok();
        let page = line.split(' ').find_map(|field| number(field, "kernelpagesize_kB=")).unwrap_or(4.0);
        for (node, pages) in line.split(' ').filter_map(|field| field.strip_prefix('N')?.split_once('=')) {
            let (Ok(node), Ok(pages)) = (node.parse::<usize>(), pages.parse::<f64>()) else { continue };
            all += pages * page;
            remote += if own.contains(&node) { 0.0 } else { pages * page };
        }
    }
    (all > 0.0).then(|| remote / all)
}

/// Addresses in all of `ranges`, evenly far apart.
fn sample(ranges: &[Range<usize>]) -> Vec<usize> {
    let bytes: usize = ranges.iter().map(ExactSizeIterator::len).sum();
    let step = STEP.max(bytes.div_ceil(SAMPLES).next_multiple_of(STEP));
    ranges.iter().flat_map(|range| range.clone().step_by(step)).collect()
}

fn share_outside(pages: &[Option<usize>], own: &[usize]) -> Option<f64> {
    let mapped = pages.iter().flatten().count();
    let remote = pages.iter().flatten().filter(|node| !own.contains(node)).count();
    (mapped > 0).then(|| remote as f64 / mapped as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::topology::fake::{Machine, Numbering, put};

    fn machine(nodes_per_package: usize) -> (tempfile::TempDir, Topology) {
        let machine = Machine {
            packages: 2,
            nodes_per_package,
            l3_per_node: 4 / nodes_per_package,
            cores_per_l3: 2,
            smt: 1,
            numbering: Numbering::PackagesInterleaved,
        };
        let root = tempfile::tempdir().unwrap();
        machine.write(root.path(), &[]);
        let topology = Topology::from_root(root.path());
        (root, topology)
    }

    fn policy(choice: NumaMemory, topology: &Topology, cpus: &[usize]) -> Option<(Policy, Vec<usize>)> {
        plan(choice, topology, &topology.nodes_of(cpus), 1, &|_| Some(2)).policy
    }

    #[test]
    fn memory_is_bound_to_the_nodes_of_the_threads() {
        let (_root, topology) = machine(2);
        // Even CPUs are in the first socket.
        let bind = |cpus: &[usize]| policy(NumaMemory::Bind, &topology, cpus);
        assert_eq!(bind(&[0, 2]), Some((Policy::Bind, vec![0])));
        assert_eq!(bind(&[0, 14]), Some((Policy::Bind, vec![0, 1])));
        assert_eq!(bind(&(0..16).collect::<Vec<_>>()), None, "first touch does it");
        assert_eq!(policy(NumaMemory::Default, &topology, &[0]), None);
        let all = Some((Policy::Interleave, vec![0, 1, 2, 3]));
        assert_eq!(policy(NumaMemory::Interleave, &topology, &[0]), all);
    }

    #[test]
    fn one_node_needs_nothing() {
        for choice in [NumaMemory::Bind, NumaMemory::Interleave, NumaMemory::Default] {
            let plan = plan(choice, &Topology::flat(&[0, 1]), &[0], u64::MAX, &|_| Some(0));
            assert_eq!(plan, Plan { policy: None, warning: None });
        }
    }

    #[test]
    fn nodes_without_memory_or_with_too_little_are_left_alone() {
        let (root, topology) = machine(1);
        let tight = plan(NumaMemory::Bind, &topology, &[0], 100, &|_| Some(99));
        assert_eq!(tight.policy, None);
        assert!(tight.warning.unwrap().contains("--numa-memory interleave"));
        // What the system does not tell does not stand in the way.
        assert!(plan(NumaMemory::Bind, &topology, &[0], 100, &|_| None).policy.is_some());
        put(&root.path().join("sys/devices/system/node/node0/meminfo"), "Node 0 MemTotal: 0 kB");
        let topology = Topology::from_root(root.path());
        assert_eq!(policy(NumaMemory::Interleave, &topology, &[0]), None, "one node with memory is left");
    }

    #[test]
    fn mappings_tell_by_node_how_many_pages_they_have() {
        let maps = "\
            10000 default file=/bin/x mapped=9 N0=9 kernelpagesize_kB=4\n\
            200000 bind:0 anon=4 dirty=4 N0=3 N1=1 kernelpagesize_kB=2048\n\
            a00000 default\n\
            b00000 default anon=512 N1=512 kernelpagesize_kB=4\n";
        let share = |range: Range<usize>| share_in(maps, std::slice::from_ref(&range), &[0]);
        assert_eq!(share(0x200000..0xa00000), Some(0.25));
        assert_eq!(share(0x300000..0x301000), Some(0.25), "within a mapping");
        assert_eq!(share(0xa00000..0xb00000), None, "no page is there");
        assert_eq!(share_in(maps, &[0x200000..0xa00000, 0xb00000..0xb10000], &[0]), Some(0.4));
        assert_eq!(share_in("nonsense\n", &[], &[0]), None);
    }

    #[test]
    fn free_memory_counts_cached_files() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(free_bytes(root.path(), 1), None);
        let text = "Node 1 MemTotal:  9 kB\nNode 1 MemFree:   3 kB\nNode 1 Active(file): 2 kB\nNode 1 Inactive(file): 1 kB";
        put(&root.path().join("sys/devices/system/node/node1/meminfo"), text);
        assert_eq!(free_bytes(root.path(), 1), Some(6 << 10));
    }

    #[test]
    fn remote_pages_are_counted_among_those_that_are_there() {
        assert_eq!(share_outside(&[Some(0), Some(1), None, Some(1), Some(1)], &[0, 2]), Some(0.75));
        assert_eq!(share_outside(&[None], &[0]), None);
        assert_eq!(sample(&[0..1, STEP..2 * STEP + 1]), [0, STEP, 2 * STEP]);
        assert!(sample(&[Range { start: 0, end: 1 << 40 }]).len() <= SAMPLES);
    }
}
