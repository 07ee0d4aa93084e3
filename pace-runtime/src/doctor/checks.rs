//! The performance guide's checklist, done.

use pace_kernels::{HugePages, Isa, Placement};
use pace_ops::{Backend, OperatorConfig};
use serde::Serialize;

use super::Machine;
use crate::kv_cache::KvCacheKind;
use crate::platform::ThreadBudget;
use crate::platform::topology::format_cpu_list;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It costs speed.
    Warn,
    /// The model cannot run.
    Fail,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at; the same name in every version.
    pub id: &'static str,
    /// How much it matters.
    pub status: Status,
    /// What was found.
    pub value: String,
    /// What to do; empty where nothing is to be done.
    pub advice: String,
}

/// What findings come from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The instruction sets in use.
    pub isa: Isa,
    /// The best that the CPU has.
    pub best_isa: Isa,
    /// The threads.
    pub budget: &'a ThreadBudget,
    /// How memory is asked for.
    pub placement: Placement,
    /// The part of a large buffer that the system put into huge pages.
    pub huge_share: Option<f64>,
    /// Bytes of a model's packed weights, if there is a model.
    pub weight_bytes: Option<u64>,
    /// The kind of KV cache.
    pub kv_cache: KvCacheKind,
    /// The backends that are asked for.
    pub operators: &'a OperatorConfig,
}

/// Every check, in the order of the guide: CPU, threads, memory, huge pages, allocator, KV cache, operators.
pub fn checks(facts: &Facts<'_>) -> Vec<Check> {
    let mut all = vec![
        build(),
        isa(facts),
        threads(facts),
        pinning(facts),
        quota(facts),
        numa(facts),
        memory(facts),
        huge_pages(facts),
        allocator(facts),
        kv_cache(facts),
        operators(facts),
    ];
    all.extend(numa_balancing(facts));
    all.push(frequency(facts));
    all
}

fn kv_cache(facts: &Facts<'_>) -> Check {
    let name = facts.kv_cache.name();
    match facts.kv_cache {
        KvCacheKind::Dynamic => {
            let advice = "all keys and values are copied at every token: leave --kv-cache out, or say bmc";
            warn("kv_cache", name, advice)
        }
        KvCacheKind::Static | KvCacheKind::Bmc => ok("kv_cache", name),
    }
}

fn operators(facts: &Facts<'_>) -> Check {
    // What is left to `auto` is NATIVE only where there is nothing else.
    let native = facts.operators.iter().filter(|&(_, backend)| backend == Backend::Native);
    let native: Vec<_> = native.map(|(operator, _)| operator.name()).collect();
    if native.is_empty() {
        return ok("operators", "none by native");
    }
    let advice =
        "the reference path is many times as slow: leave these out of --op, --op-config and PACE_OP_CONFIG";
    warn("operators", format!("by native: {}", native.join(", ")), advice)
}

fn ok(id: &'static str, value: impl Into<String>) -> Check {
    Check { id, status: Status::Ok, value: value.into(), advice: String::new() }
}

fn warn(id: &'static str, value: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { id, status: Status::Warn, value: value.into(), advice: advice.into() }
}

fn build() -> Check {
    if cfg!(debug_assertions) {
        return warn("build", "debug", "build with cargo build --release: kernels are many times as fast");
    }
    ok("build", "release")
}

fn isa(facts: &Facts<'_>) -> Check {
    let (used, best) = (facts.isa.to_string(), facts.best_isa);
    if facts.isa < best {
        return warn("isa", used, format!("PACE_ISA holds back a CPU that has {best}: unset it"));
    }
    if best < Isa::Avx512Bf16 {
        let advice = "this CPU does not multiply bf16 by itself (AMD EPYC does from Zen 4 on): prompts are read at the \
                      speed of f32";
        return warn("isa", used, advice);
    }
    ok("isa", used)
}

fn threads(facts: &Facts<'_>) -> Check {
    let ThreadBudget { cpus, reason, threads_source, .. } = facts.budget;
    let value = format!("{} ({threads_source}; {reason})", cpus.len());
    if facts.budget.oversubscribed {
        let advice = "more threads than cores or quota wait for each other at every step: leave --threads and \
                      OMP_NUM_THREADS out";
        return warn("threads", value, advice);
    }
    ok("threads", value)
}

fn pinning(facts: &Facts<'_>) -> Check {
    let cpus = format_cpu_list(&facts.budget.cpus);
    if facts.budget.pin {
        return ok("pinning", format!("one thread on each of CPUs {cpus}"));
    }
    let (cores, source) = (facts.machine.cores, facts.budget.pin_source);
    // Threads that are not one a core move by intent, unless there are many cores to move among.
    if cores < 8 {
        return ok("pinning", format!("none ({source})"));
    }
    let advice = format!("name the CPUs of this engine by --cores {cpus}, or its node by --numa-node");
    warn("pinning", format!("none ({source})"), advice)
}

fn quota(facts: &Facts<'_>) -> Check {
    match facts.machine.cpu_quota {
        None => ok("cpu_quota", "none"),
        Some(quota) if quota < 1.0 => {
            let advice =
                "less than one CPU: every step is stopped in the middle; give the control group at least 1";
            warn("cpu_quota", format!("{quota:.2} CPUs"), advice)
        }
        Some(quota) if quota.fract() > 0.01 => {
            let whole = quota.floor();
            let advice =
                format!("answers leave the part above {whole} unused: give the control group whole CPUs");
            warn("cpu_quota", format!("{quota:.2} CPUs"), advice)
        }
        Some(quota) => ok("cpu_quota", format!("{quota:.2} CPUs")),
    }
}

fn numa(facts: &Facts<'_>) -> Check {
    let nodes = facts.machine.numa_nodes;
    let used = facts.budget.nodes.len();
    let value = format!("{used} of {nodes} nodes");
    if nodes > 1 && used > 1 {
        let advice =
            "threads of one engine reach across nodes: run one instance a node, each with --numa-node K";
        return warn("numa", value, advice);
    }
    ok("numa", value)
}

/// Nothing on a machine of one node.
fn numa_balancing(facts: &Facts<'_>) -> Option<Check> {
    let on = facts.machine.numa_balancing.filter(|_| facts.machine.numa_nodes > 1)?;
    let advice = "the kernel unmaps pages to see who uses them, and moves them: as root, sysctl kernel.numa_balancing=0";
    Some(if on { warn("numa_balancing", "on", advice) } else { ok("numa_balancing", "off") })
}

fn memory(facts: &Facts<'_>) -> Check {
    let (Some(available), Some(source)) = (facts.machine.memory_available_bytes, &facts.machine.memory_limit)
    else {
        return ok("memory", "unknown");
    };
    let value = format!("{available} bytes available ({source})");
    match facts.weight_bytes {
        Some(need) if need > available => Check {
            id: "memory",
            status: Status::Fail,
            value,
            advice: format!("the weights need {need} bytes: raise the limit, or choose a smaller model"),
        },
        _ => ok("memory", value),
    }
}

fn huge_pages(facts: &Facts<'_>) -> Check {
    let setting = facts.machine.huge_pages.as_deref().unwrap_or("unknown");
    let share =
        facts.huge_share.map_or_else(|| "unknown".to_owned(), |share| format!("{:.0} %", 100.0 * share));
    let value = format!("system: {setting}; got {share} of a test");
    if facts.placement.hugepages == HugePages::Never {
        return warn("huge_pages", value, "--hugepages never leaves weights in pages of 4 KiB: leave it out");
    }
    match (setting, facts.huge_share) {
        (_, Some(share)) if share > 0.9 => ok("huge_pages", value),
        ("never", _) => {
            let advice = "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (or always)";
            warn("huge_pages", value, advice)
        }
        (_, Some(_)) => {
            let advice = "memory is fragmented: as root, echo 1 > /proc/sys/vm/compact_memory, or free some";
            warn("huge_pages", value, advice)
        }
        (_, None) => ok("huge_pages", value),
    }
}

/// Weights and caches are mapped, not allocated, and a decode step allocates nothing: every allocator will do.
fn allocator(facts: &Facts<'_>) -> Check {
    ok("allocator", facts.machine.allocator)
}

fn frequency(facts: &Facts<'_>) -> Check {
    let Some(governor) = facts.machine.governor.as_deref() else {
        return ok("frequency", "unknown (this system shows none, as most virtual machines)");
    };
    let now = facts.machine.frequency_khz.map(|[now, max]| format!(", {} of {} MHz", now / 1000, max / 1000));
    let value = format!("{governor}{}", now.unwrap_or_default());
    match governor {
        "powersave" | "conservative" => {
            warn("frequency", value, "as root: cpupower frequency-set -g performance")
        }
        _ => ok("frequency", value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::cores::CoreRequest;
    use crate::platform::thread_budget;
    use crate::platform::topology::Topology;
    use crate::platform::topology::fake::{self, Numbering};

    const EPYC: fake::Machine = fake::Machine {
        packages: 2,
        nodes_per_package: 1,
        l3_per_node: 2,
        cores_per_l3: 4,
        smt: 2,
        numbering: Numbering::ThreadsLast,
    };

    /// What `change` makes of a machine without a fault, and then a check of it.
    fn check(
        id: &str,
        request: &CoreRequest,
        change: impl FnOnce(&mut Machine, &mut Facts<'static>),
    ) -> Check {
        let root = tempfile::tempdir().unwrap();
        EPYC.write(root.path(), &[]);
        let topology = Topology::from_root(root.path());
        let mut machine = Machine::from_root(root.path());
        machine.huge_pages = Some("madvise".to_owned());
        machine.memory_available_bytes = Some(1000);
        machine.memory_limit = Some("physical memory".to_owned());
        let budget = thread_budget(&topology, &[], machine.cpu_quota, request).unwrap();
        let nothing: &'static Machine = Box::leak(Box::default());
        let mut facts = Facts {
            machine: nothing,
            isa: Isa::Avx512Bf16,
            best_isa: Isa::Avx512Bf16,
            budget: Box::leak(Box::new(budget)),
            placement: Placement::default(),
            huge_share: Some(1.0),
            weight_bytes: Some(1000),
            kv_cache: KvCacheKind::Bmc,
            operators: Box::leak(Box::default()),
        };
        change(&mut machine, &mut facts);
        let facts = Facts { machine: &machine, ..facts };
        let found = checks(&facts).into_iter().find(|check| check.id == id);
        let found = found.unwrap_or_else(|| panic!("no check {id}"));
        assert_eq!(found.advice.is_empty(), found.status == Status::Ok, "{found:?}");
        found
    }

    fn status(id: &str, change: impl FnOnce(&mut Machine, &mut Facts<'static>)) -> Status {
        let node = CoreRequest { numa_node: Some(0), ..CoreRequest::default() };
        check(id, &node, change).status
    }

    #[test]
    fn a_machine_without_a_fault_passes() {
        for id in [
            "isa",
            "threads",
            "pinning",
            "cpu_quota",
            "numa",
            "memory",
            "huge_pages",
            "allocator",
            "kv_cache",
            "operators",
        ] {
            assert_eq!(status(id, |_, _| {}), Status::Ok, "{id}");
        }
    }

    #[test]
    fn each_fault_is_found() {
        assert_eq!(status("isa", |_, facts| facts.isa = Isa::Avx2), Status::Warn);
        assert_eq!(status("isa", |_, f| (f.isa, f.best_isa) = (Isa::Avx2, Isa::Avx2)), Status::Warn);
        for (quota, want) in [(0.5, Status::Warn), (1.5, Status::Warn), (4.0, Status::Ok)] {
            assert_eq!(status("cpu_quota", |machine, _| machine.cpu_quota = Some(quota)), want, "{quota}");
        }
        assert_eq!(status("memory", |_, facts| facts.weight_bytes = Some(1001)), Status::Fail);
        assert_eq!(status("huge_pages", |_, facts| facts.huge_share = Some(0.2)), Status::Warn);
        let never =
            |_: &mut Machine, facts: &mut Facts<'static>| facts.placement.hugepages = HugePages::Never;
        assert_eq!(status("huge_pages", never), Status::Warn);
        assert_eq!(status("kv_cache", |_, facts| facts.kv_cache = KvCacheKind::Dynamic), Status::Warn);
        let mut native = OperatorConfig::default();
        native.set("mlp", "native").unwrap();
        let native: &'static OperatorConfig = Box::leak(Box::new(native));
        assert_eq!(status("operators", move |_, facts| facts.operators = native), Status::Warn);
        let balancing = |on| status("numa_balancing", move |machine, _| machine.numa_balancing = Some(on));
        assert_eq!([balancing(true), balancing(false)], [Status::Warn, Status::Ok]);
        let governor =
            |name: &str| status("frequency", |machine, _| machine.governor = Some(name.to_owned()));
        assert_eq!([governor("powersave"), governor("performance")], [Status::Warn, Status::Ok]);
    }

    #[test]
    fn a_frequency_that_the_system_hides_is_unknown() {
        let found = check("frequency", &CoreRequest::default(), |machine, _| machine.governor = None);
        assert!(found.status == Status::Ok && found.value.starts_with("unknown"), "{found:?}");
    }

    #[test]
    fn threads_are_judged_with_their_source() {
        let many = CoreRequest { omp_num_threads: Some(40), ..CoreRequest::default() };
        let found = check("threads", &many, |_, _| {});
        assert_eq!(found.status, Status::Warn);
        assert!(found.value.contains("OMP_NUM_THREADS"), "{found:?}");
        assert_eq!(check("pinning", &many, |_, _| {}).status, Status::Warn);
        // All cores of both sockets: two instances would do better.
        assert_eq!(check("numa", &CoreRequest::default(), |_, _| {}).status, Status::Warn);
    }

    #[test]
    fn thp_never_says_how_to_change_it() {
        let found = check("huge_pages", &CoreRequest::default(), |machine, facts| {
            machine.huge_pages = Some("never".to_owned());
            facts.huge_share = Some(0.0);
        });
        assert!(found.advice.contains("transparent_hugepage/enabled"), "{found:?}");
    }
}
