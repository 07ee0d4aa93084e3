//! What the suites of this crate share: random numbers, packing, comparison, a cache.

// Each suite uses a part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;

use pace_kernels::{
    ActBuf, ActMut, ActRef, Buffer, DType, Isa, KV_BLOCK, Kernels, KvDType, KvLayout, KvMut, KvRun, PackSpec,
    PackedWeights, Par, Placement, Pool, Scratch, WeightFormat,
};
use pace_ops::{Backend, BuildCx, KvBatch, KvCache, KvError, KvUsage, OpCx, OpDType, OpShape, Operator};
use proptest::prelude::*;

/// Error, relative to the largest result, that rounding of a bf16 result allows, that f32 sums do, and that
/// activations rounded to int8 do.
pub(crate) const fn tolerance(dtype: OpDType) -> f64 {
    match dtype {
        OpDType::F32 => 2e-5,
        OpDType::Bf16 => 8e-3,
        OpDType::Int8 | OpDType::Int4 => 4e-2,
    }
}

/// The activations that go with weights of a type.
pub(crate) const fn act_dtype(dtype: OpDType) -> DType {
    match dtype {
        OpDType::F32 => DType::F32,
        _ => DType::Bf16,
    }
}

/// The cached keys and values that an attention of a type reads.
pub(crate) const fn kv_dtype(dtype: OpDType) -> KvDType {
    match dtype {
        OpDType::F32 => KvDType::F32,
        OpDType::Bf16 => KvDType::Bf16,
        // Attention has no type of 4 bits.
        OpDType::Int8 | OpDType::Int4 => KvDType::Int8,
    }
}

pub(crate) fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    // Multiples of 1/64: exact in bf16, so that a reference need not know how inputs are stored.
    (0..n).map(|_| (next() * 64.0).round() / 64.0).collect()
}

/// The formats that a type of weights has.
pub(crate) fn formats(dtype: OpDType) -> &'static [WeightFormat] {
    match dtype {
        OpDType::F32 => &[WeightFormat::F32],
        OpDType::Bf16 => &[WeightFormat::Bf16],
        OpDType::Int8 => &[
            WeightFormat::Int8,
            WeightFormat::Int8Rotated,
            WeightFormat::Int8RotatedGroup,
            WeightFormat::Int8Group(64),
        ],
        OpDType::Int4 => &[
            WeightFormat::Int4(32),
            WeightFormat::Int4Min(64),
            WeightFormat::Int8Min(32),
            WeightFormat::Mxfp4,
        ],
    }
}

pub(crate) fn pack(par: Par<'_>, spec: PackSpec, w: &[f32], n: usize, k: usize) -> Arc<PackedWeights> {
    let packed = PackedWeights::pack(spec, n, k, &par, |rows, out| {
        out.copy_from_slice(&w[rows.start * k..rows.end * k]);
        Ok::<(), std::convert::Infallible>(())
    });
    Arc::new(packed.unwrap())
}

/// The weights as they were stored: int8 rounds them.
pub(crate) fn stored(weights: &PackedWeights) -> Vec<f32> {
    let kernels = Kernels::detect();
    let mut out = vec![0.0; weights.n() * weights.k()];
    for (i, row) in out.chunks_exact_mut(weights.k().max(1)).enumerate() {
        weights.row(i, &kernels, row);
    }
    out
}

pub(crate) fn act(cx: &OpCx<'_>, dtype: DType, x: &[f32], rows: usize, cols: usize) -> ActBuf {
    let mut buf = ActBuf::new(dtype, cols);
    for (i, row) in x.chunks_exact(cols.max(1)).enumerate().take(rows) {
        match buf.rows_mut(rows) {
            ActMut::F32(mut m) => m.row_mut(i).copy_from_slice(row),
            ActMut::Bf16(mut m) => cx.kernels.narrow(row, m.row_mut(i)),
        }
    }
    buf
}

pub(crate) fn read(cx: &OpCx<'_>, x: ActRef<'_>) -> Vec<f32> {
    let mut out = vec![0.0; x.rows() * x.cols()];
    for (i, row) in out.chunks_exact_mut(x.cols()).enumerate() {
        match x {
            ActRef::F32(m) => row.copy_from_slice(m.row(i)),
            ActRef::Bf16(m) => cx.kernels.widen(m.row(i), row),
        }
    }
    out
}

/// `x * w^T + bias`, `[rows, n]`.
pub(crate) fn product(x: &[f64], w: &[f32], bias: &[f32], n: usize, k: usize) -> Vec<f64> {
    let cell = |row: &[f64], j: usize| {
        let sum: f64 = row.iter().zip(&w[j * k..(j + 1) * k]).map(|(a, b)| a * f64::from(*b)).sum();
        sum + f64::from(bias[j])
    };
    x.chunks_exact(k).flat_map(|row| (0..n).map(move |j| cell(row, j))).collect()
}

pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

pub(crate) fn close(what: &str, got: &[f32], want: &[f64], dtype: OpDType) -> Result<(), TestCaseError> {
    let scale = want.iter().fold(1e-3, |m: f64, w| m.max(w.abs()));
    prop_assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*g) - w).abs() / scale;
        prop_assert!(off <= tolerance(dtype), "{}: element {} is {}, expected {}", what, i, g, w);
    }
    Ok(())
}

/// What a test runs with: the tier, a type, and every backend that exists for it here.
pub(crate) struct Cell<'a> {
    pub(crate) cx: OpCx<'a>,
    pub(crate) build: &'a BuildCx,
    pub(crate) op: Operator,
    pub(crate) backend: Backend,
    pub(crate) dtype: OpDType,
}

impl Cell<'_> {
    pub(crate) fn name(&self) -> String {
        format!("{} {} {} {}", self.op, self.backend, self.dtype, self.cx.kernels.isa())
    }

    pub(crate) fn act_dtype(&self) -> DType {
        act_dtype(self.dtype)
    }

    /// Packs weights as the backend wants them.
    pub(crate) fn pack(
        &self,
        shape: OpShape,
        format: WeightFormat,
        w: &[f32],
        n: usize,
        k: usize,
    ) -> Arc<PackedWeights> {
        pack(self.cx.par, self.build.pack_spec(shape, self.backend.into(), format), w, n, k)
    }
}

/// Runs `test` for every tier of this CPU, every type, every backend of `op` that exists for both, on two threads.
pub(crate) fn everywhere(
    op: Operator,
    mut test: impl FnMut(&Cell<'_>) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let pool = Pool::unpinned(2).unwrap();
    for isa in Isa::supported() {
        let kernels = Kernels::new(isa).unwrap();
        let (build, scratch) = (BuildCx::new(kernels), Scratch::new());
        for dtype in OpDType::ALL {
            for &backend in op.backends() {
                if build.check(op, backend, dtype).is_ok() {
                    let cx =
                        OpCx { kernels, par: pool.par(), scratch: &scratch, profile: None, inputs: None };
                    test(&Cell { cx, build: &build, op, backend, dtype })?;
                }
            }
        }
    }
    Ok(())
}

pub(crate) struct Caches(pub(crate) Vec<Cache>);

impl KvBatch for Caches {
    fn cache(&self, seq: usize) -> &dyn KvCache {
        &self.0[seq]
    }
}

/// One layer of keys and values, a run per block, spare rows full of NaN.
pub(crate) struct Cache {
    layout: KvLayout,
    heads: usize,
    len: usize,
    data: Buffer,
}

impl Cache {
    pub(crate) fn fill(layout: KvLayout, heads: usize, len: usize, row: &dyn Fn(usize) -> Vec<f32>) -> Self {
        let bytes = heads * len.div_ceil(KV_BLOCK) * layout.block_bytes();
        let mut data = Buffer::zeroed(bytes, Placement::default()).unwrap();
        // NaN as f32 and as bf16, the scales of int8 included.
        data.as_mut_slice().fill(f32::from_bits(u32::MAX));
        let mut cache = Self { layout, heads, len, data };
        for t in 0..len {
            let row = row(t);
            let d = layout.head_dim();
            for head in 0..heads {
                let (k, v) = (&row[head * d..][..d], &row[(heads + head) * d..][..d]);
                let block = cache.block_mut(0, head, t / KV_BLOCK);
                layout.append(block, t % KV_BLOCK, k, v);
            }
        }
        cache
    }

    fn start(&self, head: usize, block: usize) -> usize {
        assert!(head < self.heads, "no such head");
        (head * self.len.div_ceil(KV_BLOCK) + block) * self.layout.block_words()
    }
}

impl KvCache for Cache {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn len(&self) -> usize {
        self.len
    }

    fn reserve(&mut self, _: usize) -> Result<(), KvError> {
        Ok(())
    }

    fn block_mut(&mut self, _: usize, head: usize, block: usize) -> KvMut<'_> {
        let (start, len) = (self.start(head, block), self.layout.block_words());
        self.layout.view_mut(&mut self.data.as_mut_slice()[start..start + len])
    }

    fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    fn for_each_run(&self, _: usize, head: usize, len: usize, f: &mut dyn FnMut(KvRun<'_>)) {
        for block in 0..len.div_ceil(KV_BLOCK) {
            let (start, len) = (self.start(head, block), self.layout.block_words());
            let blocks = self.layout.view(&self.data.as_slice()[start..start + len]);
            f(KvRun { first_token: block * KV_BLOCK, blocks });
        }
    }

    fn usage(&self) -> KvUsage {
        KvUsage {
            kind: "test",
            allocations: 1,
            capacity_rows: self.len,
            bytes: self.data.len(),
            bytes_copied: 0,
        }
    }
}
