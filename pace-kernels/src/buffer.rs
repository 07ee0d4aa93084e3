//! Owned, zeroed, aligned memory for weights and KV blocks.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::Element;

pub(crate) mod huge_pages;
pub(crate) mod mapped;
pub(crate) mod shared;

/// 2 MiB: the huge page of x86-64 and AArch64, and the size from which a buffer is mapped.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

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

impl Placement {
    /// What [`Buffer::held`] is going to say of a buffer of `bytes` bytes, within so many that were reserved if it is
    /// one of [`Buffer::reserve`].
    pub fn held(self, bytes: usize, reserved: Option<usize>) -> usize {
        let huge = self.asks_for_huge_pages(reserved.unwrap_or(bytes));
        match reserved {
            Some(capacity) if !Buffer::GROWS_IN_PLACE => capacity,
            None if !Buffer::GROWS_IN_PLACE || (bytes < HUGE_PAGE && !huge) => bytes,
            _ => bytes.next_multiple_of(page(huge)),
        }
    }

    const fn asks_for_huge_pages(self, bytes: usize) -> bool {
        match self.hugepages {
            HugePages::Auto => bytes >= HUGE_PAGE,
            HugePages::Always => bytes > 0,
            HugePages::Never => false,
        }
    }
}

/// Memory that reads as zero until written. A page belongs to the NUMA node of the thread that
/// first writes it.
///
/// Buffers of 2 MiB and more start on a 2-MiB border, smaller ones and those of an [`Arena`](crate::Arena) on a cache line.
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
        let huge = placement.asks_for_huge_pages(bytes);
        if bytes >= HUGE_PAGE || huge { map(bytes, huge) } else { allocate(bytes, Self::LINE) }
    }

    /// Whether [`extend`](Self::extend) takes memory only as a buffer grows. Where it does not, a reserved buffer takes
    /// all of it at once.
    pub const GROWS_IN_PLACE: bool = cfg!(target_os = "linux");

    /// An empty buffer that can be extended to `capacity` bytes in place: addresses, and no memory yet.
    ///
    /// # Errors
    /// The system refused the addresses.
    pub fn reserve(capacity: usize, placement: Placement) -> Result<Self, OutOfMemory> {
        if capacity == 0 {
            return Self::zeroed(0, placement);
        }
        reserve(capacity, placement.asks_for_huge_pages(capacity))
    }

    /// Makes a buffer from [`reserve`](Self::reserve) `len` bytes long. Nothing moves; new bytes read as zero.
    ///
    /// # Errors
    /// The system refused the memory; the buffer is as before.
    ///
    /// # Panics
    /// The buffer would become shorter, or longer than was reserved.
    pub fn extend(&mut self, len: usize) -> Result<(), OutOfMemory> {
        assert!(len >= self.len, "a buffer only grows");
        match &mut self.owner {
            #[cfg(target_os = "linux")]
            Owner::Reserved(reserved) => reserved.commit(self.ptr, len)?,
            #[cfg(not(target_os = "linux"))]
            Owner::Reserved(inner) => assert!(len <= inner.len, "longer than was reserved"),
            _ => assert_eq!(len, self.len, "only a reserved buffer can be extended"),
        }
        self.len = len;
        Ok(())
    }

    /// Bytes that it may take from the system: its size in whole pages if it is mapped.
    pub fn held(&self) -> usize {
        match &self.owner {
            #[cfg(target_os = "linux")]
            Owner::Mapping(bytes) => *bytes,
            #[cfg(target_os = "linux")]
            Owner::Reserved(reserved) => reserved.committed,
            #[cfg(not(target_os = "linux"))]
            Owner::Reserved(inner) => inner.len,
            _ => self.len,
        }
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
        // SAFETY: the memory is initialised (zeroed, or what a file holds that nobody else changes), aligned to a cache
        // line, owned by `self`, and any bits are a valid `Element`, because it is Pod.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast(), self.len / size_of::<E>()) }
    }

    /// The elements, to write; bytes after the last whole one are left out.
    ///
    /// # Panics
    /// The bytes are those of a [mapped](Self::mapped) file, which are only read.
    pub fn as_mut_slice<E: Element>(&mut self) -> &mut [E] {
        assert!(!matches!(self.owner, Owner::File { .. }), "a mapped file is only read");
        // SAFETY: as in `as_slice`, and `&mut self` makes it exclusive; memory that cannot be written was refused.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr().cast(), self.len / size_of::<E>()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.owner {
            Owner::Nobody | Owner::Region { .. } | Owner::File { .. } => {}
            #[cfg(not(target_os = "linux"))]
            Owner::Reserved(_) => {}
            // SAFETY: `ptr` came from `alloc_zeroed` with this layout and was not freed before.
            Owner::Allocator(layout) => unsafe { std::alloc::dealloc(self.ptr.as_ptr(), layout) },
            #[cfg(target_os = "linux")]
            Owner::Mapping(bytes) | Owner::Reserved(Reserved { bytes, .. }) => {
                // SAFETY: these bytes were mapped by `map_aligned` or `of_file` for this buffer alone.
                let unmapped = unsafe { rustix::mm::munmap(self.ptr.as_ptr().cast(), bytes) };
                // It can fail only where a process may have no more mappings (`vm.max_map_count`) and this one would be cut
                // out of the middle of a larger one. The memory is lost then; nothing refers to it.
                debug_assert!(unmapped.is_ok(), "too many mappings");
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
    /// A part of a file, without write access.
    File {
        _alive: Arc<mapped::MappedFile>,
    },
    #[cfg(target_os = "linux")]
    Mapping(usize),
    /// Addresses, the first of which are memory.
    #[cfg(target_os = "linux")]
    Reserved(Reserved),
    /// All of the memory.
    #[cfg(not(target_os = "linux"))]
    Reserved(Box<Buffer>),
}

/// A mapping whose pages cannot be accessed until they are committed.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy, Debug)]
struct Reserved {
    /// The size of the mapping.
    bytes: usize,
    /// Bytes from its start that can be accessed.
    committed: usize,
    /// Pages are committed in multiples of this.
    page: usize,
}

#[cfg(target_os = "linux")]
impl Reserved {
    /// Lets the first `len` bytes of the mapping at `ptr` be read and written.
    fn commit(&mut self, ptr: NonNull<u8>, len: usize) -> Result<(), OutOfMemory> {
        use rustix::mm::{MprotectFlags, mprotect};

        assert!(len <= self.bytes, "longer than was reserved");
        let end = len.next_multiple_of(self.page);
        if end > self.committed {
            let access = MprotectFlags::READ | MprotectFlags::WRITE;
            let bytes = end - self.committed;
            // SAFETY: `committed..end` are whole pages of this buffer's own mapping, whose size is a multiple of
            // `page`, too, and which no reference points into yet.
            unsafe { mprotect(ptr.as_ptr().add(self.committed).cast(), bytes, access) }
                .map_err(|_| OutOfMemory { bytes })?;
            self.committed = end;
        }
        Ok(())
    }
}

/// The size of a page.
fn page(huge: bool) -> usize {
    if huge { HUGE_PAGE } else { rustix::param::page_size() }
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

#[cfg(not(target_os = "linux"))]
fn reserve(capacity: usize, _huge: bool) -> Result<Buffer, OutOfMemory> {
    let inner = Box::new(allocate(capacity, Buffer::LINE)?);
    Ok(Buffer { ptr: inner.ptr, len: 0, owner: Owner::Reserved(inner), marker: PhantomData })
}

#[cfg(target_os = "linux")]
fn map(bytes: usize, huge: bool) -> Result<Buffer, OutOfMemory> {
    use rustix::mm::{MapFlags, ProtFlags};

    let access = ProtFlags::READ | ProtFlags::WRITE;
    let (ptr, kept) = map_aligned(bytes, huge, access, MapFlags::PRIVATE)?;
    Ok(Buffer { ptr, len: bytes, owner: Owner::Mapping(kept), marker: PhantomData })
}

#[cfg(target_os = "linux")]
fn reserve(capacity: usize, huge: bool) -> Result<Buffer, OutOfMemory> {
    use rustix::mm::{MapFlags, ProtFlags};

    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let (ptr, bytes) = map_aligned(capacity, huge, ProtFlags::empty(), flags)?;
    let owner = Owner::Reserved(Reserved { bytes, committed: 0, page: page(huge) });
    Ok(Buffer { ptr, len: 0, owner, marker: PhantomData })
}

/// Maps whole pages, 2-MiB aligned: one huge page more than needed, then both ends are returned. Gives the size, too.
#[cfg(target_os = "linux")]
fn map_aligned(
    bytes: usize,
    huge: bool,
    access: rustix::mm::ProtFlags,
    flags: rustix::mm::MapFlags,
) -> Result<(NonNull<u8>, usize), OutOfMemory> {
    use rustix::mm::{Advice, madvise, mmap_anonymous, munmap};

    let out_of_memory = OutOfMemory { bytes };
    let kept = bytes.checked_next_multiple_of(page(huge)).ok_or(out_of_memory)?;
    let mapped = kept.checked_add(HUGE_PAGE).ok_or(out_of_memory)?;
    // SAFETY: a new private mapping at an address of the kernel's choice touches nothing existing.
    let base = unsafe { mmap_anonymous(std::ptr::null_mut(), mapped, access, flags) }
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
    Ok((NonNull::new(start).ok_or(out_of_memory)?, kept))
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

    #[test]
    fn a_reserved_buffer_grows_in_place() {
        for hugepages in [HugePages::Auto, HugePages::Always, HugePages::Never] {
            let placement = Placement { hugepages };
            for capacity in [0, 1, 5000, 3 * HUGE_PAGE + 5] {
                let mut buffer = Buffer::reserve(capacity, placement).unwrap();
                let start = buffer.as_slice::<f32>().as_ptr();
                assert!(buffer.is_empty());
                for len in [0, capacity / 3, capacity / 3, capacity] {
                    let old = buffer.as_slice::<f32>().len();
                    buffer.extend(len).unwrap();
                    assert_eq!(
                        buffer.held(),
                        placement.held(len, Some(capacity)),
                        "{hugepages:?} {capacity} {len}"
                    );
                    let all = buffer.as_mut_slice::<f32>();
                    assert_eq!((all.len(), all.as_ptr()), (len / 4, start));
                    assert!(all[..old].iter().all(|&x| x == 7.0) && all[old..].iter().all(|&x| x == 0.0));
                    all.fill(7.0);
                }
            }
        }
        let vast = Buffer::reserve(usize::MAX / 2, Placement::default()).unwrap_err();
        assert_eq!(vast, OutOfMemory { bytes: usize::MAX / 2 });
    }

    #[test]
    #[should_panic(expected = "longer than was reserved")]
    fn no_buffer_grows_beyond_what_was_reserved() {
        let mut buffer = Buffer::reserve(5000, Placement::default()).unwrap();
        let _ = buffer.extend(3 * HUGE_PAGE);
    }

    #[test]
    fn what_is_held_is_known_beforehand() {
        for hugepages in [HugePages::Auto, HugePages::Always, HugePages::Never] {
            let placement = Placement { hugepages };
            for bytes in [0, 1, 4096, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1] {
                assert_eq!(Buffer::zeroed(bytes, placement).unwrap().held(), placement.held(bytes, None));
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
