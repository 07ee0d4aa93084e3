//! [`SharedMemory`]: a file without a name, in memory, that several processes map.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::{Buffer, HUGE_PAGE};

/// Memory that several processes read, as one copy: the process that makes it fills it through an
/// [`Arena`](crate::Arena) and seals it; others open it and map what was filled, in the same order.
#[derive(Debug)]
pub struct SharedMemory {
    file: File,
    /// Whether it was filled by another process. Mappings are private then: nothing written reaches the file.
    filled: bool,
}

impl SharedMemory {
    /// A new file, which grows as buffers are taken from it.
    ///
    /// # Errors
    /// The system has no such files, or no more of them.
    #[cfg(target_os = "linux")]
    pub fn create() -> io::Result<Self> {
        use rustix::fs::{MemfdFlags, memfd_create};

        let file = memfd_create("pace-weights", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        Ok(Self { file: file.into(), filled: false })
    }

    /// Only Linux has such files.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(target_os = "linux"))]
    pub fn create() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The file that another process has filled and sealed, such as `/proc/self/fd/7` for one that was inherited.
    ///
    /// # Errors
    /// It cannot be opened, or is not sealed: its owner could still change or shorten it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !is_sealed(&file) {
            let what = format!("{} is no sealed memory file", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(Self { file, filled: true })
    }

    /// Forbids everyone, this process too, to change the contents or the size from now on.
    ///
    /// # Errors
    /// A buffer of it lives, through which it could still be written; the system does not let files be sealed.
    #[cfg(target_os = "linux")]
    pub fn seal(&self) -> io::Result<()> {
        use rustix::fs::{SealFlags, fcntl_add_seals};

        Ok(fcntl_add_seals(&self.file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE)?)
    }

    /// As [`create`](Self::create).
    ///
    /// # Errors
    /// Always.
    #[cfg(not(target_os = "linux"))]
    pub fn seal(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether another process filled it.
    pub const fn is_filled(&self) -> bool {
        self.filled
    }

    /// Bytes in the file.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// The part of the file from `offset`, a multiple of 2 MiB, on; the file grows to hold it if this process fills it.
    #[cfg(target_os = "linux")]
    pub(crate) fn map(&self, offset: u64, bytes: usize, huge: bool) -> io::Result<Buffer> {
        let kept = bytes.checked_next_multiple_of(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let end = offset.checked_add(kept as u64).ok_or(io::ErrorKind::OutOfMemory)?;
        if self.filled {
            // Beyond the end of a file, reading a mapping of it kills the process.
            if end > self.bytes()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        } else {
            self.file.set_len(end)?;
        }
        Buffer::of_file(&self.file, offset, bytes, kept, !self.filled, huge)
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn map(&self, _offset: u64, _bytes: usize, _huge: bool) -> io::Result<Buffer> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl AsFd for SharedMemory {
    /// For handing the file to another process.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(target_os = "linux")]
fn is_sealed(file: &File) -> bool {
    use rustix::fs::{SealFlags, fcntl_get_seals};

    fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK | SealFlags::WRITE))
}

#[cfg(not(target_os = "linux"))]
fn is_sealed(_file: &File) -> bool {
    false
}

#[cfg(target_os = "linux")]
impl Buffer {
    /// `bytes` bytes of `file` from `offset` on, 2-MiB aligned; `kept` bytes are mapped, and all of them lie in the file.
    /// What is written goes into the file if `shared`, else nowhere but here.
    fn of_file(
        file: &File,
        offset: u64,
        bytes: usize,
        kept: usize,
        shared: bool,
        huge: bool,
    ) -> io::Result<Self> {
        use std::marker::PhantomData;
        use std::ptr::NonNull;

        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

        use super::Owner;

        let reserved = kept.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing existing.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::empty(), flags)? };
        let base = base.cast::<u8>();
        let head = base.align_offset(HUGE_PAGE);
        let start = base.wrapping_add(head);
        let tail = reserved - head - kept;
        let how = if shared { MapFlags::SHARED } else { MapFlags::PRIVATE } | MapFlags::FIXED;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: head, kept and tail are the new mapping, cut at page borders, and nobody uses them yet: the file replaces
        // the middle, the ends are given back. The file was checked to hold every byte; a filled one is sealed, so that no
        // other process can change or shorten what is mapped privately, and one that is being filled is this process's.
        unsafe {
            mmap(start.cast(), kept, access, how, file, offset)?;
            if head > 0 {
                munmap(base.cast(), head)?;
            }
            if tail > 0 {
                munmap(start.wrapping_add(kept).cast(), tail)?;
            }
            // Advice is a wish: most systems have no huge pages for files in memory, and small ones serve.
            if huge {
                let _ = madvise(start.cast(), kept, Advice::LinuxHugepage);
            }
        }
        let ptr = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { ptr, len: bytes, owner: Owner::Mapping(kept), marker: PhantomData })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::fd::AsRawFd;
    use std::sync::Arc;

    use super::*;
    use crate::{Arena, Placement};

    /// The same file, as another process has it.
    fn reopen(memory: &SharedMemory) -> io::Result<SharedMemory> {
        SharedMemory::open(Path::new(&format!("/proc/self/fd/{}", memory.as_fd().as_raw_fd())))
    }

    #[test]
    fn what_one_fills_another_maps() {
        let sizes = [1000, 64, 3 << 20, 7, 5 << 20];
        let memory = Arc::new(SharedMemory::create().unwrap());
        assert!(reopen(&memory).is_err(), "it may still change");
        let arena = Arena::shared(Placement::default(), Arc::clone(&memory));
        assert!(!arena.is_filled());
        let mut own: Vec<_> = sizes.iter().map(|&bytes| arena.zeroed(bytes).unwrap()).collect();
        for (i, buffer) in own.iter_mut().enumerate() {
            buffer.as_mut_slice::<half::bf16>().fill(half::bf16::from_f32(i as f32 + 1.0));
        }
        assert!(memory.seal().is_err(), "it can still be written through these");
        drop((own, arena));
        memory.seal().unwrap();
        let other = Arena::shared(Placement::default(), Arc::new(reopen(&memory).unwrap()));
        assert!(other.is_filled());
        for (i, &bytes) in sizes.iter().enumerate() {
            let mut buffer = other.zeroed(bytes).unwrap();
            let expected = half::bf16::from_f32(i as f32 + 1.0);
            assert!(buffer.as_slice::<half::bf16>().iter().all(|&x| x == expected), "{i}");
            buffer.as_mut_slice::<half::bf16>().fill(half::bf16::ZERO);
        }
        // Nobody else sees what was written there.
        let third = Arena::shared(Placement::default(), Arc::new(reopen(&memory).unwrap()));
        for (i, &bytes) in sizes.iter().enumerate() {
            let expected = half::bf16::from_f32(i as f32 + 1.0);
            assert!(
                third.zeroed(bytes).unwrap().as_slice::<half::bf16>().iter().all(|&x| x == expected),
                "{i}"
            );
        }
        assert!(other.zeroed(64 << 20).is_err(), "more than was filled");
        assert!(memory.file.set_len(0).is_err() && memory.file.set_len(1 << 30).is_err());
    }

    #[test]
    fn other_files_are_refused() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let error = SharedMemory::open(&file).unwrap_err();
        assert!(error.to_string().contains("no sealed memory file"), "{error}");
    }
}
