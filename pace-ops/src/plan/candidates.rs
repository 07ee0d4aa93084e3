//! The backends of one operator with random weights, ready to be timed.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pace_kernels::{
    ActBuf, ActMut, ActRef, Activation, DType, OutOfMemory, PackError, PackSpec, PackedWeights, WeightFormat,
};

use crate::attention::SampleKv;
use crate::rope::RotationSample;
use crate::self_test::{Random, Sample};
use crate::{
    Attention, AttentionPlan, AttentionShape, Backend, BuildCx, Linear, MClass, Mlp, MlpWeights, Norm, OpCx,
    OpDType, OpShape, OpSize, Operator, Rope,
};

/// Bytes of weights that no cache keeps a part of that counts, at least: one and a few rows go through copies of so
/// many. Twice the last-level caches, where those are larger.
const COLD_BYTES: usize = 128 << 20;

/// Copies of small weights, at most.
const MOST_COPIES: usize = 128;

/// Bytes of weights that stay in cache between forwards anyway.
const WARM_BYTES: usize = 64 << 10;

/// Seconds that a class of a shape may take.
const BUDGET: f64 = 0.4;

/// Measurements of one class of row counts.
pub(super) struct Runs {
    /// Backends in the order of preference, with the median seconds of a forward.
    pub(super) seconds: Vec<(Backend, f64)>,
    /// Operations of a forward; a multiply-add counts as two.
    pub(super) flops: f64,
    /// Bytes that a forward reads from memory at least once.
    pub(super) bytes: f64,
}

/// The backends of a shape, their input and their output.
pub(super) struct Candidates {
    shape: OpShape,
    /// Each backend with as many copies as a cold run needs.
    built: Vec<(Backend, Vec<Forward>)>,
    input: ActBuf,
    output: ActBuf,
    delay: Option<(Backend, Duration)>,
}

/// An operator that turns input rows into output rows, whatever it is.
type Forward = Box<dyn Fn(&OpCx<'_>, ActRef<'_>, ActMut<'_>)>;

/// What a candidate cannot fail for: `resolve` has accepted the backend, and the weights are packed for it.
const BUILDS: &str = "what `resolve` accepts can be built";

impl Candidates {
    /// Builds every backend that exists here.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn new(cx: &OpCx<'_>, build: &BuildCx, shape: OpShape) -> Result<Self, OutOfMemory> {
        let mut weights = Weights { cx, build, shape, packed: Vec::new() };
        let (bytes, mut built) = (weight_bytes(shape), Vec::new());
        let cold = COLD_BYTES.max(2 * build.l3_bytes);
        let copies = if bytes > WARM_BYTES { cold.div_ceil(bytes).min(MOST_COPIES) } else { 1 };
        // The order of preference among those that are as fast.
        for backend in [Backend::Tpp, Backend::Flash, Backend::Jit, Backend::Imbps, Backend::Native] {
            if build.resolve(shape, backend.into()).is_ok() {
                let forwards = (0..copies).map(|copy| weights.forward(backend, copy));
                built.push((backend, forwards.collect::<Result<_, _>>()?));
            }
        }
        let ((inputs, outputs), rows) = (columns(shape), rows(shape, MClass::Many));
        let input = Sample::new(shape.dtype).rows(rows, inputs);
        let in_f32 = matches!(shape.op, Operator::LmHead | Operator::Rope);
        let output = if in_f32 {
            ActBuf::new(DType::F32, outputs)
        } else {
            Sample::new(shape.dtype).rows(rows, outputs)
        };
        Ok(Self { shape, built, input, output, delay: None })
    }

    /// Lets a backend take longer.
    #[cfg(test)]
    pub(super) fn slow_down(&mut self, backend: Backend, by: Duration) {
        self.delay = Some((backend, by));
    }

    /// Times every backend for row counts of a class, in turns.
    pub(super) fn measure(&mut self, cx: &OpCx<'_>, class: MClass) -> Runs {
        let (rows, start) = (rows(self.shape, class), Instant::now());
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); self.built.len()];
        // The first round warms up: it makes code, takes memory, and is forgotten.
        for round in 0..64 {
            // Another one begins each round, and nobody meets the weights that the one before has just read.
            for turn in 0..self.built.len() {
                let i = (round + turn) % self.built.len();
                let (backend, copies) = &self.built[i];
                let copy = &copies[(round * self.built.len() + turn) % copies.len()];
                let start = Instant::now();
                copy(cx, self.input.rows(rows), self.output.rows_mut(rows));
                if let Some((_, delay)) = self.delay.filter(|(slow, _)| slow == backend) {
                    std::thread::sleep(delay);
                }
                if round > 0 {
                    times[i].push(start.elapsed().as_secs_f64());
                }
            }
            if round >= 3 && start.elapsed().as_secs_f64() > BUDGET {
                break;
            }
        }
        let median = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let seconds = self.built.iter().zip(&mut times).map(|((b, _), times)| (*b, median(times))).collect();
        let (flops, bytes) = work(self.shape, rows);
        Runs { seconds, flops, bytes }
    }
}

/// The rows that stand for a class. A prompt needs the logits of few of its rows.
const fn rows(shape: OpShape, class: MClass) -> usize {
    match (class, shape.op) {
        (MClass::One, _) => 1,
        (MClass::Few, _) => 8,
        (MClass::Many, Operator::LmHead) => 32,
        (MClass::Many, _) => 256,
    }
}

/// Columns of input and output.
const fn columns(shape: OpShape) -> (usize, usize) {
    match shape.size {
        OpSize::Matrix { n, k } => (k, n),
        OpSize::Mlp { hidden, .. } => (hidden, hidden),
        OpSize::Heads { n_heads, head_dim, .. } => (n_heads * head_dim, n_heads * head_dim),
        OpSize::Row { cols } => (cols, cols),
    }
}

/// Tokens that a sequence holds when its attention is timed.
const KV_TOKENS: usize = 1024;

/// Operations and bytes of a forward on `rows` rows.
fn work(shape: OpShape, rows: usize) -> (f64, f64) {
    let element = if shape.dtype == OpDType::F32 { 4.0 } else { 2.0 };
    match shape.size {
        OpSize::Matrix { .. } | OpSize::Mlp { .. } => {
            (2.0 * (rows * shape.weights()) as f64, weight_bytes(shape) as f64)
        }
        OpSize::Heads { n_heads, n_kv_heads, head_dim } => {
            let seen = (KV_TOKENS - rows) as f64 + (rows as f64 + 1.0) / 2.0;
            let kv = (2 * KV_TOKENS * n_kv_heads * head_dim) as f64 * element;
            (4.0 * rows as f64 * seen * (n_heads * head_dim) as f64, kv)
        }
        OpSize::Row { cols } => ((4 * rows * cols) as f64, (2 * rows * cols) as f64 * element),
    }
}

fn weight_bytes(shape: OpShape) -> usize {
    format(shape.dtype).bytes(shape.weights())
}

const fn format(dtype: OpDType) -> WeightFormat {
    match dtype {
        OpDType::F32 => WeightFormat::F32,
        OpDType::Bf16 => WeightFormat::Bf16,
        OpDType::Int8 => WeightFormat::Int8Group(64),
    }
}

/// Random weights, which backends of the same layout share.
struct Weights<'a> {
    cx: &'a OpCx<'a>,
    build: &'a BuildCx,
    shape: OpShape,
    packed: Vec<(PackKey, Arc<PackedWeights>)>,
}

/// Which matrix was packed: how, `[n, k]`, and which copy of it.
type PackKey = (PackSpec, usize, usize, usize);

impl Weights<'_> {
    /// A copy of the operator by a backend.
    fn forward(&mut self, backend: Backend, copy: usize) -> Result<Forward, OutOfMemory> {
        let (build, shape) = (self.build, self.shape);
        match shape.size {
            OpSize::Matrix { n, k } => {
                let weights = self.pack(shape, backend, n, k, copy)?;
                let linear = Linear::new(build, weights, None, backend).expect(BUILDS);
                Ok(Box::new(move |cx, input, output| linear.forward(cx, input, output)))
            }
            OpSize::Mlp { hidden, ffn, gated } => {
                let down = OpShape::matrix(Operator::Linear, shape.dtype, hidden, ffn);
                let weights = MlpWeights {
                    up: self.pack(shape, backend, if gated { 2 * ffn } else { ffn }, hidden, copy)?,
                    down: self.pack(down, backend, hidden, ffn, copy)?,
                    up_bias: None,
                    down_bias: None,
                };
                let activation = if gated { Activation::Silu } else { Activation::Gelu };
                let mlp = Mlp::new(build, weights, activation, backend).expect(BUILDS);
                Ok(Box::new(move |cx, input, output| mlp.forward(cx, input, output)))
            }
            OpSize::Heads { n_heads, n_kv_heads, head_dim } => {
                let scale = 1.0 / (head_dim as f32).sqrt();
                attention(
                    build,
                    AttentionShape { n_heads, n_kv_heads, head_dim, scale },
                    shape.dtype,
                    backend,
                )
            }
            OpSize::Row { cols } if shape.op == Operator::Rope => {
                let rope = Rope::new(build, cols, shape.dtype.activations(), backend).expect(BUILDS);
                let sample = RotationSample::new(cols);
                Ok(Box::new(move |cx, _, output| sample.rotate(cx, rope.backend(), output)))
            }
            OpSize::Row { cols } => {
                let dtype = shape.dtype.activations();
                let norm = Norm::rms(build, vec![1.0; cols], 1e-5, dtype, backend).expect(BUILDS);
                Ok(Box::new(move |cx, input, output| norm.forward(cx, input, output)))
            }
        }
    }

    /// A copy of a random matrix `[n, k]`, packed for a backend.
    fn pack(
        &mut self,
        shape: OpShape,
        backend: Backend,
        n: usize,
        k: usize,
        copy: usize,
    ) -> Result<Arc<PackedWeights>, OutOfMemory> {
        let format = format(shape.dtype);
        let spec = self.build.pack_spec(shape, backend.into(), format);
        let key = (spec, n, k, copy);
        if let Some((_, weights)) = self.packed.iter().find(|(packed, _)| *packed == key) {
            return Ok(Arc::clone(weights));
        }
        let fill = |rows: Range<usize>, out: &mut [f32]| {
            let mut random = Random(1 + (rows.start * 0x9e37 + copy) as u64);
            out.fill_with(|| random.next() / 16.0);
            Ok::<_, Infallible>(())
        };
        let packed = PackedWeights::pack(spec, n, k, &self.cx.par, fill).map_err(|error| match error {
            PackError::OutOfMemory(error) => error,
            PackError::Fill(never) => match never {},
        })?;
        let packed = Arc::new(packed);
        self.packed.push((key, Arc::clone(&packed)));
        Ok(packed)
    }
}

/// The last rows of a sequence of [`KV_TOKENS`].
fn attention(
    build: &BuildCx,
    shape: AttentionShape,
    dtype: OpDType,
    backend: Backend,
) -> Result<Forward, OutOfMemory> {
    let kv_dtype = dtype.activations();
    let attention = Attention::new(build, shape, kv_dtype, backend).expect(BUILDS);
    let kv = SampleKv::new(&shape, kv_dtype, KV_TOKENS)?;
    Ok(Box::new(move |cx, input, output| {
        let (rows, mut plan) = (input.rows(), AttentionPlan::default());
        plan.rebuild(&shape, cx.par.threads(), std::iter::once((KV_TOKENS - rows, rows)));
        attention.forward(cx, 0, &plan, &kv, input, output);
    }))
}
