//! CPU quota and memory limit of the control group that this process is in, v1, v2 or both at once.
//!
//! `/proc/self/cgroup` names the group per hierarchy, `/proc/self/mountinfo` says where the hierarchy is mounted and
//! which of its groups is the mount's root (in a container often our own). Limits of every ancestor bind too, so each
//! directory from our group up to the mount point is read. The smallest quota counts; of memory, each limit does, because
//! groups beside ours use up an ancestor's.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// What the control groups allow.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CgroupLimits {
    /// CPU time per wall time: 1.5 is one and a half CPUs. `None` is no limit.
    pub cpu_quota: Option<f64>,
    /// Every memory limit that is set, those of inner groups first.
    pub memory: Vec<CgroupMemory>,
}

/// A memory limit of a control group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupMemory {
    /// The limit in bytes.
    pub limit: u64,
    /// Bytes in use that cannot be reclaimed by dropping cached files.
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
        let mounts: Vec<Mount<'_>> = mounts.lines().filter_map(Mount::parse).collect();
        let mut limits = Self::default();
        for line in groups.lines() {
            let of_group = mounts.iter().filter_map(|mount| Some((mount, mount.own_group(line)?)));
            let (inside, outside): (Vec<_>, Vec<_>) =
                of_group.map(|(mount, group)| (mount, mount.inside(group))).partition(|(_, at)| at.is_some());
            // Of a group that no mount shows (another cgroup namespace), the mount point is the closest there is.
            for (mount, at) in if inside.is_empty() { outside } else { inside } {
                for dir in mount.dirs(root, at.unwrap_or_else(|| Path::new(""))) {
                    limits.tighten(mount, &dir);
                }
            }
        }
        limits
    }

    fn tighten(&mut self, mount: &Mount, dir: &Path) {
        let cpu_quota = match mount.v2 {
            true => quota_v2(dir),
            false if mount.has("cpu") => quota_v1(dir),
            false => None,
        };
        if let Some(quota) = cpu_quota {
            self.cpu_quota = Some(self.cpu_quota.map_or(quota, |least| least.min(quota)));
        }
        if mount.v2 {
            // Above `memory.high` nothing fails, but everything crawls.
            let limits = ["memory.max", "memory.high"];
            let cached = ["inactive_file", "active_file"];
            self.memory
                .extend(limits.iter().filter_map(|limit| memory_in(dir, limit, "memory.current", cached)));
        } else if mount.has("memory") {
            let cached = ["total_inactive_file", "total_active_file"];
            self.memory.extend(memory_in(dir, "memory.limit_in_bytes", "memory.usage_in_bytes", cached));
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

    /// Where a group lies below the mount point, if it can be seen there.
    fn inside<'g>(&self, group: &'g str) -> Option<&'g Path> {
        let inside = Path::new(group).strip_prefix(&self.group_root).ok()?;
        inside.components().all(|part| matches!(part, Component::Normal(_))).then_some(inside)
    }

    /// The directories of a group and its visible ancestors, innermost first.
    fn dirs(&self, root: &Path, inside: &Path) -> Vec<PathBuf> {
        let point = root.join(self.point.strip_prefix("/").unwrap_or(&self.point));
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
/// `cached` are the fields of `memory.stat` that count cached files.
fn memory_in(dir: &Path, limit: &str, usage: &str, cached: [&str; 2]) -> Option<CgroupMemory> {
    let file = dir.join(limit);
    let limit = read_u64(&file).filter(|&limit| limit < 1 << 62)?;
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let field = |name: &str| {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok();
        stat.lines().find_map(value).unwrap_or(0)
    };
    let cached = cached.map(field).into_iter().fold(0, u64::saturating_add);
    let used = read_u64(&dir.join(usage)).unwrap_or(0).saturating_sub(cached);
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
        for memory in &mut limits.memory {
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
    fn the_smallest_quota_and_every_memory_limit_of_nested_groups_counts() {
        let files = [
            ("a/cpu.max", "400000 100000"),
            ("a/b/cpu.max", "150000 100000"),
            ("a/b/c/cpu.max", "max 100000"),
            ("a/memory.max", "1000"),
            ("a/memory.current", "700"),
            ("a/memory.stat", "inactive_anon 5\ninactive_file 200\nactive_file 40"),
            ("a/b/memory.max", "max"),
            ("a/b/memory.high", "2000"),
            ("a/b/c/memory.max", "3000"),
            ("other/cpu.max", "1000 100000"),
        ];
        let limits = limits("0::/a/b/c", V2, &files);
        assert_eq!(limits.cpu_quota, Some(1.5));
        let memory = |name: &str, limit, used| CgroupMemory {
            limit,
            used,
            file: Path::new("sys/fs/cgroup").join(name),
        };
        let want = [
            memory("a/b/c/memory.max", 3000, 0),
            memory("a/b/memory.high", 2000, 0),
            memory("a/memory.max", 1000, 460),
        ];
        assert_eq!(limits.memory, want);
    }

    #[test]
    fn v1_memory_and_its_huge_default() {
        let own = "3:memory:/docker/x";
        let files = [
            ("memory/memory.limit_in_bytes", "9223372036854771712"),
            ("memory/docker/x/memory.limit_in_bytes", "4096"),
            ("memory/docker/x/memory.usage_in_bytes", "100"),
        ];
        let memory = &limits(own, V1, &files).memory;
        assert_eq!(memory.iter().map(|m| (m.limit, m.used)).collect::<Vec<_>>(), [(4096, 100)]);
        assert_eq!(limits(own, V1, &files[..1]).memory, []);
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
    fn a_mount_of_another_group_is_not_ours() {
        let other = "40 23 0:26 /lxc/x /var/lib/x/cgroup rw - cgroup2 cgroup2 rw";
        let files = [("own/cpu.max", "300000 100000"), ("../../../var/lib/x/cgroup/cpu.max", "1000 100000")];
        assert_eq!(limits("0::/own", &format!("{V2}\n{other}"), &files).cpu_quota, Some(3.0));
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
        assert_eq!((limits.cpu_quota, limits.memory[0].limit), (Some(2.5), 77));
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
