//! The CPUs on which the kernel lets this process run: its affinity mask, already cut to its cpuset.

use std::fs;

use rustix::process::getpid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::topology::parse_cpu_list;

/// The affinity mask of the process's main thread, as ascending CPU numbers; empty when the system will not tell.
///
/// It is the main thread's and not the caller's, so that a pinned worker that asks is not told its own single CPU.
/// Ask before pinning the main thread itself.
pub fn process_affinity() -> Vec<usize> {
    if let Ok(set) = sched_getaffinity(Some(getpid())) {
        return (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect();
    }
    // The call fails where the kernel is built for more CPUs than the fixed-size set holds; this text has no limit.
    fs::read_to_string("/proc/self/status").ok().and_then(|status| allowed_list(&status)).unwrap_or_default()
}

/// Keeps the calling thread, and those that it starts from now on, on `cpus`; says whether that worked.
pub(crate) fn confine(cpus: &[usize]) -> bool {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return false;
        }
        set.set(cpu);
    }
    sched_setaffinity(None, &set).is_ok()
}

fn allowed_list(status: &str) -> Option<Vec<usize>> {
    parse_cpu_list(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sources_agree() {
        let mask = process_affinity();
        assert!(!mask.is_empty());
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert_eq!(allowed_list(&status), Some(mask));
    }

    #[test]
    fn a_thread_is_confined_with_those_that_it_starts() {
        let mask = process_affinity();
        let own = || {
            let set = sched_getaffinity(None).unwrap();
            (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect::<Vec<_>>()
        };
        let last = mask[mask.len() - 1..].to_vec();
        let child = std::thread::spawn(move || {
            assert!(!confine(&[CpuSet::MAX_CPU]));
            assert!(confine(&last));
            assert_eq!(std::thread::spawn(own).join().unwrap(), last);
        });
        child.join().unwrap();
        assert_eq!(process_affinity(), mask);
    }

    #[test]
    fn status_without_the_field_says_nothing() {
        assert_eq!(allowed_list("Name:\tx\nCpus_allowed_list:\t0-1,1030\n"), Some(vec![0, 1, 1030]));
        assert_eq!(allowed_list("Name:\tx\n"), None);
    }
}
