//! Machines written out as sysfs trees, for the tests of the topology's users as well.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// How the firmware numbers the CPUs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Numbering {
    /// All first threads package by package, then all second threads: EPYC's usual order.
    ThreadsLast,
    /// Packages take turns (0, 2, 4... in package 0), and the second threads follow.
    PackagesInterleaved,
    /// Both threads of a core are neighbours (0 and 1).
    ThreadsAdjacent,
}

/// The shape of a machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) packages: usize,
    pub(crate) nodes_per_package: usize,
    pub(crate) l3_per_node: usize,
    pub(crate) cores_per_l3: usize,
    pub(crate) smt: usize,
    pub(crate) numbering: Numbering,
}

impl Machine {
    pub(crate) fn cores_per_package(&self) -> usize {
        self.nodes_per_package * self.l3_per_node * self.cores_per_l3
    }

    pub(crate) fn cpu_id(&self, package: usize, core: usize, thread: usize) -> usize {
        let cores = self.packages * self.cores_per_package();
        let in_order = package * self.cores_per_package() + core;
        match self.numbering {
            Numbering::ThreadsLast => thread * cores + in_order,
            Numbering::PackagesInterleaved => thread * cores + core * self.packages + package,
            Numbering::ThreadsAdjacent => in_order * self.smt + thread,
        }
    }

    /// The CPUs of the given cores of a package, all threads.
    fn threads_of(&self, package: usize, cores: std::ops::Range<usize>) -> Vec<usize> {
        let mut ids: Vec<usize> = cores
            .flat_map(|core| (0..self.smt).map(move |thread| self.cpu_id(package, core, thread)))
            .collect();
        ids.sort_unstable();
        ids
    }

    /// Writes the tree below `root`; `offline` CPUs stay in the directory listing only, as the kernel does.
    pub(crate) fn write(&self, root: &Path, offline: &[usize]) {
        let system = root.join("sys/devices/system");
        let online = |ids: Vec<usize>| ids.into_iter().filter(|id| !offline.contains(id)).collect::<Vec<_>>();
        let mut all = Vec::new();
        for package in 0..self.packages {
            for core in 0..self.cores_per_package() {
                for id in self.threads_of(package, core..core + 1) {
                    fs::create_dir_all(system.join(format!("cpu/cpu{id}"))).unwrap();
                    if offline.contains(&id) {
                        put(&system.join(format!("cpu/cpu{id}/online")), "0");
                        continue;
                    }
                    all.push(id);
                    let first = core / self.cores_per_l3 * self.cores_per_l3;
                    let l3 = online(self.threads_of(package, first..first + self.cores_per_l3));
                    let dir = system.join(format!("cpu/cpu{id}"));
                    put(&dir.join("topology/physical_package_id"), &package.to_string());
                    put(&dir.join("topology/core_id"), &core.to_string());
                    let siblings = online(self.threads_of(package, core..core + 1));
                    put(&dir.join("topology/thread_siblings_list"), &list(&siblings));
                    put(&dir.join("cache/index0/level"), "1");
                    put(&dir.join("cache/index3/level"), "3");
                    put(&dir.join("cache/index3/size"), "32768K");
                    put(&dir.join("cache/index3/shared_cpu_list"), &list(&l3));
                }
            }
            let cores = self.l3_per_node * self.cores_per_l3;
            for node in 0..self.nodes_per_package {
                let ids = online(self.threads_of(package, node * cores..(node + 1) * cores));
                let number = package * self.nodes_per_package + node;
                let dir = system.join(format!("node/node{number}"));
                put(&dir.join("cpulist"), &list(&ids));
                let total = 64 << 20;
                put(
                    &dir.join("meminfo"),
                    &format!("Node {number} MemTotal:       {total} kB\nNode {number} MemFree: 1024 kB"),
                );
            }
        }
        put(&system.join("cpu/online"), &list(&all));
    }
}

pub(crate) fn put(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("{text}\n")).unwrap();
}

fn list(ids: &[usize]) -> String {
    ids.iter().fold(String::new(), |mut text, id| {
        let comma = if text.is_empty() { "" } else { "," };
        write!(text, "{comma}{id}").unwrap();
        text
    })
}
