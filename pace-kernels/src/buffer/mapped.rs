//! [`MappedFile`]: a file's bytes in the address space.

use std::fs::File;
use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// A file that is mapped to be read, as long as it was when it was mapped.
///
/// Bytes are copied out and no reference to them is given: others may change the file. If others shorten it, reading what
/// is gone ends the process with SIGBUS; that is the price of a mapping.
#[derive(Debug)]
pub struct MappedFile {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the value alone, and shared access only reads it.
unsafe impl Send for MappedFile {}
// SAFETY: as above.
unsafe impl Sync for MappedFile {}

impl MappedFile {
    /// Maps all of `file`, and asks the system to read it ahead.
    ///
    /// # Errors
    /// The file is empty, of a kind that cannot be mapped, or longer than the addresses that are left.
    pub fn new(file: &File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing existing.
        let ptr = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, file, 0)? };
        // SAFETY: this advice changes nothing in the range, which is the new mapping.
        let _ = unsafe { madvise(ptr, len, Advice::WillNeed) };
        let ptr = NonNull::new(ptr.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { ptr, len })
    }

    /// Its bytes.
    pub const fn bytes(&self) -> usize {
        self.len
    }

    /// Copies `out.len()` bytes from `offset` on.
    ///
    /// # Errors
    /// They leave the mapping: [`io::ErrorKind::UnexpectedEof`], as for a file.
    pub fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok().filter(|&start| start <= self.len);
        let start =
            start.filter(|&start| out.len() <= self.len - start).ok_or(io::ErrorKind::UnexpectedEof)?;
        // SAFETY: the bytes lie in the mapping, which lives, and `out` is this call's alone. Any byte is valid, whatever
        // somebody else writes to the file meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr.as_ptr().add(start), out.as_mut_ptr(), out.len()) };
        Ok(())
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and no pointer to it is left.
        let _ = unsafe { munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Write};

    use super::*;

    #[test]
    fn what_is_in_the_file_is_read_and_nothing_else() {
        let mut file = tempfile::tempfile().unwrap();
        assert!(MappedFile::new(&file).is_err(), "an empty file");
        let bytes: Vec<_> = (0..10_000).map(|i| (i * 7) as u8).collect();
        file.write_all(&bytes).unwrap();
        let map = MappedFile::new(&file).unwrap();
        drop(file);
        assert_eq!(map.bytes(), bytes.len());
        for (at, len) in [(0, 10_000), (1, 9_999), (4_095, 2), (9_999, 1), (10_000, 0), (17, 0)] {
            let mut out = vec![0; len];
            map.read_exact_at(&mut out, at as u64).unwrap();
            assert_eq!(out, bytes[at..at + len], "{at} {len}");
        }
        for (at, len) in [(0, 10_001), (9_999, 2), (10_000, 1), (10_001, 0), (u64::MAX, 1)] {
            let mut out = vec![1; len];
            assert_eq!(map.read_exact_at(&mut out, at).unwrap_err().kind(), ErrorKind::UnexpectedEof);
            assert!(out.iter().all(|&byte| byte == 1), "{at} {len}");
        }
    }
}
