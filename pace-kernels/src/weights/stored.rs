//! Packed matrices as bytes: what a file keeps of them, and the way back.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use super::{PackError, PackSpec, PackedWeights, panel_bytes, product, row_cuts};
use crate::par::FirstError;
use crate::{Arena, Buffer, MappedFile, MatMut, OutOfMemory, Par};

impl PackedWeights {
    /// The version of all layouts: the bytes of a matrix mean the same wherever this is equal, on every instruction set.
    pub const LAYOUT_VERSION: u32 = 1;

    /// The matrix as it lies in memory: little-endian numbers where the CPU is. It depends on the spec, n and k how many
    /// bytes these are, and what they mean. An [order of the inputs](Self::input_order) is not among them.
    pub fn stored(&self) -> &[u8] {
        // The size of every layout is a multiple of 2 bytes.
        bytemuck::cast_slice(self.data.as_slice::<bf16>())
    }

    /// Bytes of an `[n, k]` matrix.
    ///
    /// # Errors
    /// No memory has so many bytes.
    ///
    /// # Panics
    /// As [`pack`](Self::pack).
    pub fn stored_bytes(spec: impl Into<PackSpec>, n: usize, k: usize) -> Result<usize, OutOfMemory> {
        let unpacked = Self::unpacked(spec.into(), n, k)?;
        unpacked.needed()
    }

    /// A matrix from its [stored](Self::stored) bytes: `read(range, out)` writes those of a range into `out`. It is called
    /// on the threads of `par`, once for every byte, by the thread that is going to read the weights. From an arena that
    /// another process has filled nothing is read.
    ///
    /// # Errors
    /// There is too little memory, or `read` failed: then its first error.
    ///
    /// # Panics
    /// As [`pack`](Self::pack).
    pub fn read_in<E: Send>(
        arena: &Arena,
        spec: impl Into<PackSpec>,
        n: usize,
        k: usize,
        par: &Par<'_>,
        read: impl Fn(Range<usize>, &mut [u8]) -> Result<(), E> + Sync,
    ) -> Result<Self, PackError<E>> {
        let mut packed = Self::allocate(spec.into(), n, k, |bytes| arena.zeroed(bytes))?;
        if packed.data.is_empty() || arena.is_filled() {
            return Ok(packed);
        }
        let (rows, cuts) = match packed.panels() {
            Some(panels) => (panels.count(), (0..=panels.count()).collect()),
            None => (n, row_cuts(n, k)),
        };
        let out = packed.data.as_mut_slice::<bf16>();
        let cols = out.len() / rows;
        let first = FirstError::new();
        par.grid(MatMut::new(out, rows, cols), &cuts, cols, &mut [], |_, i, _, mut tile| {
            let stored = tile.as_mut_slice().expect("tiles as wide as the matrix are dense");
            let start = cuts[i] * cols * size_of::<bf16>();
            let stored = bytemuck::cast_slice_mut(stored);
            first.unless_failed(|| read(start..start + stored.len(), stored));
        });
        first.into_result().map_err(PackError::Fill)?;
        Ok(packed)
    }

    /// A matrix whose [stored](Self::stored) bytes lie in a file from `offset` on, and stay there: see [`Buffer::mapped`].
    ///
    /// # Errors
    /// As [`Buffer::mapped`].
    ///
    /// # Panics
    /// As [`pack`](Self::pack).
    pub fn mapped(
        file: &Arc<MappedFile>,
        offset: u64,
        spec: impl Into<PackSpec>,
        n: usize,
        k: usize,
    ) -> io::Result<Self> {
        let too_long = |_| io::Error::from(io::ErrorKind::UnexpectedEof);
        let mut packed = Self::unpacked(spec.into(), n, k).map_err(too_long)?;
        packed.data = Buffer::mapped(file, offset, packed.needed().map_err(too_long)?)?;
        Ok(packed)
    }

    /// Bytes that the matrix needs.
    pub(super) fn needed(&self) -> Result<usize, OutOfMemory> {
        if self.n == 0 || self.k == 0 {
            return Ok(0);
        }
        match self.panels() {
            Some(panels) => product(&[panels.count(), panel_bytes(&panels)?]),
            None => {
                product(&[self.n, self.k, self.spec.format.step_bytes() / self.spec.format.step_inputs()])
            }
        }
    }
}
