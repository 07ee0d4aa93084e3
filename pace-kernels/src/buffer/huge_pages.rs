//! How much of a range of addresses lies in huge pages, as Linux tells it.

use std::ops::Range;

/// The part of the resident memory of `ranges` of addresses, which do not overlap, that lies in huge pages: an estimate, as
/// [`Buffer::huge_share`](crate::Buffer::huge_share) is. None if none of it is resident, and on systems other than Linux.
#[cfg(target_os = "linux")]
pub fn share(ranges: &[Range<usize>]) -> Option<f64> {
    share_in(&std::fs::read_to_string("/proc/self/smaps").ok()?, ranges)
}

/// Only Linux tells.
#[cfg(not(target_os = "linux"))]
pub fn share(_ranges: &[Range<usize>]) -> Option<f64> {
    None
}

/// What the mappings that overlap `ranges` say: each counts by its resident memory, or by the overlap if
/// that is smaller. `None` if none of them has any.
#[cfg(any(target_os = "linux", test))]
fn share_in(smaps: &str, ranges: &[Range<usize>]) -> Option<f64> {
    let (mut huge, mut all) = (0.0, 0.0);
    let (mut overlap, mut resident, mut anonymous) = (0, 0, 0);
    for line in smaps.lines() {
        if let Some(mapping) = addresses(line) {
            let common = |range: &Range<usize>| {
                mapping.end.min(range.end).saturating_sub(mapping.start.max(range.start))
            };
            overlap = ranges.iter().map(common).sum();
        } else if let Some(bytes) = size(line, "Rss:") {
            resident = bytes;
        } else if let Some(bytes) = size(line, "AnonHugePages:") {
            anonymous = bytes;
        } else if let Some(shared) = size(line, "ShmemPmdMapped:").filter(|_| overlap > 0 && resident > 0) {
            let (counted, bytes) = (overlap.min(resident) as f64, (anonymous + shared).min(resident));
            huge += counted * (bytes as f64 / resident as f64);
            all += counted;
        }
    }
    (all > 0.0).then(|| huge / all)
}

/// The addresses of a mapping, if the line is the first one of its entry.
#[cfg(any(target_os = "linux", test))]
fn addresses(line: &str) -> Option<Range<usize>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

/// The bytes of a line such as `Rss:    2048 kB`.
#[cfg(any(target_os = "linux", test))]
fn size(line: &str, name: &str) -> Option<usize> {
    let kibibytes: usize = line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
1000-3000 rw-p 00000000 00:00 0
Size:                  8 kB
Rss:                   8 kB
AnonHugePages:         0 kB
ShmemPmdMapped:        0 kB
200000-a00000 rw-p 00000000 00:00 0    [anon: weights]
Size:               8192 kB
Rss:                4096 kB
AnonHugePages:      1024 kB
ShmemPmdMapped:     1024 kB
VmFlags: rd wr mr
b00000-c00000 rw-p 00000000 00:00 0
Rss:                   0 kB
AnonHugePages:         0 kB
ShmemPmdMapped:        0 kB
";

    #[test]
    fn mappings_count_by_what_is_resident() {
        let share = |range: Range<usize>| share_in(SMAPS, std::slice::from_ref(&range));
        assert_eq!(share(0x1000..0x3000), Some(0.0));
        assert_eq!(share(0x200000..0xa00000), Some(0.5));
        assert_eq!(share(0x300000..0x301000), Some(0.5));
        assert_eq!(share(0x2000..0x201000), Some(0.25));
        assert_eq!(share(0xb00000..0xc00000), None);
        assert_eq!(share(0xd00000..0xe00000), None);
        assert_eq!(share(0x1000..0x1000), None);
        assert_eq!(share_in("", &[Range { start: 0, end: usize::MAX }]), None);
        let parts = [0x1000..0x3000, 0x200000..0x201000, 0x205000..0x206000];
        assert_eq!(share_in(SMAPS, &parts), Some(0.25));
    }
}
