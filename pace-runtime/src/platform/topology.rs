//! Which CPUs are online and what they share: package, core, SMT siblings, L3 cache, NUMA node.
//!
//! Source: Linux sysfs, `/sys/devices/system/cpu` and `/sys/devices/system/node`. Every file may be missing (a
//! container, an emulator, an old kernel): then the CPU is asked itself, and what it does not say either degrades to
//! "each CPU is its own core, in package 0, on node 0, with an L3 cache shared by its package".

#[cfg(target_arch = "x86_64")]
mod cpuid;
#[cfg(test)]
pub(crate) mod fake;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::affinity::process_affinity;

/// CPU numbers above this are not believed; Linux itself stops at 8192.
pub(super) const MAX_CPUS: usize = 1 << 16;

/// One online CPU (a hardware thread) and its place in the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// The number that the kernel gives to this CPU.
    pub id: usize,
    /// The socket.
    pub package: usize,
    /// The core's number inside its package; neither dense nor unique across packages.
    pub core_id: usize,
    /// The online CPUs of the same physical core, itself included, ascending.
    pub siblings: Vec<usize>,
    /// The NUMA node whose memory is local.
    pub node: usize,
    /// The L3 group (CCX on EPYC), named by the lowest online CPU in it.
    pub l3: usize,
}

impl Cpu {
    /// A name for the physical core that is unique in the machine: the lowest online CPU in it.
    pub fn core(&self) -> usize {
        self.siblings.first().copied().unwrap_or(self.id)
    }
}

/// What a CPU says of itself: names of what it shares with others, equal for all that share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    package: usize,
    /// The physical core, unique in the machine.
    core: usize,
    /// The third-level cache; none where there is no such cache or the CPU does not tell.
    l3: Option<usize>,
}

/// A part of the machine's memory and the CPUs next to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The number that the kernel gives to this node.
    pub id: usize,
    /// Its online CPUs, ascending; none where it is memory alone.
    pub cpus: Vec<usize>,
    /// Bytes of its memory; 0 where it is CPUs alone, none where the system does not tell.
    pub bytes: Option<u64>,
}

/// The online CPUs and the NUMA nodes of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    cpus: Vec<Cpu>,
    nodes: Vec<Node>,
}

impl Topology {
    /// Reads this machine's topology, by sysfs and where that is not there by asking the CPUs.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        let place = cpuid::place;
        #[cfg(not(target_arch = "x86_64"))]
        let place = |_| None;
        Self::read(Path::new("/"), process_affinity, &place)
    }

    /// Reads the topology below `root`, the directory that holds `sys`.
    pub fn from_root(root: &Path) -> Self {
        Self::read(root, Vec::new, &|_| None)
    }

    /// Takes `ids` where sysfs shows no CPU, and asks `place` about those of which it does not tell all.
    fn read(root: &Path, ids: impl Fn() -> Vec<usize>, place: &dyn Fn(usize) -> Option<Place>) -> Self {
        let cpu_dir = root.join("sys/devices/system/cpu");
        let online = Some(online_cpus(&cpu_dir)).filter(|online| !online.is_empty()).unwrap_or_else(ids);
        let nodes = read_nodes(&root.join("sys/devices/system/node"), &online);
        let mut cpus: Vec<Cpu> = online.iter().map(|&id| read_cpu(&cpu_dir, id, &online, &nodes)).collect();
        group_cores_by_id(&cpu_dir, &mut cpus);
        fill_in(&cpu_dir, &mut cpus, place);
        group_l3_by_package(&mut cpus);
        Self { cpus, nodes }
    }

    /// A machine of which only the CPU numbers are known: each is its own core, all on node 0 behind one L3.
    pub fn flat(ids: &[usize]) -> Self {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let l3 = ids.first().copied().unwrap_or(0);
        let cpu = |id| Cpu { id, package: 0, core_id: id, siblings: vec![id], node: 0, l3 };
        let cpus = ids.iter().copied().map(cpu).collect();
        Self { cpus, nodes: vec![Node { id: 0, cpus: ids, bytes: None }] }
    }

    /// The online CPUs, ascending by number.
    pub fn cpus(&self) -> &[Cpu] {
        &self.cpus
    }

    /// The online CPU with this number.
    pub fn cpu(&self, id: usize) -> Option<&Cpu> {
        self.cpus.binary_search_by_key(&id, |cpu| cpu.id).ok().map(|at| &self.cpus[at])
    }

    /// The NUMA nodes, ascending by number; at least one.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The nodes of the CPUs `ids`, ascending, each once.
    pub fn nodes_of(&self, ids: &[usize]) -> Vec<usize> {
        let nodes: BTreeSet<usize> = ids.iter().filter_map(|&id| self.cpu(id)).map(|cpu| cpu.node).collect();
        nodes.into_iter().collect()
    }

    /// The number of sockets.
    pub fn packages(&self) -> usize {
        self.distinct(|cpu| cpu.package)
    }

    /// The number of physical cores.
    pub fn cores(&self) -> usize {
        self.distinct(Cpu::core)
    }

    /// The number of third-level caches (CCXs on EPYC).
    pub fn l3_groups(&self) -> usize {
        self.distinct(|cpu| cpu.l3)
    }

    fn distinct(&self, key: impl Fn(&Cpu) -> usize) -> usize {
        self.cpus.iter().map(key).collect::<BTreeSet<_>>().len()
    }
}

/// Bytes of all third-level caches below `root` together; `None` when sysfs does not tell.
pub fn l3_bytes(root: &Path) -> Option<usize> {
    let cpus = Topology::from_root(root);
    let caches = cpus.cpus().iter().map(|cpu| Some((cpu.l3, l3_of(root, cpu.id)?)));
    let caches = caches.collect::<Option<BTreeMap<_, _>>>()?;
    (!caches.is_empty()).then(|| caches.values().sum())
}

/// Bytes of the smallest third-level cache that one of `cpus` has; `None` when sysfs does not tell.
pub fn smallest_l3(root: &Path, cpus: &[usize]) -> Option<usize> {
    cpus.iter().map(|&cpu| l3_of(root, cpu)).collect::<Option<Vec<_>>>()?.into_iter().min()
}

/// Bytes of the third-level cache of a CPU.
fn l3_of(root: &Path, cpu: usize) -> Option<usize> {
    let cache_dir = root.join(format!("sys/devices/system/cpu/cpu{cpu}/cache"));
    let size = fs::read_to_string(l3_index(&cache_dir)?.join("size")).ok()?;
    size.trim().strip_suffix('K')?.parse::<usize>().ok()?.checked_mul(1024)
}

/// Reads the kernel's list notation (`0-3,8,10-11`) into ascending distinct numbers; `None` when it is malformed
/// or names a CPU above 65535. An empty list is valid.
pub fn parse_cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MAX_CPUS {
            return None;
        }
        cpus.extend(first..=last);
        if cpus.len() > MAX_CPUS {
            return None;
        }
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

/// Writes numbers as the kernel does (`0-3,8`): ascending, runs as ranges.
pub fn format_cpu_list(ids: &[usize]) -> String {
    let sorted: BTreeSet<usize> = ids.iter().copied().collect();
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for id in sorted {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == id => *last = id,
            _ => runs.push((id, id)),
        }
    }
    let text = |(first, last): (usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.into_iter().map(text).collect::<Vec<_>>().join(",")
}

fn read_list(path: &Path) -> Option<Vec<usize>> {
    parse_cpu_list(&fs::read_to_string(path).ok()?)
}

/// Reads a small number; the kernel writes -1 for "unknown", which counts as missing.
fn read_number(path: &Path) -> Option<usize> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The numbers N of the entries `<prefix>N` of a directory, ascending.
fn numbered_entries(dir: &Path, prefix: &str) -> Vec<usize> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut numbers: Vec<usize> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix(prefix)?.parse().ok())
        .filter(|&number| number < MAX_CPUS)
        .collect();
    numbers.sort_unstable();
    numbers
}

fn online_cpus(cpu_dir: &Path) -> Vec<usize> {
    if let Some(online) = read_list(&cpu_dir.join("online")).filter(|online| !online.is_empty()) {
        return online;
    }
    // CPU 0 of most machines cannot be taken offline and has no `online` file.
    let is_online = |id: &usize| read_number(&cpu_dir.join(format!("cpu{id}/online"))) != Some(0);
    numbered_entries(cpu_dir, "cpu").into_iter().filter(is_online).collect()
}

/// The nodes that sysfs shows; a kernel without NUMA shows none, which is one node with all CPUs.
fn read_nodes(node_dir: &Path, online: &[usize]) -> Vec<Node> {
    let node = |id: usize| {
        let dir = node_dir.join(format!("node{id}"));
        let mut cpus = read_list(&dir.join("cpulist")).unwrap_or_default();
        cpus.retain(|cpu| online.binary_search(cpu).is_ok());
        Node { id, cpus, bytes: node_bytes(&dir, &["MemTotal"]) }
    };
    let nodes: Vec<Node> = numbered_entries(node_dir, "node").into_iter().map(node).collect();
    if nodes.is_empty() { vec![Node { id: 0, cpus: online.to_vec(), bytes: None }] } else { nodes }
}

/// The sum of fields of a node's `meminfo`, of which each line begins with `Node N`.
pub(super) fn node_bytes(node: &Path, fields: &[&str]) -> Option<u64> {
    let text = fs::read_to_string(node.join("meminfo")).ok()?;
    let field = |name: &&str| {
        let mut values = text.lines().filter_map(|line| {
            let (found, value) = line.splitn(3, ' ').nth(2)?.split_once(':')?;
            (found == *name).then(|| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())?
        });
        values.next()?.checked_mul(1024)
    };
    fields.iter().map(field).sum()
}

fn read_cpu(cpu_dir: &Path, id: usize, online: &[usize], nodes: &[Node]) -> Cpu {
    let dir = cpu_dir.join(format!("cpu{id}"));
    let topology = dir.join("topology");
    let siblings = ["core_cpus_list", "thread_siblings_list"]
        .iter()
        .find_map(|name| shared_list(&topology.join(name), id, online))
        .unwrap_or_else(|| vec![id]);
    Cpu {
        id,
        package: read_number(&topology.join("physical_package_id")).unwrap_or(0),
        core_id: read_number(&topology.join("core_id")).unwrap_or(id),
        siblings,
        node: nodes.iter().find(|node| node.cpus.contains(&id)).map_or(0, |node| node.id),
        l3: l3_group(&dir.join("cache"), id, online).unwrap_or(UNKNOWN),
    }
}

/// A list of CPUs that share something with `id`, without the offline ones; a list that leaves `id` out is wrong.
fn shared_list(path: &Path, id: usize, online: &[usize]) -> Option<Vec<usize>> {
    let mut list = read_list(path)?;
    list.retain(|cpu| online.binary_search(cpu).is_ok());
    list.contains(&id).then_some(list)
}

fn l3_group(cache_dir: &Path, id: usize, online: &[usize]) -> Option<usize> {
    shared_list(&l3_index(cache_dir)?.join("shared_cpu_list"), id, online)?.first().copied()
}

/// The directory of a CPU's third-level cache.
fn l3_index(cache_dir: &Path) -> Option<PathBuf> {
    let is_l3 = |index: &usize| read_number(&cache_dir.join(format!("index{index}/level"))) == Some(3);
    let index = numbered_entries(cache_dir, "index").into_iter().find(is_l3)?;
    Some(cache_dir.join(format!("index{index}")))
}

/// Where no sibling list exists, CPUs that name the same package, die and core are siblings.
fn group_cores_by_id(cpu_dir: &Path, cpus: &mut [Cpu]) {
    let mut cores: BTreeMap<(usize, usize, usize), Vec<usize>> = BTreeMap::new();
    let mut keys = Vec::new();
    for cpu in cpus.iter() {
        let topology = cpu_dir.join(format!("cpu{}/topology", cpu.id));
        let has_list =
            topology.join("core_cpus_list").exists() || topology.join("thread_siblings_list").exists();
        let key = (!has_list && topology.join("core_id").exists())
            .then(|| (cpu.package, read_number(&topology.join("die_id")).unwrap_or(0), cpu.core_id));
        if let Some(key) = key {
            cores.entry(key).or_default().push(cpu.id);
        }
        keys.push(key);
    }
    for (cpu, key) in cpus.iter_mut().zip(keys) {
        if let Some(siblings) = key.and_then(|key| cores.get(&key)) {
            cpu.siblings.clone_from(siblings);
        }
    }
}

/// Takes from `place` the core and package of CPUs without any in sysfs, and the L3 group of those without one.
fn fill_in(cpu_dir: &Path, cpus: &mut [Cpu], place: &dyn Fn(usize) -> Option<Place>) {
    let core_files = ["core_cpus_list", "thread_siblings_list", "core_id"];
    let has_core =
        |id| core_files.iter().any(|name| cpu_dir.join(format!("cpu{id}/topology/{name}")).exists());
    let (mut cores, mut caches) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
    for (at, cpu) in cpus.iter_mut().enumerate() {
        let (no_core, no_l3) = (!has_core(cpu.id), cpu.l3 == UNKNOWN);
        let Some(place) = (no_core || no_l3).then(|| place(cpu.id)).flatten() else { continue };
        if no_core {
            (cpu.package, cpu.core_id) = (place.package, place.core);
            cores.entry(place.core).or_default().push(at);
        }
        if let Some(l3) = place.l3.filter(|_| no_l3) {
            caches.entry(l3).or_default().push(at);
        }
    }
    for members in cores.values() {
        let siblings: Vec<usize> = members.iter().map(|&at| cpus[at].id).collect();
        members.iter().for_each(|&at| cpus[at].siblings.clone_from(&siblings));
    }
    for members in caches.values() {
        let lowest = cpus[members[0]].id;
        members.iter().for_each(|&at| cpus[at].l3 = lowest);
    }
}

/// An L3 group that the system does not tell.
const UNKNOWN: usize = usize::MAX;

/// Where the third-level cache is not described, one per package and node is the best guess.
fn group_l3_by_package(cpus: &mut [Cpu]) {
    let mut lowest: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for cpu in cpus.iter_mut() {
        if cpu.l3 == UNKNOWN {
            cpu.l3 = *lowest.entry((cpu.package, cpu.node)).or_insert(cpu.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::{Machine, Numbering, put};
    use super::*;

    /// Two sockets of an EPYC with two cores in each CCX.
    const EPYC: Machine = Machine {
        packages: 2,
        nodes_per_package: 1,
        l3_per_node: 4,
        cores_per_l3: 2,
        smt: 2,
        numbering: Numbering::ThreadsLast,
    };

    fn read(machine: &Machine, offline: &[usize]) -> Topology {
        let root = tempfile::tempdir().unwrap();
        machine.write(root.path(), offline);
        Topology::from_root(root.path())
    }

    #[test]
    fn cpu_lists_are_read_or_refused() {
        assert_eq!(parse_cpu_list("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(parse_cpu_list("5,1-2,2"), Some(vec![1, 2, 5]));
        assert_eq!(parse_cpu_list("\n"), Some(vec![]));
        assert_eq!(format_cpu_list(&[8, 2, 1, 0, 10, 11, 2]), "0-2,8,10-11");
        assert_eq!(format_cpu_list(&[]), "");
        for bad in ["3-1", "a", "1-", "-1", "0-4000000000", "99999999999999999999999", "1-2-3"] {
            assert_eq!(parse_cpu_list(bad), None, "{bad}");
        }
    }

    #[test]
    fn two_socket_epyc_in_every_nps_mode() {
        for nodes in [1, 2, 4] {
            let machine = Machine { nodes_per_package: nodes, l3_per_node: 4 / nodes, ..EPYC };
            let topology = read(&machine, &[]);
            assert_eq!(topology.cpus().len(), 32);
            assert_eq!((topology.packages(), topology.cores(), topology.l3_groups()), (2, 16, 8));
            assert_eq!(topology.nodes().len(), 2 * nodes);
            let first = &topology.nodes()[0];
            assert_eq!((first.id, first.cpus.len(), first.bytes), (0, 16 / nodes, Some(64 << 30)));
            assert_eq!(topology.nodes_of(&[31, 0, 1, 999]), [0, 2 * nodes - 1]);
            let last = topology.cpu(31).expect("CPU 31 is online");
            assert_eq!((last.package, last.core_id, last.node), (1, 7, 2 * nodes - 1));
            assert_eq!((last.siblings.as_slice(), last.l3), ([15, 31].as_slice(), 14));
        }
    }

    #[test]
    fn third_level_caches_are_counted_once_each() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(l3_bytes(root.path()), None);
        EPYC.write(root.path(), &[]);
        assert_eq!(l3_bytes(root.path()), Some(8 * (32 << 20)));
        assert_eq!(smallest_l3(root.path(), &[0, 1]), Some(32 << 20));
        assert_eq!(smallest_l3(root.path(), &[0, 100_000]), None);
    }

    #[test]
    fn interleaved_and_adjacent_numbers() {
        let topology = read(&Machine { numbering: Numbering::PackagesInterleaved, ..EPYC }, &[]);
        let cpu = topology.cpu(3).expect("CPU 3 is online");
        assert_eq!((cpu.package, cpu.core_id, cpu.node, cpu.l3), (1, 1, 1, 1));
        assert_eq!(cpu.siblings, [3, 19]);
        let topology = read(&Machine { numbering: Numbering::ThreadsAdjacent, ..EPYC }, &[]);
        assert_eq!(topology.cpu(3).expect("CPU 3 is online").siblings, [2, 3]);
    }

    #[test]
    fn offline_cpus_are_left_out_everywhere() {
        let topology = read(&EPYC, &[0, 18]);
        assert_eq!(topology.cpus().len(), 30);
        assert!(topology.cpu(0).is_none());
        let sibling = topology.cpu(16).expect("CPU 16 is online");
        assert_eq!((sibling.siblings.as_slice(), sibling.l3), ([16].as_slice(), 1));
        assert_eq!(topology.cpu(2).expect("CPU 2 is online").siblings, [2]);
    }

    #[test]
    fn smt_off_has_one_cpu_a_core() {
        let topology = read(&Machine { smt: 1, ..EPYC }, &[]);
        assert_eq!(topology.cpus().len(), 16);
        assert!(topology.cpus().iter().all(|cpu| cpu.siblings == [cpu.id]));
    }

    #[test]
    fn missing_files_degrade() {
        let root = tempfile::tempdir().unwrap();
        assert!(Topology::from_root(root.path()).cpus().is_empty());
        put(&root.path().join("sys/devices/system/cpu/online"), "1-2");
        let bare = Topology::from_root(root.path());
        assert_eq!(bare.cpus().iter().map(Cpu::core).collect::<Vec<_>>(), [1, 2]);
        assert!(bare.cpus().iter().all(|cpu| (cpu.package, cpu.node, cpu.l3) == (0, 0, 1)));
        assert_eq!(bare, Topology::flat(&[2, 1, 1]));
    }

    #[test]
    fn a_cpu_tells_what_sysfs_leaves_out() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("sys/devices/system/cpu");
        let ids = || (0..8).collect();
        // Two packages of one L3 and two cores of two threads; the last CPU may not be asked.
        let place = |id: usize| (id < 7).then_some(Place { package: id / 4, core: id / 2, l3: Some(id / 4) });
        let topology = Topology::read(root.path(), ids, &place);
        let column = |of: fn(&Cpu) -> usize| topology.cpus().iter().map(of).collect::<Vec<_>>();
        assert_eq!(column(|cpu| cpu.package), [0, 0, 0, 0, 1, 1, 1, 0]);
        assert_eq!(column(Cpu::core), [0, 0, 2, 2, 4, 4, 6, 7]);
        assert_eq!(column(|cpu| cpu.l3), [0, 0, 0, 0, 4, 4, 4, 7]);
        // What sysfs tells goes before.
        put(&dir.join("online"), "0-3");
        put(&dir.join("cpu3/topology/core_cpus_list"), "3");
        put(&dir.join("cpu3/topology/physical_package_id"), "5");
        put(&dir.join("cpu3/cache/index3/level"), "3");
        put(&dir.join("cpu3/cache/index3/shared_cpu_list"), "3");
        let topology = Topology::read(root.path(), Vec::new, &place);
        let cpu = topology.cpu(3).expect("CPU 3 is online");
        assert_eq!((cpu.package, cpu.siblings.as_slice(), cpu.l3), (5, [3].as_slice(), 3));
        assert_eq!(topology.cpu(2).expect("CPU 2 is online").siblings, [2]);
    }

    #[test]
    fn without_lists_the_numbers_of_core_and_cpu_directory_decide() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("sys/devices/system/cpu");
        for (id, core) in [(0, 0), (1, 4), (2, 0), (3, 4)] {
            put(&dir.join(format!("cpu{id}/topology/core_id")), &core.to_string());
            put(&dir.join(format!("cpu{id}/topology/physical_package_id")), "0");
        }
        put(&dir.join("cpu3/online"), "0");
        let topology = Topology::from_root(root.path());
        assert_eq!(topology.cpus().iter().map(Cpu::core).collect::<Vec<_>>(), [0, 1, 0]);
        assert_eq!(topology.cpu(1).expect("CPU 1 is online").siblings, [1]);
    }

    #[test]
    fn this_machine_has_cpus_that_are_their_own_siblings() {
        assert!(Topology::detect().cpus().iter().all(|cpu| cpu.siblings.contains(&cpu.id)));
    }
}
