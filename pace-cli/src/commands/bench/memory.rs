//! The most memory that this process has held.

use std::fs;

/// Bytes of physical memory at most, since the start or the last [`forget_peak`]; 0 where the system does not tell.
pub(super) fn peak_bytes() -> u64 {
    fs::read_to_string("/proc/self/status").ok().and_then(|status| high_water(&status)).unwrap_or(0)
}

/// Makes [`peak_bytes`] count from now on, where the system lets it.
pub(super) fn forget_peak() {
    // Where it does not, the peak is that of the whole process.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// `VmHWM` of `/proc/PID/status`, which counts in KiB.
fn high_water(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_in_kib() {
        assert_eq!(high_water("Name:\tx\nVmHWM:\t    4096 kB\nVmRSS:\t 1 kB\n"), Some(4 << 20));
        assert_eq!(high_water("Name:\tx\n"), None);
        assert!(peak_bytes() > 0);
    }
}
