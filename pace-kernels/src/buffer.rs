//! Owned, zeroed, aligned memory for weights and KV blocks.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::Element;

pub(crate) mod huge_pages;
pub(crate) mod shared;

/// 2 MiB: the huge page of x86-64 and AArch64, and the size from which a buffer is mapped.
const HUGE_PAGE: usize = 2 << 20;

/// Whether to ask the kernel for huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// From 2 MiB on.
    #[default]
    Auto,
    /// For every size.
    Always,
    /// Never.
    Never,
}

/// Where and how memory is placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Whether to ask for huge pages.
    pub hugepages: HugePages,
}

/// Memory that reads as zero until written. A page belongs to the NUMA node of the thread that
/// first writes it.
///
/// Buffers of 2 MiB and more start on a 2-MiB border, smaller ones on a cache line.
#[derive(Debug)]
pub struct Buffer {
    ptr: NonNull<u8>,
    len: usize,
    owner: Owner,
    marker: PhantomData<u8>,
}

/// The system refused memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory: {bytes} bytes are not available")]
pub struct OutOfMemory {
    /// The size that was asked for.
    pub bytes: usize,
}

impl Buffer {
    /// A cache line, the alignment of small buffers.
    pub(crate) const LINE: usize = 64;

    /// `bytes` zeroed bytes.
    ///
    /// # Errors
    /// The system refused the memory.
    pub fn zeroed(bytes: usize, placement: Placement) -> Result<Self, OutOfMemory> {
        let huge = match placement.hugepages {
            HugePages::Auto => bytes >= HUGE_PAGE,
            HugePages::Always => bytes > 0,
            HugePages::Never => false,
        };
        if bytes >= HUGE_PAGE || huge { map(bytes, huge) } else { allocate(bytes, Self::LINE) }
    }

    /// `bytes` bytes of a region from `start` on, a multiple of a cache line. The region lives as long.
    ///
    /// # Safety
    /// The bytes lie in the region, and no one else reads or writes them while the buffer lives.
    pub(crate) unsafe fn part(region: Arc<Self>, start: usize, bytes: usize) -> Self {
        assert!(start.is_multiple_of(Self::LINE) && bytes <= region.len && start <= region.len - bytes);
        // SAFETY: passed on to the caller.
        let ptr = unsafe { region.ptr.add(start) };
        Self { ptr, len: bytes, owner: Owner::Region { _alive: region }, marker: PhantomData }
    }

    /// The part of this buffer's memory that lies in huge pages, from 0 to 1, for reports: it reads the
    /// kernel's list of all mappings. Memory that was never written counts for nothing.
    ///
    /// The kernel counts by mapping and merges mappings that lie next to each other, so that the figure
    /// of a buffer includes its neighbours. `None` without memory, and on systems other than Linux.
    pub fn huge_share(&self) -> Option<f64> {
        huge_pages::share(&[self.addresses()])
    }

    /// Where it lies.
    pub(crate) fn addresses(&self) -> std::ops::Range<usize> {
        let start = self.ptr.addr().get();
        start..start + self.len
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements; bytes after the last whole one are left out.
    pub fn as_slice<E: Element>(&self) -> &[E] {
        // SAFETY: the memory is initialised (zeroed), aligned to a cache line, owned by `self`,
        // and any bits are a valid `Element`, because it is Pod.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast(), self.len / size_of::<E>()) }
    }

    /// The elements, to write; bytes after the last whole one are left out.
    pub fn as_mut_slice<E: Element>(&mut self) -> &mut [E] {
        // SAFETY: as in `as_slice`, and `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr().cast(), self.len / size_of::<E>()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.owner {
            Owner::Nobody | Owner::Region { .. } => {}
            // SAFETY: `ptr` came from `alloc_zeroed` with this layout and was not freed before.
            Owner::Allocator(layout) => unsafe { std::alloc::dealloc(self.ptr.as_ptr(), layout) },
            #[cfg(target_os = "linux")]
            Owner::Mapping(bytes) => {
                // SAFETY: these bytes were mapped by `map` for this buffer alone.
                let unmapped = unsafe { rustix::mm::munmap(self.ptr.as_ptr().cast(), bytes) };
                debug_assert!(unmapped.is_ok(), "munmap of an owned mapping cannot fail");
            }
        }
    }
}

// SAFETY: a Buffer owns plain bytes; sharing them follows the usual borrow rules of its methods.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

#[derive(Debug)]
enum Owner {
    Nobody,
    Allocator(std::alloc::Layout),
    /// A part of a larger buffer.
    Region {
        _alive: Arc<Buffer>,
    },
    #[cfg(target_os = "linux")]
    Mapping(usize),
}

fn allocate(bytes: usize, align: usize) -> Result<Buffer, OutOfMemory> {
    let out_of_memory = OutOfMemory { bytes };
    let layout = std::alloc::Layout::from_size_align(bytes, align).map_err(|_| out_of_memory)?;
    if bytes == 0 {
        let ptr = NonNull::<Line>::dangling().cast();
        return Ok(Buffer { ptr, len: 0, owner: Owner::Nobody, marker: PhantomData });
    }
    // SAFETY: the layout has a size above zero.
    let ptr = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).ok_or(out_of_memory)?;
    Ok(Buffer { ptr, len: bytes, owner: Owner::Allocator(layout), marker: PhantomData })
}

/// Its dangling pointer has a cache line's alignment.
#[repr(align(64))]
struct Line;

#[cfg(not(target_os = "linux"))]
fn map(bytes: usize, _huge: bool) -> Result<Buffer, OutOfMemory> {
    allocate(bytes, HUGE_PAGE)
}

/// Maps whole pages, 2-MiB aligned: one huge page more than needed, then both ends are returned.
#[cfg(target_os = "linux")]
fn map(bytes: usize, huge: bool) -> Result<Buffer, OutOfMemory> {
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    let out_of_memory = OutOfMemory { bytes };
    let unit = if huge { HUGE_PAGE } else { 4096 };
    let kept = bytes.checked_next_multiple_of(unit).ok_or(out_of_memory)?;
    let mapped = kept.checked_add(HUGE_PAGE).ok_or(out_of_memory)?;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new private mapping at an address of the kernel's choice touches nothing existing.
    let base = unsafe { mmap_anonymous(std::ptr::null_mut(), mapped, access, MapFlags::PRIVATE) }
        .map_err(|_| out_of_memory)?
        .cast::<u8>();
    let head = base.align_offset(HUGE_PAGE);
    let start = base.wrapping_add(head);
    let tail = mapped - head - kept;
    let advice = if huge { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
    // SAFETY: head, kept and tail bytes are the new mapping, cut at page borders; nobody uses
    // them yet.
    unsafe {
        if head > 0 {
            munmap(base.cast(), head).map_err(|_| out_of_memory)?;
        }
        if tail > 0 {
            munmap(start.wrapping_add(kept).cast(), tail).map_err(|_| out_of_memory)?;
        }
        // Advice is a wish: a kernel built without huge pages refuses it, and small ones serve.
        let _ = madvise(start.cast(), kept, advice);
    }
    let ptr = NonNull::new(start).ok_or(out_of_memory)?;
    Ok(Buffer { ptr, len: bytes, owner: Owner::Mapping(kept), marker: PhantomData })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_aligned_and_writable() {
        for hugepages in [HugePages::Auto, HugePages::Always, HugePages::Never] {
            for bytes in [0, 1, 63, 4096, HUGE_PAGE - 1, HUGE_PAGE, 3 * HUGE_PAGE + 5] {
                let mut buffer = Buffer::zeroed(bytes, Placement { hugepages }).unwrap();
                let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { Buffer::LINE };
                assert_eq!(buffer.as_slice::<f32>().as_ptr() as usize % align, 0);
                assert_eq!((buffer.len(), buffer.is_empty()), (bytes, bytes == 0));
                assert!(buffer.as_slice::<f32>().iter().all(|&x| x == 0.0));
                buffer.as_mut_slice::<f32>().fill(1.5);
                assert_eq!(buffer.as_slice::<f32>(), vec![1.5; bytes / 4]);
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn huge_pages_are_reported() {
        let share = |hugepages| {
            // Large, so that neighbours in the same mapping count little.
            let mut buffer = Buffer::zeroed(64 << 20, Placement { hugepages }).unwrap();
            buffer.as_mut_slice::<f32>().fill(1.0);
            buffer.huge_share().unwrap()
        };
        assert!(share(HugePages::Never) < 0.5);
        // The system may refuse them; what it says is in range all the same.
        assert!((0.0..=1.0).contains(&share(HugePages::Always)));
        assert_eq!(Buffer::zeroed(0, Placement::default()).unwrap().huge_share(), None);
    }

    #[test]
    fn an_absurd_size_is_an_error_that_names_it() {
        for bytes in [usize::MAX, usize::MAX / 4, 1 << 60] {
            let error = Buffer::zeroed(bytes, Placement::default()).unwrap_err();
            assert_eq!(error, OutOfMemory { bytes });
            assert!(error.to_string().contains(&bytes.to_string()));
        }
    }
}
