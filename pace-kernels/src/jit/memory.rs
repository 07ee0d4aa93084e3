//! Executable memory that is never writable and executable at once.

use std::io;
use std::ptr::NonNull;

/// A page of x86-64.
const PAGE: usize = 4096;

/// Machine code in pages of its own, readable and executable.
#[derive(Debug)]
pub(super) struct Executable {
    start: NonNull<u8>,
    /// Bytes mapped: whole pages.
    mapped: usize,
    /// Bytes written.
    len: usize,
}

impl Executable {
    /// Copies `code` into new pages. They are writable until the copy is done, and executable only
    /// then.
    ///
    /// # Errors
    /// The system gave no memory, or refuses to make memory executable (a hardened kernel, a
    /// container's filter).
    pub(super) fn new(code: &[u8]) -> io::Result<Self> {
        assert!(!code.is_empty(), "no code");
        let this = Self::writable(code.len())?;
        // SAFETY: the new mapping has at least `code.len()` bytes, is writable, and nobody else has it.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), this.start.as_ptr(), code.len()) };
        this.make_executable()?;
        Ok(this)
    }

    /// Where the code starts.
    pub(super) fn entry(&self) -> NonNull<u8> {
        self.start
    }

    /// What was written.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes were written into this mapping, which lives as long as `self` and is
        // never written again.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Memory that it takes.
    pub(super) fn mapped(&self) -> usize {
        self.mapped
    }
}

#[cfg(target_os = "linux")]
impl Executable {
    fn writable(len: usize) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

        let mapped = len.checked_next_multiple_of(PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing existing.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), mapped, access, MapFlags::PRIVATE) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, mapped, len })
    }

    fn make_executable(&self) -> io::Result<()> {
        use rustix::mm::{MprotectFlags, mprotect};

        let access = MprotectFlags::READ | MprotectFlags::EXEC;
        // SAFETY: these pages were mapped by `writable` for this value alone; no reference into
        // them that could write exists.
        unsafe { mprotect(self.start.as_ptr().cast(), self.mapped, access) }?;
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
impl Executable {
    fn writable(_len: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn make_executable(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        {
            // SAFETY: these bytes were mapped by `writable` for this value alone.
            let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.mapped) };
            debug_assert!(unmapped.is_ok(), "munmap of an owned mapping cannot fail");
        }
    }
}

// SAFETY: the pages are read-only from the moment that the value exists, and it owns them.
unsafe impl Send for Executable {}
// SAFETY: as above.
unsafe impl Sync for Executable {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// The access rights of the mapping that holds `address`, such as `r-xp`.
    fn rights(address: usize) -> Option<String> {
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        maps.lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (from, to) = range.split_once('-')?;
            let from = usize::from_str_radix(from, 16).ok()?;
            let to = usize::from_str_radix(to, 16).ok()?;
            (from..to).contains(&address).then(|| rest[..4].to_owned())
        })
    }

    #[test]
    fn pages_are_never_writable_and_executable_at_once() {
        let code = Executable::writable(5000).unwrap();
        let address = code.start.as_ptr() as usize;
        assert_eq!(rights(address).as_deref(), Some("rw-p"));
        code.make_executable().unwrap();
        assert_eq!(rights(address).as_deref(), Some("r-xp"));
        assert_eq!(rights(address + 4999).as_deref(), Some("r-xp"));
    }

    #[test]
    fn holds_what_was_written_in_whole_pages() {
        let bytes: Vec<u8> = (0..9000).map(|i| i as u8).collect();
        let code = Executable::new(&bytes).unwrap();
        assert_eq!(code.bytes(), bytes);
        assert_eq!(code.mapped() % PAGE, 0);
        assert!(code.mapped() >= 9000);
    }

    /// Linux can forbid a process to make memory executable, for good; so a process of its own tries.
    #[test]
    #[cfg(target_arch = "x86_64")]
    #[allow(clippy::disallowed_methods)] // How the child knows that it is one.
    fn a_refusal_of_the_system_is_an_error() {
        const CHILD: &str = "PACE_TEST_WITHOUT_EXECUTABLE_MEMORY";
        if std::env::var_os(CHILD).is_none() {
            let name = "jit::memory::tests::a_refusal_of_the_system_is_an_error";
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args([name, "--exact", "--nocapture"])
                .env(CHILD, "1")
                .output()
                .unwrap();
            assert!(child.status.success(), "{child:?}");
            return;
        }
        if !refuse_executable_memory() {
            return; // A kernel before 6.3.
        }
        let error = Executable::new(&[0xc3]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        if let Some(kernels) = crate::Kernels::new(crate::Isa::Avx512Vnni) {
            let error = crate::Jit::new(kernels, crate::JitCapacity::default()).unwrap_err();
            assert!(matches!(error, crate::JitError::Memory(_)), "{error}");
        }
    }

    /// Whether the system promised to refuse it from now on.
    #[cfg(target_arch = "x86_64")]
    fn refuse_executable_memory() -> bool {
        const PRCTL: i64 = 157;
        const SET_MEMORY_DENY_WRITE_EXECUTE: i64 = 65;
        const REFUSE_EXECUTABLE: i64 = 1;
        let mut result = PRCTL;
        // SAFETY: this system call takes numbers only; it returns in rax and changes rcx and r11.
        unsafe {
            std::arch::asm!(
                "syscall",
                inout("rax") result,
                in("rdi") SET_MEMORY_DENY_WRITE_EXECUTE,
                in("rsi") REFUSE_EXECUTABLE,
                in("rdx") 0, in("r10") 0, in("r8") 0,
                out("rcx") _, out("r11") _,
            );
        }
        result == 0
    }
}
