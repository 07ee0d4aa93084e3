//! [`OpCx`]: everything that a forward needs and no operator owns.

use pace_kernels::{ActMut, ActRef, DType, Kernels, MatMut, MatRef, Par, Scratch, ScratchBuf, bf16};

use crate::{Backend, InputSquares, LayerKind, Profile, Span, Work};

/// What goes into every forward: kernels of one ISA tier, the engine's threads and its scratch memory.
#[derive(Clone, Copy)]
pub struct OpCx<'a> {
    /// The kernels of the tier that the engine runs on.
    pub kernels: Kernels,
    /// The engine's threads.
    pub par: Par<'a>,
    /// Memory for intermediate results; a steady state allocates nothing.
    pub scratch: &'a Scratch,
    /// Where calls are timed, if they are.
    pub profile: Option<&'a Profile>,
    /// Who sees the inputs of products, if somebody does.
    pub inputs: Option<&'a InputSquares>,
}

impl<'a> OpCx<'a> {
    /// Times a call of the operator called `operator` until the result is dropped. `work` is asked for only where
    /// there is a profile; inside another span nothing is timed.
    pub fn span(
        &self,
        operator: &'static str,
        backend: Backend,
        work: impl FnOnce() -> Work,
    ) -> Option<Span<'a>> {
        self.profile.and_then(|profile| profile.span(operator, backend, work()))
    }

    /// Tells the profile and who sees the inputs, if they are there, which layer the calls that follow belong to; `index` counts decoder layers
    /// from 0.
    pub fn enter(&self, layer: LayerKind, index: Option<usize>) {
        if let Some(profile) = self.profile {
            profile.enter(layer, index);
        }
        if let Some(inputs) = self.inputs {
            inputs.enter(index);
        }
    }

    /// Scratch for every thread: `per_thread` numbers each. [`Par::grid`] and [`Par::tasks`] split it.
    pub fn thread_scratch(&self, per_thread: usize) -> ScratchBuf<'a> {
        self.scratch.take(self.par.threads() * per_thread)
    }

    /// A `[rows, cols]` intermediate in `dtype` (f32 or bf16), contents unspecified.
    pub fn act(&self, dtype: DType, rows: usize, cols: usize) -> ScratchAct<'a> {
        let len = rows * cols;
        let words = if dtype == DType::Bf16 { len.div_ceil(2) } else { len };
        ScratchAct { buf: self.scratch.take(words), dtype, rows, cols }
    }

    /// Row tiles for work that is split by rows only: about four a thread.
    pub(crate) fn row_cuts(&self, rows: usize) -> RowCuts {
        RowCuts::new(rows, 4 * self.par.threads())
    }

    /// `a` as f32: itself, or widened into `buf`, which holds `rows * cols` numbers or more.
    pub(crate) fn widened<'s>(&self, a: ActRef<'s>, buf: &'s mut [f32]) -> MatRef<'s, f32> {
        let m = match a {
            ActRef::F32(m) => return m,
            ActRef::Bf16(m) => m,
        };
        let (rows, cols) = (m.rows(), m.cols());
        let out = MatMut::new(&mut buf[..rows * cols], rows, cols);
        let cuts = self.row_cuts(rows);
        let kernels = self.kernels;
        self.par.grid(out, cuts.as_slice(), cols.max(1), &mut [], |_, row_tile, _, mut tile| {
            let first = cuts.as_slice()[row_tile];
            for i in 0..tile.rows() {
                kernels.widen(m.row(first + i), tile.row_mut(i));
            }
        });
        MatRef::new(&buf[..rows * cols], rows, cols)
    }
}

/// A `[rows, cols]` intermediate taken from scratch memory by [`OpCx::act`].
pub struct ScratchAct<'a> {
    buf: ScratchBuf<'a>,
    dtype: DType,
    rows: usize,
    cols: usize,
}

impl ScratchAct<'_> {
    /// The whole matrix, to read.
    pub fn view(&self) -> ActRef<'_> {
        match self.dtype {
            DType::Bf16 => {
                let all: &[bf16] = bytemuck::cast_slice(&self.buf);
                ActRef::Bf16(MatRef::new(&all[..self.rows * self.cols], self.rows, self.cols))
            }
            _ => ActRef::F32(MatRef::new(&self.buf, self.rows, self.cols)),
        }
    }

    /// The whole matrix, to write.
    pub fn view_mut(&mut self) -> ActMut<'_> {
        match self.dtype {
            DType::Bf16 => {
                let all: &mut [bf16] = bytemuck::cast_slice_mut(&mut self.buf);
                ActMut::Bf16(MatMut::new(&mut all[..self.rows * self.cols], self.rows, self.cols))
            }
            _ => ActMut::F32(MatMut::new(&mut self.buf, self.rows, self.cols)),
        }
    }
}

/// Even row tiles, without an allocation.
pub(crate) struct RowCuts {
    cuts: [usize; Self::MAX_TILES + 1],
    tiles: usize,
}

impl RowCuts {
    /// One for each thread of the largest machines, at least; the cuts take 8 KiB of the stack.
    const MAX_TILES: usize = 1024;

    /// At most `tiles` tiles of `rows` rows.
    fn new(rows: usize, tiles: usize) -> Self {
        let tiles = tiles.min(Self::MAX_TILES).min(rows).max(1);
        let mut cuts = [0; Self::MAX_TILES + 1];
        for (i, cut) in cuts.iter_mut().enumerate().take(tiles + 1) {
            *cut = rows * i / tiles;
        }
        Self { cuts, tiles }
    }

    /// Where tiles begin, and the number of rows.
    pub(crate) fn as_slice(&self) -> &[usize] {
        &self.cuts[..=self.tiles]
    }
}

/// Writes `row` of f32 into row `i` of `out`, rounded to its type.
pub(crate) fn store_row(kernels: Kernels, row: &[f32], out: &mut ActMut<'_>, i: usize) {
    match out {
        ActMut::F32(m) => m.row_mut(i).copy_from_slice(row),
        ActMut::Bf16(m) => kernels.narrow_bf16(row, m.row_mut(i)),
    }
}

/// Reads row `i` of `src` as f32 into `out`.
pub(crate) fn load_row(kernels: Kernels, src: ActRef<'_>, i: usize, out: &mut [f32]) {
    match src {
        ActRef::F32(m) => out.copy_from_slice(m.row(i)),
        ActRef::Bf16(m) => kernels.widen_bf16(m.row(i), out),
    }
}
