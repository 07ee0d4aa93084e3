//! [`partition`]: which CPUs each instance gets.

use std::num::NonZeroUsize;

use crate::EngineConfig;
use crate::engine::Sharing;
use crate::platform::topology::{Cpu, Topology};

/// What one instance has of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its CPUs, one thread each.
    pub cpus: Vec<usize>,
    /// The NUMA nodes for its memory, in order: those of its CPUs unless others were asked for.
    pub nodes: Vec<usize>,
}

/// A machine that cannot be divided so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    /// Nothing was asked for.
    #[error("at least one instance is needed")]
    NoInstances,
    /// Each instance needs a core.
    #[error("{instances} instances need {instances} cores, and there are {cores}")]
    TooFewCores {
        /// Instances asked for.
        instances: usize,
        /// Cores that the process may use.
        cores: usize,
    },
}

impl Part {
    /// The part that has these CPUs.
    pub fn of_cpus(topology: &Topology, cpus: Vec<usize>) -> Self {
        let nodes = topology.nodes_of(&cpus);
        Self { cpus, nodes }
    }

    /// `config` for this part of the machine: its CPUs, and its share of the memory for KV caches. Threads that may leave
    /// the CPUs of `config` may leave these, and their memory is not bound either.
    pub fn configure(&self, config: &EngineConfig, sharing: Sharing) -> EngineConfig {
        let cpus = self.cpus.clone();
        let (within, memory_nodes) =
            if config.is_confined() { (cpus.clone(), self.nodes.clone()) } else { Default::default() };
        EngineConfig { cpus, within, memory_nodes, sharing, ..config.clone() }
    }

    /// How this part shares memory with others, of which it is one.
    pub fn sharing(&self, parts: &[Self]) -> Sharing {
        let number = |n| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
        let here = parts.iter().filter(|part| part.nodes.iter().any(|node| self.nodes.contains(node)));
        Sharing { all: number(parts.len()), nodes: number(here.count()) }
    }
}

/// Divides `cpus`, one of each core in the order of the [`ThreadBudget`](crate::platform::ThreadBudget), among
/// `instances`: by NUMA node, then by L3 group, then evenly. Groups stay whole as long as the numbers divide.
///
/// # Errors
/// There are fewer CPUs than instances, or no instance is asked for.
pub fn partition(topology: &Topology, cpus: &[usize], instances: usize) -> Result<Vec<Part>, PartitionError> {
    if instances == 0 {
        return Err(PartitionError::NoInstances);
    }
    if instances > cpus.len() {
        return Err(PartitionError::TooFewCores { instances, cores: cpus.len() });
    }
    let of = |id: usize, what: fn(&Cpu) -> usize| topology.cpu(id).map_or(0, what);
    let nodes = groups(cpus, &|id| of(id, |cpu| cpu.node));
    let lists = divide(nodes, instances, &|node, parts| {
        let l3s = groups(&node, &|id| of(id, |cpu| cpu.l3));
        divide(l3s, parts, &|l3, parts| evenly(&l3, parts))
    });
    Ok(lists.into_iter().map(|cpus| Part::of_cpus(topology, cpus)).collect())
}

/// `groups` among `parts`: whole groups where the numbers divide, else each group among its share of the parts by
/// `within`, else all evenly.
fn divide(
    groups: Vec<Vec<usize>>,
    parts: usize,
    within: &dyn Fn(Vec<usize>, usize) -> Vec<Vec<usize>>,
) -> Vec<Vec<usize>> {
    let count = groups.len();
    if count.is_multiple_of(parts) {
        return groups.chunks(count / parts).map(<[Vec<usize>]>::concat).collect();
    }
    if parts.is_multiple_of(count) && groups.iter().all(|group| group.len() >= parts / count) {
        return groups.into_iter().flat_map(|group| within(group, parts / count)).collect();
    }
    evenly(&groups.concat(), parts)
}

/// Runs whose lengths differ by one at most.
fn evenly(cpus: &[usize], parts: usize) -> Vec<Vec<usize>> {
    let border = |part: usize| part * cpus.len() / parts;
    (0..parts).map(|part| cpus[border(part)..border(part + 1)].to_vec()).collect()
}

/// The CPUs by what `key` says of each, in the order in which that comes up first.
fn groups(cpus: &[usize], key: &dyn Fn(usize) -> usize) -> Vec<Vec<usize>> {
    let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
    for &cpu in cpus {
        match groups.iter_mut().find(|(known, _)| *known == key(cpu)) {
            Some((_, group)) => group.push(cpu),
            None => groups.push((key(cpu), vec![cpu])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::cores::CoreRequest;
    use crate::platform::thread_budget;
    use crate::platform::topology::fake::{Machine, Numbering};
    use proptest::prelude::*;
    use std::sync::LazyLock;

    /// Two sockets of two nodes of two CCXs of three cores.
    const EPYC: Machine = Machine {
        packages: 2,
        nodes_per_package: 2,
        l3_per_node: 2,
        cores_per_l3: 3,
        smt: 2,
        numbering: Numbering::PackagesInterleaved,
    };

    fn machine() -> (Topology, Vec<usize>) {
        let root = tempfile::tempdir().unwrap();
        EPYC.write(root.path(), &[]);
        let topology = Topology::from_root(root.path());
        let all: Vec<usize> = (0..64).collect();
        let cpus = thread_budget(&topology, &all, None, &CoreRequest::default()).unwrap().cpus;
        (topology, cpus)
    }

    #[test]
    fn instances_keep_to_a_node_and_an_l3_group_where_they_can() {
        let (topology, cpus) = machine();
        let parts = |n| partition(&topology, &cpus, n).unwrap();
        let nodes = |n| parts(n).iter().map(|p| p.nodes.clone()).collect::<Vec<_>>();
        assert_eq!(nodes(1), [[0, 1, 2, 3]]);
        assert_eq!(nodes(2), [[0, 1], [2, 3]], "a socket of two nodes each");
        assert_eq!(nodes(4), [[0], [1], [2], [3]]);
        assert_eq!(nodes(8), [0, 0, 1, 1, 2, 2, 3, 3].map(|node| [node]));
        let l3s = |part: &Part| -> std::collections::BTreeSet<usize> {
            part.cpus.iter().map(|&id| topology.cpu(id).unwrap().l3).collect()
        };
        assert!(parts(8).iter().all(|part| part.cpus.len() == 3 && l3s(part).len() == 1));
        assert!(parts(16).iter().all(|part| l3s(part).len() == 1));
        assert!(parts(24).iter().all(|part| part.cpus.len() == 1));
        // Three do not divide four nodes: as even as can be.
        assert_eq!(parts(3).iter().map(|p| p.cpus.len()).collect::<Vec<_>>(), [8, 8, 8]);
    }

    #[test]
    fn what_cannot_be_divided_is_an_error() {
        let (topology, cpus) = machine();
        assert_eq!(partition(&topology, &cpus, 0), Err(PartitionError::NoInstances));
        let error = PartitionError::TooFewCores { instances: 25, cores: 24 };
        assert_eq!(partition(&topology, &cpus, 25), Err(error));
    }

    proptest! {
        #[test]
        fn every_cpu_belongs_to_one_instance(n in 1usize..=24, cores in 1usize..=24) {
            prop_assume!(n <= cores);
            static EPYC: LazyLock<(Topology, Vec<usize>)> = LazyLock::new(machine);
            let (topology, cpus) = &*EPYC;
            let parts = partition(topology, &cpus[..cores], n).unwrap();
            prop_assert_eq!(parts.len(), n);
            prop_assert!(parts.iter().all(|part| !part.cpus.is_empty()));
            let mut all: Vec<usize> = parts.into_iter().flat_map(|part| part.cpus).collect();
            all.sort_unstable();
            let mut want = cpus[..cores].to_vec();
            want.sort_unstable();
            prop_assert_eq!(all, want);
        }
    }
}
