//! Whether the CPU has AMX, and the system lets this process use it.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18; Linux,
//! Documentation/arch/x86/xstate.rst.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

/// Whether tiles of bf16 and int8 can be used; asks the system for permission the first time.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && is_saved() && is_permitted())
}

fn has_instructions() -> bool {
    const LEAF: u32 = 7;
    const TILE_BF16_INT8: u32 = 1 << 24 | 1 << 22 | 1 << 25;
    __cpuid(0).eax >= LEAF && __cpuid_count(LEAF, 0).edx & TILE_BF16_INT8 == TILE_BF16_INT8
}

/// Whether the system saves tiles when it switches threads.
fn is_saved() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILE_CONFIG_AND_DATA: u32 = 1 << 17 | 1 << 18;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let xcr0: u32;
    // SAFETY: the CPU has the instruction, because the system has switched it on.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") xcr0, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    xcr0 & TILE_CONFIG_AND_DATA == TILE_CONFIG_AND_DATA
}

/// Asks for the use of tiles, which holds for all threads from then on.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call of two numbers, which changes nothing but the permission.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}
