//! Temporary f32 memory that the caller owns and kernels borrow.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use crate::{Buffer, Placement};

/// A set of reusable buffers, one per engine. It is used by one thread at a time: parallel code
/// takes one buffer and cuts it into slots (see [`Par::tasks`](crate::Par::tasks)).
///
/// A request is served by the smallest free buffer that is large enough; if there is none, the
/// largest free one is replaced. So buffers only grow, and a repeated pattern of requests
/// allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    free: RefCell<Vec<Buffer>>,
}

impl Scratch {
    /// No buffers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `len` elements with unspecified contents, 64-byte aligned, until the result is dropped.
    ///
    /// # Panics
    /// If the system refuses the memory.
    pub fn take(&self, len: usize) -> ScratchBuf<'_> {
        let bytes = len.checked_mul(size_of::<f32>()).expect("the size of a scratch buffer fits usize");
        let reused = self.take_free(bytes);
        let buffer = match reused {
            Some(buffer) if buffer.len() >= bytes => buffer,
            too_small => {
                drop(too_small);
                Buffer::zeroed(bytes, Placement::default()).unwrap_or_else(|error| panic!("scratch: {error}"))
            }
        };
        ScratchBuf { scratch: self, buffer: Some(buffer), len }
    }

    /// Bytes of the buffers that are not taken at the moment.
    pub fn bytes(&self) -> usize {
        self.free.borrow().iter().map(Buffer::len).sum()
    }

    /// The smallest free buffer of at least `bytes`, or else the largest one.
    fn take_free(&self, bytes: usize) -> Option<Buffer> {
        let mut free = self.free.borrow_mut();
        let enough = (0..free.len()).filter(|&i| free[i].len() >= bytes).min_by_key(|&i| free[i].len());
        let chosen = enough.or_else(|| (0..free.len()).max_by_key(|&i| free[i].len()))?;
        Some(free.swap_remove(chosen))
    }
}

/// Borrowed scratch memory: a `[f32]` that goes back to its [`Scratch`] when dropped.
#[derive(Debug)]
pub struct ScratchBuf<'a> {
    scratch: &'a Scratch,
    buffer: Option<Buffer>,
    len: usize,
}

impl Deref for ScratchBuf<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer.as_slice()[..self.len])
    }
}

impl DerefMut for ScratchBuf<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        let len = self.len;
        self.buffer.as_mut().map_or(&mut [], |buffer| &mut buffer.as_mut_slice()[..len])
    }
}

impl Drop for ScratchBuf<'_> {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.scratch.free.borrow_mut().push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_state_reuses_its_buffers() {
        let scratch = Scratch::new();
        let step = || {
            let mut a = scratch.take(1000);
            a.fill(1.0);
            let b = scratch.take(10);
            let c = scratch.take(300);
            assert_eq!((a.len(), b.len(), c.len()), (1000, 10, 300));
            let addresses = [a.as_ptr(), b.as_ptr(), c.as_ptr()];
            drop(a);
            drop((b, c));
            let d = scratch.take(900);
            (addresses, d.as_ptr())
        };
        let first = step();
        let bytes = scratch.bytes();
        assert_eq!(bytes, (1000 + 10 + 300) * 4);
        for _ in 0..5 {
            let (addresses, d) = step();
            assert_eq!((addresses, d), first);
            assert_eq!(d, addresses[0]);
        }
        assert_eq!(scratch.bytes(), bytes);
    }

    #[test]
    fn the_best_fit_is_chosen_and_small_buffers_are_replaced() {
        let scratch = Scratch::new();
        drop((scratch.take(100), scratch.take(50)));
        let held = scratch.take(40);
        assert_eq!(scratch.bytes(), 400);
        drop(scratch.take(200));
        assert_eq!(scratch.bytes(), 800);
        drop(held);
        assert_eq!(scratch.bytes(), 1000);
        assert!(scratch.take(0).is_empty());
    }
}
