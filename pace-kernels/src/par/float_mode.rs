//! How the floating-point unit of a thread rounds, and whether it keeps denormals.

/// Rounding to nearest, denormals kept, no exceptions: what a process starts with, and what compiled code assumes.
#[cfg(target_arch = "x86_64")]
static DEFAULT: u32 = 0x1f80;

/// Sets how the calling thread's arithmetic works to what it is in any Rust program.
///
/// A thread starts with the settings of the one that made it, and a host program may have changed those: C that is linked with
/// `-ffast-math` makes denormals 0. Workers of a [`Pool`](crate::Pool) do this as they start; so should a thread that is made to
/// open its regions.
pub fn default_float_mode() {
    // SAFETY: 4 bytes are read. The value has no reserved bits, and is what the compiler expects at any point.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const DEFAULT, options(nostack, readonly, preserves_flags));
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::arch::asm;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::DEFAULT;
    use crate::Pool;

    fn mode() -> u32 {
        let mut mode = 0_u32;
        // SAFETY: 4 bytes are written to a place that has them.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mode, options(nostack, preserves_flags)) };
        // The lowest bits tell what has happened.
        mode & !0x3f
    }

    #[test]
    fn workers_do_not_inherit_the_mode_of_a_host_program() {
        let host = || {
            // Denormals are 0, results are rounded towards 0.
            let fast = 0xffc0_u32;
            // SAFETY: 4 bytes are read, no bits are reserved ones. This thread does no arithmetic of floating-point numbers.
            unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const fast, options(nostack, readonly)) };
            let pool = Pool::unpinned(3).unwrap();
            let modes = [const { AtomicU32::new(0) }; 3];
            pool.par().run(|member| modes[member].store(mode(), Ordering::Relaxed));
            modes.map(AtomicU32::into_inner)
        };
        let modes = std::thread::spawn(host).join().unwrap();
        assert_eq!(modes, [0xffc0, DEFAULT, DEFAULT], "the caller's own stays as it is");
    }
}
