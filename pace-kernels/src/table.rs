//! The kernel table of a tier, and the handle that proves that the CPU can run it.

use half::{bf16, f16};

use crate::attention::AttentionTiles;
use crate::gemm::epilogue::{RowEpilogue, RowMut};
use crate::gemm::tile::{MAX_ROWS, TileArgs, TileKind};
use crate::generic::{quantize, rotate, weights};
use crate::{ActMut, ActRef, Activation, DType, Isa, MatRef, RowNorm, arch};

/// The kernels of one instruction-set tier.
///
/// A value exists only after detection, so every method is safe to call. It is a pointer: copy it
/// freely. The methods check lengths, and panic if the caller got them wrong.
///
/// ```
/// use pace_kernels::{Isa, Kernels};
///
/// let kernels = Kernels::detect();
/// let mut out = [0.0; 3];
/// kernels.rms_norm(&[3.0, 4.0, 0.0], &[1.0; 3], 0.0, &mut out);
/// assert!((out[1] - 4.0 / (25.0f32 / 3.0).sqrt()).abs() < 1e-6);
/// assert!(Kernels::new(Isa::Scalar).is_some());
/// ```
#[derive(Clone, Copy)]
pub struct Kernels {
    isa: Isa,
    table: &'static Table,
}

impl Kernels {
    /// The kernels of a tier, if this CPU has it.
    pub fn new(isa: Isa) -> Option<Self> {
        isa.is_supported().then(|| Self { isa, table: table_of(isa) })
    }

    /// The kernels of the best tier of this CPU.
    pub fn detect() -> Self {
        let isa = Isa::detect();
        Self { isa, table: table_of(isa) }
    }

    /// The tier.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The handle of a tier with another table, to see which entries are used.
    #[cfg(test)]
    pub(crate) fn with_table(self, table: &'static Table) -> Self {
        Self { table, ..self }
    }

    pub(crate) fn table(&self) -> &'static Table {
        self.table
    }
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels({})", self.isa)
    }
}

/// One function for each kernel.
///
/// # Safety
/// Each may only be called on a CPU that has the tier; having it from a [`Kernels`] proves that.
/// Lengths are checked by the methods of `Kernels`; a wrong one gives a wrong result or a panic,
/// never an access out of bounds, unless the entry says so.
#[allow(clippy::type_complexity)] // A table of signatures is read column by column; aliases would hide them.
pub(crate) struct Table {
    pub(crate) widen_bf16: unsafe fn(&[bf16], &mut [f32]),
    pub(crate) widen_f16: unsafe fn(&[f16], &mut [f32]),
    pub(crate) narrow_bf16: unsafe fn(&[f32], &mut [bf16]),
    pub(crate) deinterleave_bf16: unsafe fn(&[bf16], &mut [f32], &mut [f32]),
    pub(crate) norm: unsafe fn(&RowNorm<'_>, ActRef<'_>, ActMut<'_>),
    pub(crate) add_norm: unsafe fn(&RowNorm<'_>, ActMut<'_>, ActRef<'_>, ActMut<'_>),
    pub(crate) norm_quantize: unsafe fn(&RowNorm<'_>, ActRef<'_>, DType, &mut [f32], quantize::Out<'_>),
    pub(crate) quantize_f32: unsafe fn(&[f32], quantize::Out<'_>),
    pub(crate) quantize_bf16: unsafe fn(&[bf16], quantize::Out<'_>),
    pub(crate) rotate: unsafe fn(&mut [f32]),
    pub(crate) quantize_rotated_f32: unsafe fn(&[f32], rotate::Out<'_>),
    pub(crate) quantize_rotated_bf16: unsafe fn(&[bf16], rotate::Out<'_>),
    pub(crate) quantize_weights: unsafe fn(weights::Row<'_>),
    pub(crate) rope_half: unsafe fn(&mut [f32], usize, &[f32], &[f32]),
    pub(crate) rope_interleaved: unsafe fn(&mut [f32], usize, &[f32], &[f32]),
    pub(crate) activate: unsafe fn(Activation, &mut [f32]),
    pub(crate) act_mul: unsafe fn(Activation, &[f32], &[f32], &mut [f32]),
    pub(crate) max: unsafe fn(&[f32]) -> f32,
    pub(crate) exp_sub: unsafe fn(&mut [f32], f32) -> f32,
    pub(crate) add: unsafe fn(&mut [f32], &[f32]),
    pub(crate) scale: unsafe fn(&mut [f32], f32),
    pub(crate) gemv_nt: unsafe fn(&[f32], MatRef<'_, f32>, &mut [f32], bool),
    pub(crate) gemv_nt_bf16: unsafe fn(&[f32], MatRef<'_, bf16>, &mut [f32]),
    pub(crate) gemv_nn: unsafe fn(&[f32], MatRef<'_, f32>, &mut [f32], bool),
    pub(crate) attention: AttentionTiles,
    pub(crate) finish_row: unsafe fn(&mut [f32], &RowEpilogue<'_>, RowMut<'_>),
    /// What the arguments of a tile describe must be accessible, too.
    pub(crate) tile_f32: unsafe fn(&TileArgs),
    /// Columns that it goes through a block of steps for at once, as far as the panel has them: where bf16 is widened, they
    /// lie by themselves.
    pub(crate) tile_f32_strip: usize,
    pub(crate) tile_bf16: unsafe fn(&TileArgs),
    /// The most rows of it: `MAX_ROWS`, or more where the tier has a tile for few rows.
    pub(crate) tile_bf16_rows: usize,
    /// The most rows of a tile of bf16 or int8 where many rows are cut into tiles.
    pub(crate) tile_many_rows: usize,
    /// The most rows of a product that `tile_bf16` computes; for more, bf16 is widened first.
    pub(crate) tile_bf16_products: usize,
    pub(crate) tile_int8: unsafe fn(&TileArgs),
    /// The most rows of it.
    pub(crate) tile_int8_rows: usize,
    /// Bytes of four activations as it reads them, see [`Dots::QUAD`](crate::gemm::tile::Dots::QUAD).
    pub(crate) quad: usize,
    /// Reads weights of 4 bits as they are stored.
    pub(crate) tile_4_bit: unsafe fn(&TileArgs),
    /// The most rows of it, up to `MAX_4_BIT_ROWS`.
    pub(crate) tile_4_bit_rows: usize,
    /// The most rows of a product that it computes; for more, weights of 4 bits are unpacked first.
    pub(crate) tile_4_bit_products: usize,
    pub(crate) unpack_4_bit: unsafe fn(&[u8], usize, &[u8; 16], &mut [u8]),
    pub(crate) probe_peak: unsafe fn(TileKind, usize) -> u64,
    pub(crate) probe_read: unsafe fn(&[f32]) -> f32,
}

impl Table {
    /// The tile that multiplies a kind.
    pub(crate) fn tile(&self, kind: TileKind) -> unsafe fn(&TileArgs) {
        match kind {
            TileKind::F32 => self.tile_f32,
            TileKind::Bf16 => self.tile_bf16,
            TileKind::Int8 => self.tile_int8,
        }
    }

    /// The most rows of the tile that multiplies a kind.
    pub(crate) fn tile_rows(&self, kind: TileKind) -> usize {
        match kind {
            TileKind::F32 => MAX_ROWS,
            TileKind::Bf16 => self.tile_bf16_rows,
            TileKind::Int8 => self.tile_int8_rows,
        }
    }

    /// The most rows of that tile where many rows are cut into tiles.
    pub(crate) fn tile_rows_of_many(&self, kind: TileKind) -> usize {
        self.tile_rows(kind).min(if kind == TileKind::F32 { MAX_ROWS } else { self.tile_many_rows })
    }
}

#[cfg(target_arch = "x86_64")]
fn table_of(isa: Isa) -> &'static Table {
    match isa {
        Isa::Scalar => &arch::scalar::TABLE,
        Isa::Avx2 => &arch::avx2::TABLE,
        Isa::Avx512 => &arch::avx512::TABLE,
        Isa::Avx512Vnni => &arch::avx512_vnni::TABLE,
        Isa::Avx512Bf16 => &arch::avx512_bf16::TABLE,
        Isa::Amx => &arch::amx::TABLE,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn table_of(_isa: Isa) -> &'static Table {
    &arch::scalar::TABLE
}
