//! [`MappedFile`]: a file's bytes in the address space.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::{Buffer, Owner};

/// A file that is mapped to be read, as long as it was when it was mapped.
///
/// Bytes are copied out, so that others may change the file; only [`Buffer::mapped`] lends them, of files that nobody
/// writes to. If others shorten the file, reading what is gone ends the process with SIGBUS; that is the price of a mapping.
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

impl Buffer {
    /// `bytes` bytes of a mapped file from `offset` on, shared with every process that maps it. They are only read: see
    /// [`as_mut_slice`](Self::as_mut_slice). The mapping lives as long as the buffer.
    ///
    /// The file must stay as it is while the buffer lives, which the system cannot promise: whoever writes to it changes
    /// the buffer's numbers, and whoever shortens it ends the process. Map files that are written once, and replaced by
    /// another file of the name rather than changed.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`]: the offset is no multiple of a cache line, 64 bytes.
    /// [`io::ErrorKind::UnexpectedEof`]: the bytes leave the file.
    pub fn mapped(file: &Arc<MappedFile>, offset: u64, bytes: usize) -> io::Result<Self> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        if start > file.len || bytes > file.len - start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !start.is_multiple_of(Self::LINE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the offset lies in the mapping, or at its end. Of a page-aligned mapping, it is aligned to a cache line.
        let ptr = unsafe { file.ptr.add(start) };
        Ok(Self { ptr, len: bytes, owner: Owner::File { _alive: Arc::clone(file) }, marker: PhantomData })
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and no pointer to it is left: a buffer keeps the value alive.
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

    #[test]
    fn a_part_of_a_file_is_lent_and_outlives_the_rest() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<_> = (0..10_000).map(|i| (i * 7) as u8).collect();
        file.write_all(&bytes).unwrap();
        let map = Arc::new(MappedFile::new(&file).unwrap());
        for (offset, len) in [(0, 10_000), (64, 9_936), (4_096, 128), (9_984, 0), (9_984, 16)] {
            let buffer = Buffer::mapped(&map, offset as u64, len).unwrap();
            let halves: &[half::bf16] = buffer.as_slice();
            assert_eq!(bytemuck::cast_slice::<_, u8>(halves), &bytes[offset..offset + len]);
        }
        for (offset, len) in [(0, 10_001), (64, 9_937), (10_048, 0), (u64::MAX, 1)] {
            let error = Buffer::mapped(&map, offset, len).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{offset} {len}");
        }
        for offset in [1, 4, 32, 65] {
            assert_eq!(Buffer::mapped(&map, offset, 8).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let buffer = Buffer::mapped(&map, 64, 4).unwrap();
        drop((map, file));
        assert_eq!(bytemuck::cast_slice::<_, u8>(buffer.as_slice::<f32>()), &bytes[64..68]);
    }

    #[test]
    #[should_panic(expected = "only read")]
    fn what_is_lent_is_not_written() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; 64]).unwrap();
        let map = Arc::new(MappedFile::new(&file).unwrap());
        Buffer::mapped(&map, 0, 64).unwrap().as_mut_slice::<f32>().fill(1.0);
    }
}
