//! CPU quota and memory limit of the control group that this process is in, v1, v2 or both at once.
//!
//! `/proc/self/cgroup` names the group per hierarchy, `/proc/self/mountinfo` says where the hierarchy is mounted and
//! which of its groups is the mount's root (in a container often our own). Limits of every ancestor bind too, so each
//! directory from our group up to the mount point is read and the smallest limit counts.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// What the control groups allow.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CgroupLimits {
    /// CPU time per wall time: 1.5 is one and a half CPUs. `None` is no limit.
    pub cpu_quota: Option<f64>,
    /// The tightest memory limit, if any is set.
    pub memory: Option<CgroupMemory>,
}

/// A memory limit of a control group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupMemory {
    /// The limit in bytes.
    pub limit: u64,
    /// Bytes in use that cannot be reclaimed by dropping cold file pages.
    pub used: u64,
    /// The file that says so.
    pub file: PathBuf,
}

impl CgroupLimits {
    /// Reads the limits of this process.
    pub fn detect() -> Self {
        Self::from_root(Path::new("/"))
    }

    /// Reads the limits below `root`, the directory that holds `proc` and the cgroup mounts. What cannot be read
    /// counts as unlimited.
    pub fn from_root(root: &Path) -> Self {
        let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
        let (groups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
        let mut limits = Self::default();
        for mount in mounts.lines().filter_map(Mount::parse) {
            for group in groups.lines().filter_map(|line| mount.own_group(line)) {
                for dir in mount.dirs(root, group) {
                    limits.tighten(&mount, &dir);
                }
            }
        }
        limits
    }

    fn tighten(&mut self, mount: &Mount, dir: &Path) {
        let (cpu_quota, memory) = if mount.v2 {
            (quota_v2(dir), memory_in(dir, "memory.max", "memory.current", "inactive_file"))
        } else {
            let names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file");
            (
                if mount.has("cpu") { quota_v1(dir) } else { None },
                if mount.has("memory") { memory_in(dir, names.0, names.1, names.2) } else { None },
            )
        };
        if let Some(quota) = cpu_quota {
            self.cpu_quota = Some(self.cpu_quota.map_or(quota, |least| least.min(quota)));
        }
        if let Some(memory) = memory
            && self.memory.as_ref().is_none_or(|least| memory.limit < least.limit)
        {
            self.memory = Some(memory);
        }
    }
}

/// One mounted cgroup hierarchy.
struct Mount<'a> {
    v2: bool,
    /// The super options; for v1 they name the controllers.
    options: &'a str,
    /// The group that is visible at the mount point.
    group_root: PathBuf,
    point: PathBuf,
}

impl<'a> Mount<'a> {
    /// Reads `id parent major:minor root point options [tags...] - type source super-options`.
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (group_root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        let mut fields = after.split(' ');
        let v2 = match fields.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        Some(Self { v2, options: fields.nth(1).unwrap_or(""), group_root, point })
    }

    fn has(&self, controller: &str) -> bool {
        self.options.split(',').any(|option| option == controller)
    }

    /// Our group in this hierarchy, if the line `id:controllers:group` is about it.
    fn own_group<'g>(&self, line: &'g str) -> Option<&'g str> {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let ours = match controllers {
            "" => self.v2,
            _ => !self.v2 && controllers.split(',').all(|controller| self.has(controller)),
        };
        ours.then_some(group)
    }

    /// The directories of our group and its visible ancestors, innermost first. A group outside of the mount's root
    /// (another cgroup namespace) is not visible: the mount point is the closest there is.
    fn dirs(&self, root: &Path, group: &str) -> Vec<PathBuf> {
        let point = root.join(self.point.strip_prefix("/").unwrap_or(&self.point));
        let inside = Path::new(group)
            .strip_prefix(&self.group_root)
            .ok()
            .filter(|inside| inside.components().all(|part| matches!(part, Component::Normal(_))))
            .unwrap_or_else(|| Path::new(""));
        // The ancestors of a relative path end with the empty one, which is the mount point.
        inside.ancestors().map(|dir| point.join(dir)).collect()
    }
}

/// Undoes mountinfo's octal escapes of space, tab, newline and backslash (`\040`).
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped =
            tail.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

fn read_u64(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// `cpu.max` holds `quota period` in microseconds, or `max period`.
fn quota_v2(dir: &Path) -> Option<f64> {
    let text = fs::read_to_string(dir.join("cpu.max")).ok()?;
    let mut fields = text.split_whitespace();
    ratio(fields.next()?.parse().ok()?, fields.next()?.parse().ok()?)
}

/// `cpu.cfs_quota_us` is -1 without a limit.
fn quota_v1(dir: &Path) -> Option<f64> {
    ratio(read_u64(&dir.join("cpu.cfs_quota_us"))?, read_u64(&dir.join("cpu.cfs_period_us"))?)
}

fn ratio(quota: u64, period: u64) -> Option<f64> {
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

/// v2 writes `max` and v1 a number near 2^63 where there is no limit; either is no limit here.
fn memory_in(dir: &Path, limit: &str, usage: &str, reclaimable: &str) -> Option<CgroupMemory> {
    let file = dir.join(limit);
    let limit = read_u64(&file).filter(|&limit| limit < 1 << 62)?;
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let cold = stat
        .lines()
        .find_map(|line| line.strip_prefix(reclaimable)?.strip_prefix(' ')?.trim().parse::<u64>().ok())
        .unwrap_or(0);
    let used = read_u64(&dir.join(usage)).unwrap_or(0).saturating_sub(cold);
    Some(CgroupMemory { limit, used, file })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::topology::fake::put;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
    const V1: &str = "\
        31 30 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n\
        32 31 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        33 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";

    fn limits(groups: &str, mounts: &str, files: &[(&str, &str)]) -> CgroupLimits {
        let root = tempfile::tempdir().unwrap();
        put(&root.path().join("proc/self/cgroup"), groups);
        put(&root.path().join("proc/self/mountinfo"), mounts);
        for (name, text) in files {
            put(&root.path().join("sys/fs/cgroup").join(name), text);
        }
        let mut limits = CgroupLimits::from_root(root.path());
        if let Some(memory) = &mut limits.memory {
            memory.file = memory.file.strip_prefix(root.path()).unwrap().to_path_buf();
        }
        limits
    }

    #[test]
    fn v2_quotas() {
        for (text, quota) in [
            ("50000 100000", Some(0.5)),
            ("150000 100000", Some(1.5)),
            ("20000 10000", Some(2.0)),
            ("max 100000", None),
            ("100000 0", None),
            ("", None),
        ] {
            assert_eq!(limits("0::/a", V2, &[("a/cpu.max", text)]).cpu_quota, quota, "{text}");
        }
    }

    #[test]
    fn v1_quotas() {
        for (text, quota) in
            [("50000", Some(0.5)), ("150000", Some(1.5)), ("200000", Some(2.0)), ("-1", None)]
        {
            let files =
                [("cpu,cpuacct/a/cpu.cfs_quota_us", text), ("cpu,cpuacct/a/cpu.cfs_period_us", "100000")];
            assert_eq!(limits("4:cpu,cpuacct:/a\n3:memory:/a", V1, &files).cpu_quota, quota, "{text}");
        }
    }

    #[test]
    fn the_smallest_of_nested_groups_counts() {
        let files = [
            ("a/cpu.max", "400000 100000"),
            ("a/b/cpu.max", "150000 100000"),
            ("a/b/c/cpu.max", "max 100000"),
            ("a/memory.max", "1000"),
            ("a/memory.current", "700"),
            ("a/memory.stat", "inactive_anon 5\ninactive_file 200"),
            ("a/b/memory.max", "max"),
            ("a/b/c/memory.max", "3000"),
            ("other/cpu.max", "1000 100000"),
        ];
        let limits = limits("0::/a/b/c", V2, &files);
        assert_eq!(limits.cpu_quota, Some(1.5));
        let file = PathBuf::from("sys/fs/cgroup/a/memory.max");
        assert_eq!(limits.memory, Some(CgroupMemory { limit: 1000, used: 500, file }));
    }

    #[test]
    fn v1_memory_and_its_huge_default() {
        let own = "3:memory:/docker/x";
        let files = [
            ("memory/memory.limit_in_bytes", "9223372036854771712"),
            ("memory/docker/x/memory.limit_in_bytes", "4096"),
            ("memory/docker/x/memory.usage_in_bytes", "100"),
        ];
        let memory = limits(own, V1, &files).memory.expect("a limit is set");
        assert_eq!((memory.limit, memory.used), (4096, 100));
        assert_eq!(limits(own, V1, &files[..1]).memory, None);
    }

    #[test]
    fn a_mount_that_shows_only_our_group() {
        let mount = "30 23 0:26 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup2 rw";
        let files = [("cpu.max", "300000 100000"), ("y/cpu.max", "200000 100000")];
        assert_eq!(limits("0::/docker/x", mount, &files).cpu_quota, Some(3.0));
        assert_eq!(limits("0::/docker/x/y", mount, &files).cpu_quota, Some(2.0));
        // Neither an unrelated group nor one that climbs out of the mount may lead anywhere else.
        assert_eq!(limits("0::/elsewhere/y", mount, &files).cpu_quota, Some(3.0));
        assert_eq!(limits("0::/docker/x/../../y", mount, &files).cpu_quota, Some(3.0));
    }

    #[test]
    fn hybrid_hierarchies_join() {
        let mounts = format!("{V1}\n38 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw");
        let files = [
            ("cpu,cpuacct/cpu.cfs_quota_us", "250000"),
            ("cpu,cpuacct/cpu.cfs_period_us", "100000"),
            ("unified/s/memory.max", "77"),
        ];
        let limits = limits("4:cpu,cpuacct:/\n3:memory:/\n1:name=systemd:/s\n0::/s", &mounts, &files);
        assert_eq!((limits.cpu_quota, limits.memory.map(|memory| memory.limit)), (Some(2.5), Some(77)));
    }

    #[test]
    fn nothing_readable_is_no_limit() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(CgroupLimits::from_root(root.path()), CgroupLimits::default());
        assert_eq!(limits("garbage\n::\n0::", "a b c\n1 2 3 - cgroup2", &[]), CgroupLimits::default());
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(r"/a\9z\"), Path::new(r"/a\9z\"));
    }
}
