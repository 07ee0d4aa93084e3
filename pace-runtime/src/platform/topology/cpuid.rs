//! Where a CPU stands by its own account, for systems whose sysfs leaves it out (emulators, sandboxes, masked `/sys`).
//!
//! Source: Intel SDM volume 2A, CPUID leaves 04H, 0BH and 1FH; AMD64 APM volume 3, functions 8000_001D and 0000_000B.

use std::arch::x86_64::{__cpuid_count, CpuidResult};
use std::thread;

use super::Place;
use crate::platform::affinity::confine;

/// More levels of a leaf than any CPU has.
const MAX_LEVELS: u32 = 16;

/// Asks CPU `id` itself, on a thread that goes there. None where this process may not run on it.
pub(super) fn place(id: usize) -> Option<Place> {
    let ask = move || confine(&[id]).then(|| decode(&__cpuid_count)).flatten();
    thread::Builder::new().spawn(ask).ok()?.join().ok()?
}

/// Reads the answers of one CPU to `cpuid(leaf, subleaf)`.
fn decode(cpuid: &dyn Fn(u32, u32) -> CpuidResult) -> Option<Place> {
    let last = cpuid(0, 0).eax;
    let (apic_id, shifts) =
        [0x1f, 0xb].into_iter().filter(|&leaf| leaf <= last).find_map(|leaf| levels(cpuid, leaf))?;
    let core = shifts.iter().find(|(kind, _)| *kind == 1).map_or(0, |&(_, shift)| shift);
    let package = shifts.last().map_or(0, |&(_, shift)| shift);
    let above = |shift: u32| apic_id.checked_shr(shift).unwrap_or(0) as usize;
    let l3 = l3_sharers(cpuid, last).map(|cpus| above(cpus.next_power_of_two().trailing_zeros()));
    Some(Place { package: above(package), core: above(core), l3 })
}

/// The CPU's x2APIC number, and of each level its kind (1: threads of a core) and how many low bits of that number
/// are within it. None where the leaf is empty.
fn levels(cpuid: &dyn Fn(u32, u32) -> CpuidResult, leaf: u32) -> Option<(u32, Vec<(u32, u32)>)> {
    let first = cpuid(leaf, 0);
    let all = (0..MAX_LEVELS).map(|level| cpuid(leaf, level));
    let kind = |answer: &CpuidResult| answer.ecx >> 8 & 0xff;
    let shifts = all.take_while(|answer| kind(answer) != 0 && answer.ebx & 0xffff != 0);
    let shifts: Vec<_> = shifts.map(|answer| (kind(&answer), answer.eax & 0x1f)).collect();
    (!shifts.is_empty()).then_some((first.edx, shifts))
}

/// How many numbers of CPUs share a third-level cache.
fn l3_sharers(cpuid: &dyn Fn(u32, u32) -> CpuidResult, last: u32) -> Option<u32> {
    const AMD: u32 = 0x8000_001d;
    let leaf = if cpuid(0x8000_0000, 0).eax >= AMD && cpuid(AMD, 0).eax & 0x1f != 0 { AMD } else { 4 };
    if leaf == 4 && last < 4 {
        return None;
    }
    let caches = (0..MAX_LEVELS).map(|index| cpuid(leaf, index).eax).take_while(|eax| eax & 0x1f != 0);
    caches.filter(|eax| eax >> 5 & 7 == 3).map(|eax| (eax >> 14 & 0xfff) + 1).next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::affinity::process_affinity;

    /// A CPU that answers by a table of (leaf, subleaf, eax, ebx, ecx, edx) and zeros.
    fn by(table: &[(u32, u32, [u32; 4])]) -> Option<Place> {
        decode(&|leaf, subleaf| {
            let found = table.iter().find(|(l, s, _)| (*l, *s) == (leaf, subleaf));
            let [eax, ebx, ecx, edx] = found.map_or([0; 4], |&(.., answer)| answer);
            CpuidResult { eax, ebx, ecx, edx }
        })
    }

    /// A thread of an EPYC of 8 cores in each CCX, with SMT: 16 numbers share an L3, 256 a package.
    fn epyc(apic_id: u32) -> Option<Place> {
        by(&[
            (0, 0, [0x10, 0, 0, 0]),
            (0xb, 0, [1, 2, 0x100, apic_id]),
            (0xb, 1, [8, 192, 0x201, apic_id]),
            (0x8000_0000, 0, [0x8000_0028, 0, 0, 0]),
            (0x8000_001d, 0, [0x0000_4121, 0, 0, 0]),
            (0x8000_001d, 1, [0x0000_4122, 0, 0, 0]),
            (0x8000_001d, 2, [0x0000_4143, 0, 0, 0]),
            (0x8000_001d, 3, [0x0003_c163, 0, 0, 0]),
        ])
    }

    /// A thread of a Xeon whose die level is in leaf 1FH alone, with a cache for 128 numbers.
    fn xeon(apic_id: u32) -> Option<Place> {
        by(&[
            (0, 0, [0x20, 0, 0, 0]),
            (0xb, 0, [1, 2, 0x100, apic_id]),
            (0xb, 1, [6, 64, 0x201, apic_id]),
            (0x1f, 0, [1, 2, 0x100, apic_id]),
            (0x1f, 1, [6, 64, 0x201, apic_id]),
            (0x1f, 2, [7, 128, 0x502, apic_id]),
            (4, 0, [0x0000_4121, 0, 0, 0]),
            (4, 1, [0x0000_4122, 0, 0, 0]),
            (4, 2, [0x0000_4143, 0, 0, 0]),
            (4, 3, [0x001f_c163, 0, 0, 0]),
        ])
    }

    #[test]
    fn threads_cores_caches_and_packages_are_told_apart() {
        assert_eq!(epyc(0x000), Some(Place { package: 0, core: 0, l3: Some(0) }));
        assert_eq!(epyc(0x001), epyc(0x000), "the other thread of the core");
        assert_eq!(epyc(0x00f), Some(Place { package: 0, core: 7, l3: Some(0) }));
        assert_eq!(epyc(0x010), Some(Place { package: 0, core: 8, l3: Some(1) }));
        assert_eq!(epyc(0x113), Some(Place { package: 1, core: 0x89, l3: Some(0x11) }));
        assert_eq!(xeon(0x45), Some(Place { package: 0, core: 0x22, l3: Some(0) }));
        assert_eq!(xeon(0x85), Some(Place { package: 1, core: 0x42, l3: Some(1) }));
    }

    #[test]
    fn a_cpu_may_tell_little_or_nothing() {
        assert_eq!(by(&[]), None);
        assert_eq!(by(&[(0, 0, [0xd, 0, 0, 0])]), None, "the leaf is empty");
        let no_cache = by(&[(0, 0, [0xb, 0, 0, 0]), (0xb, 0, [1, 2, 0x100, 6]), (0xb, 1, [31, 2, 0x201, 6])]);
        assert_eq!(no_cache, Some(Place { package: 0, core: 3, l3: None }));
        // Levels that never end.
        let endless = decode(&|_, _| CpuidResult { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: 5 });
        assert!(endless.is_some());
    }

    #[test]
    fn a_cpu_out_of_reach_is_not_asked() {
        assert_eq!(place(usize::MAX), None);
        let ids = process_affinity();
        let places: Vec<_> = ids.iter().map(|&id| place(id)).collect();
        assert_eq!(places, ids.iter().map(|&id| place(id)).collect::<Vec<_>>(), "always the same");
    }
}
