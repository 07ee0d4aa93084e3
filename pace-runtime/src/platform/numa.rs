//! On which NUMA nodes an engine's memory lies: set before it is touched first, looked up afterwards.

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
/// `own` that needs `need` bytes for its weights. What the system refuses is a warning, once.
pub(crate) fn place(choice: NumaMemory, own: &[usize], need: u64) {
    static REFUSED: Once = Once::new();
    let free = |node: usize| free_bytes(Path::new("/"), node);
    let plan = plan(choice, &Topology::detect(), own, need, &free);
    if let Some(warning) = plan.warning {
        tracing::warn!("{warning}");
    }
    let Some((policy, nodes)) = plan.policy else { return };
    let list = format_cpu_list(&nodes);
    match sys::set_memory_policy(policy, &nodes) {
        Ok(()) => tracing::info!("memory policy: {} on NUMA nodes {list}", choice.name()),
        Err(error) => REFUSED.call_once(|| {
            tracing::warn!("memory cannot be placed on NUMA nodes {list}: {error}; the kernel's rule holds");
        }),
    }
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
pub(crate) fn remote_share(ranges: &[Range<usize>], own: &[usize]) -> Option<f64> {
    if Topology::detect().nodes().len() < 2 {
        return None;
    }
    let nodes = sys::nodes_of(&sample(ranges)).ok()?;
    share_outside(&nodes, own)
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
