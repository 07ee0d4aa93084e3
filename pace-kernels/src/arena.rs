//! Memory for many buffers, which share huge pages at their borders.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buffer::{HUGE_PAGE, huge_pages};
use crate::{Buffer, HugePages, OutOfMemory, Placement, SharedMemory};

/// Bytes that are reserved at a time. Only what is written takes memory.
const CHUNK: usize = 64 << 20;

/// Hands out [`Buffer`]s that lie one after the other. Those below 2 MiB share huge pages: the matrices of a small model
/// would otherwise lie in pages of 4 KiB, from which memory is read at two thirds of the speed. Larger ones share those at
/// their borders: in pages of their own, the int8 matrices of a model of 1 B, whose scales lie behind their weights, took
/// 11 % more memory.
///
/// Memory is given back when the arena and every buffer of a chunk of 64 MiB are gone; a single buffer
/// gives nothing back, so an arena is for what lives as long as the model. A huge page belongs to the
/// NUMA node of the thread that first writes any part of it.
///
/// ```
/// use pace_kernels::{Arena, Placement};
///
/// # fn main() -> Result<(), pace_kernels::OutOfMemory> {
/// let arena = Arena::new(Placement::default());
/// let (mut a, b) = (arena.zeroed(1000)?, arena.zeroed(64)?);
/// drop(arena);
/// a.as_mut_slice::<f32>().fill(1.0);
/// assert_eq!(b.as_slice::<f32>(), [0.0; 16]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Arena {
    placement: Placement,
    /// The file that the memory is mapped from; none: memory of this process alone.
    file: Option<Arc<SharedMemory>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Chunk>,
    /// Where all chunks and large buffers lie, or lay.
    reserved: Vec<Range<usize>>,
    /// Bytes of the file that are mapped.
    mapped: u64,
}

#[derive(Debug)]
struct Chunk {
    region: Arc<Buffer>,
    /// Bytes handed out, a multiple of a cache line.
    used: usize,
}

impl Arena {
    /// Nothing reserved yet.
    pub const fn new(placement: Placement) -> Self {
        Self::with(placement, None)
    }

    /// Nothing reserved yet of `file`. Whoever takes buffers of the same sizes in the same order, in any process, gets
    /// the same bytes of it.
    pub const fn shared(placement: Placement, file: Arc<SharedMemory>) -> Self {
        Self::with(placement, Some(file))
    }

    const fn with(placement: Placement, file: Option<Arc<SharedMemory>>) -> Self {
        let state = State { current: None, reserved: Vec::new(), mapped: 0 };
        Self { placement, file, state: Mutex::new(state) }
    }

    /// Whether buffers hold what another process has written already.
    pub fn is_filled(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.is_filled())
    }

    /// `bytes` zeroed bytes that start on a cache line. From 64 MiB on the same as [`Buffer::zeroed`].
    ///
    /// # Errors
    /// The system refused the memory.
    pub fn zeroed(&self, bytes: usize) -> Result<Buffer, OutOfMemory> {
        if bytes == 0 || bytes >= CHUNK {
            return self.reserve(bytes, &mut self.state());
        }
        let mut state = self.state();
        let (region, start) = match &state.current {
            Some(chunk) if bytes <= CHUNK - chunk.used => (Arc::clone(&chunk.region), chunk.used),
            _ => {
                let region = Arc::new(self.reserve(CHUNK, &mut state)?);
                state.current = Some(Chunk { region: Arc::clone(&region), used: 0 });
                (region, 0)
            }
        };
        if let Some(chunk) = &mut state.current {
            chunk.used = (start + bytes).next_multiple_of(Buffer::LINE);
        }
        // SAFETY: the bytes lie in the region, nobody uses the region itself, and `used` only grows, so
        // no other buffer has them.
        Ok(unsafe { Buffer::part(region, start, bytes) })
    }

    /// The part of the memory of all buffers that lies in huge pages, as [`Buffer::huge_share`] has it for one. Ask
    /// while they live: what has been given back may be somebody else's by now.
    pub fn huge_share(&self) -> Option<f64> {
        huge_pages::share(&self.state().reserved)
    }

    /// Memory of the file, or of this process alone.
    fn reserve(&self, bytes: usize, state: &mut State) -> Result<Buffer, OutOfMemory> {
        let buffer = match &self.file {
            Some(file) if bytes > 0 => {
                let huge = self.placement.hugepages != HugePages::Never;
                let buffer = file.map(state.mapped, bytes, huge).map_err(|_| OutOfMemory { bytes })?;
                state.mapped += bytes.next_multiple_of(HUGE_PAGE) as u64;
                buffer
            }
            _ => Buffer::zeroed(bytes, self.placement)?,
        };
        state.reserved.push(buffer.addresses());
        Ok(buffer)
    }

    /// Where all buffers lie, or lay: addresses of this process, for asking the system about them.
    pub fn addresses(&self) -> Vec<Range<usize>> {
        self.state().reserved.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What the lock guards is valid at every moment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_disjoint_and_on_cache_lines() {
        let arena = Arena::new(Placement::default());
        let sizes = [1, 63, 64, 65, 4096, 100_000, 2 << 20, (6 << 20) + 1, 0, 7];
        let mut buffers: Vec<_> =
            sizes.iter().cycle().take(100).map(|&bytes| arena.zeroed(bytes).unwrap()).collect();
        for (i, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.len(), sizes[i % sizes.len()]);
            assert!(buffer.as_slice::<half::bf16>().iter().all(|x| x.to_bits() == 0));
            buffer.as_mut_slice::<half::bf16>().fill(half::bf16::from_bits(i as u16));
        }
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(buffer.as_slice::<f32>().as_ptr().addr().is_multiple_of(64));
            assert!(buffer.as_slice::<half::bf16>().iter().all(|x| x.to_bits() == i as u16));
        }
        let ranges = buffers.iter().map(|b| b.as_slice::<half::bf16>().as_ptr_range());
        let mut ranges: Vec<_> = ranges.filter(|range| !range.is_empty()).collect();
        ranges.sort_by_key(|range| range.start);
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }

    #[test]
    fn small_buffers_share_a_huge_page_and_outlive_the_arena() {
        let arena = Arena::new(Placement::default());
        let buffers: Vec<_> = (0..3).map(|_| arena.zeroed(1000).unwrap()).collect();
        let addresses = arena.addresses();
        drop(arena);
        let starts: Vec<_> = buffers.iter().map(|b| b.as_slice::<f32>().as_ptr().addr()).collect();
        assert!(starts[0].is_multiple_of(HUGE_PAGE));
        assert_eq!((starts[1] - starts[0], starts[2] - starts[0]), (1024, 2048));
        assert_eq!(addresses, vec![starts[0]..starts[0] + CHUNK]);
        assert_eq!(buffers[2].as_slice::<f32>(), [0.0; 250]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn huge_pages_are_reported_for_all_buffers() {
        use crate::HugePages;

        let arena = Arena::new(Placement { hugepages: HugePages::Never });
        assert_eq!(arena.huge_share(), None);
        // Large, so that neighbours in the same mapping count little.
        let mut buffers = [64 << 20, 1 << 20].map(|bytes| arena.zeroed(bytes).unwrap());
        buffers.iter_mut().for_each(|buffer| buffer.as_mut_slice::<f32>().fill(1.0));
        assert!(arena.huge_share().unwrap() < 0.5);
    }

    #[test]
    fn threads_get_different_memory() {
        let arena = Arena::new(Placement::default());
        let mut starts = Vec::new();
        std::thread::scope(|scope| {
            let take = || (0..2000).map(|_| arena.zeroed(32_000).unwrap()).collect::<Vec<_>>();
            let threads = [scope.spawn(take), scope.spawn(take)];
            let buffers = threads.map(|thread| thread.join().unwrap());
            starts.extend(buffers.iter().flatten().map(|b| b.as_slice::<f32>().as_ptr().addr()));
        });
        starts.sort_unstable();
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= 32_000));
    }
}
