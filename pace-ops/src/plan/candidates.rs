//! The backends of one operator with random weights, ready to be timed.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pace_kernels::{
    ActBuf, ActMut, ActRef, Activation, DType, OutOfMemory, PackError, PackSpec, PackedWeights, WeightFormat,
};

use crate::attention::SampleKv;
use crate::limits::Limits;
use crate::rope::RotationSample;
use crate::self_test::{Mismatch, Random, Sample, SelfTest};
use crate::{
    Attention, AttentionPlan, AttentionShape, Backend, BuildCx, Linear, MClass, Mlp, MlpWeights, Norm, OpCx,
    OpDType, OpShape, OpSize, Operator, Rope,
};

/// Bytes of weights that no cache keeps a part of that counts, at least: one and a few rows go through copies of so
/// many. Twice the last-level caches, where those are larger.
const COLD_BYTES: usize = 128 << 20;

/// Bytes of weights that stay in cache between forwards anyway.
const WARM_BYTES: usize = 64 << 10;

/// Seconds that a class of a shape may take, if every candidate has run once by then.
const BUDGET: f64 = 0.4;

/// Seconds of a sample, at least: shorter forwards are repeated, or the clock would be what is measured.
const SAMPLE_SECONDS: f64 = 5e-6;

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
    /// Each right backend with as many copies as a cold run needs.
    built: Vec<(Backend, Vec<Forward>)>,
    /// Backends that do not agree with the reference.
    wrong: Vec<Mismatch>,
    /// Rows that stand for each class.
    rows: [usize; 3],
    input: ActBuf,
    output: ActBuf,
    delay: Option<(Backend, Duration)>,
}

/// An operator that turns input rows into output rows, whatever it is.
type Forward = Box<dyn Fn(&OpCx<'_>, ActRef<'_>, ActMut<'_>)>;

/// What a candidate cannot fail for: `resolve` has accepted the backend, and the weights are packed for it.
const BUILDS: &str = "what `resolve` accepts can be built";

impl Candidates {
    /// Builds every backend that exists here, and compares it with the reference.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn new(
        cx: &OpCx<'_>,
        build: &BuildCx,
        limits: &Limits,
        shape: OpShape,
    ) -> Result<Self, OutOfMemory> {
        Self::with(Weights::new(cx, build, limits, shape))
    }

    /// As [`new`](Self::new), with a backend of a projection that gives wrong results.
    #[cfg(test)]
    pub(super) fn with_broken(
        cx: &OpCx<'_>,
        build: &BuildCx,
        limits: &Limits,
        shape: OpShape,
        broken: Backend,
    ) -> Result<Self, OutOfMemory> {
        Self::with(Weights { broken: Some(broken), ..Weights::new(cx, build, limits, shape) })
    }

    fn with(mut weights: Weights<'_>) -> Result<Self, OutOfMemory> {
        let (build, shape) = (weights.build, weights.shape);
        let (copies, mut built, mut wrong) = (copies(build, shape), Vec::new(), Vec::new());
        // The order of preference among those that are as fast.
        for backend in [Backend::Tpp, Backend::Flash, Backend::Jit, Backend::Imbps, Backend::Native] {
            if build.resolve(shape, backend.into()).is_err() {
                continue;
            }
            let (first, tested) = weights.forward(backend, 0)?;
            if let Err(mismatch) = tested {
                wrong.push(mismatch);
                continue;
            }
            let mut forwards = vec![first];
            for copy in 1..copies {
                forwards.push(weights.forward(backend, copy)?.0);
            }
            built.push((backend, forwards));
        }
        let ((inputs, outputs), [.., rows]) = (columns(shape), weights.rows);
        let input = Sample::new(shape.dtype).rows(rows, inputs);
        let in_f32 = matches!(shape.op, Operator::LmHead | Operator::Rope);
        let output = if in_f32 {
            ActBuf::new(DType::F32, outputs)
        } else {
            Sample::new(shape.dtype).rows(rows, outputs)
        };
        Ok(Self { shape, built, wrong, rows: weights.rows, input, output, delay: None })
    }

    /// Backends that exist and do not agree with the reference: they are not timed.
    pub(super) fn wrong(&self) -> &[Mismatch] {
        &self.wrong
    }

    /// Lets a backend take longer.
    #[cfg(test)]
    pub(super) fn slow_down(&mut self, backend: Backend, by: Duration) {
        self.delay = Some((backend, by));
    }

    /// Times every backend for row counts of a class, in turns.
    pub(super) fn measure(&mut self, cx: &OpCx<'_>, class: MClass) -> Runs {
        let (rows, start, candidates) = (self.rows[class as usize], Instant::now(), self.built.len());
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); candidates];
        let (mut repeats, mut copy) = (vec![1; candidates], 0);
        for round in 0..64 {
            // Another one begins each round, and nobody meets the weights that the one before has just read.
            for i in (0..candidates).map(|turn| (round + turn) % candidates) {
                let seconds = self.sample(cx, i, rows, copy, repeats[i]);
                copy += repeats[i];
                if round == 0 {
                    repeats[i] = (SAMPLE_SECONDS / seconds).ceil().clamp(1.0, 64.0) as usize;
                }
                times[i].push(seconds);
            }
            if start.elapsed().as_secs_f64() > BUDGET {
                break;
            }
        }
        let seconds = self.built.iter().zip(&times).map(|((b, _), times)| (*b, median(times))).collect();
        let (flops, bytes) = work(self.shape, rows);
        Runs { seconds, flops, bytes }
    }

    /// Mean seconds of `repeats` forwards of a candidate, each on another copy, from `copy` on.
    fn sample(&mut self, cx: &OpCx<'_>, candidate: usize, rows: usize, copy: usize, repeats: usize) -> f64 {
        let (backend, copies) = &self.built[candidate];
        let start = Instant::now();
        for copy in copy..copy + repeats {
            copies[copy % copies.len()](cx, self.input.rows(rows), self.output.rows_mut(rows));
        }
        if let Some((_, delay)) = self.delay.filter(|(slow, _)| slow == backend) {
            std::thread::sleep(delay);
        }
        start.elapsed().as_secs_f64() / repeats as f64
    }
}

/// The middle one, without the first where there are more: that warms up, it makes code and takes memory.
fn median(times: &[f64]) -> f64 {
    let mut times = times[usize::from(times.len() > 1)..].to_vec();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Copies of an operator that one and a few rows go through.
fn copies(build: &BuildCx, shape: OpShape) -> usize {
    let (bytes, cold) = (weight_bytes(shape), COLD_BYTES.max(2 * build.l3_bytes));
    if bytes > WARM_BYTES { cold.div_ceil(bytes) } else { 1 }
}

/// Bytes that the weights of a shape take while its backends are timed: in rows, and in panels.
pub(super) fn memory(build: &BuildCx, shape: OpShape) -> usize {
    2 * copies(build, shape) * weight_bytes(shape)
}

/// The rows that stand for each class. A prompt needs the logits of few of its rows; fewer rows than 256 do where they
/// keep the CPU busy for a while.
fn rows(limits: &Limits, shape: OpShape) -> [usize; 3] {
    /// Seconds of a forward.
    const LONG: f64 = 0.05;
    let seconds = |rows| limits.seconds(shape.unit(), work(shape, rows).0, 0.0);
    let many = match shape.op {
        Operator::LmHead => 32,
        _ => [256, 128, 64].into_iter().find(|&rows| seconds(rows) < LONG).unwrap_or(32),
    };
    [1, 8, many]
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
            let kv = 2 * KV_TOKENS * n_kv_heads * shape.dtype.kv().row_bytes(head_dim);
            (4.0 * rows as f64 * seen * (n_heads * head_dim) as f64, kv as f64)
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
        OpDType::Int8 => WeightFormat::Int8RotatedGroup,
        OpDType::Int4 => WeightFormat::Int4(32),
    }
}

/// Random weights, which backends of the same layout share.
struct Weights<'a> {
    cx: &'a OpCx<'a>,
    build: &'a BuildCx,
    shape: OpShape,
    rows: [usize; 3],
    /// The matrices of each copy.
    packed: Vec<Vec<(PackKey, Arc<PackedWeights>)>>,
    /// A backend whose results are to be wrong.
    #[cfg(test)]
    broken: Option<Backend>,
}

/// Which matrix was packed: how, and `[n, k]`.
type PackKey = (PackSpec, usize, usize);

/// An operator, and whether it agrees with the reference; only the first copy is asked.
type Tested = (Forward, Result<(), Mismatch>);

impl<'a> Weights<'a> {
    fn new(cx: &'a OpCx<'a>, build: &'a BuildCx, limits: &Limits, shape: OpShape) -> Self {
        Self {
            cx,
            build,
            shape,
            rows: rows(limits, shape),
            packed: Vec::new(),
            #[cfg(test)]
            broken: None,
        }
    }

    /// A copy of the operator by a backend.
    fn forward(&mut self, backend: Backend, copy: usize) -> Result<Tested, OutOfMemory> {
        let (build, shape) = (self.build, self.shape);
        let cx = self.cx;
        let test = |op: &dyn SelfTest| if copy == 0 { op.self_test(cx) } else { Ok(()) };
        match shape.size {
            OpSize::Matrix { n, k } => {
                let linear = self.linear(backend, copy, n, k)?;
                let tested = test(&linear);
                Ok((Box::new(move |cx, input, output| linear.forward(cx, input, output)), tested))
            }
            OpSize::Mlp { hidden, ffn, gated } => {
                let mlp = self.mlp(backend, copy, hidden, ffn, gated)?;
                let tested = test(&mlp);
                Ok((Box::new(move |cx, input, output| mlp.forward(cx, input, output)), tested))
            }
            OpSize::Heads { n_heads, n_kv_heads, head_dim } => {
                let scale = 1.0 / (head_dim as f32).sqrt();
                let heads = AttentionShape { n_heads, n_kv_heads, head_dim, scale };
                let attention = Attention::new(build, heads, shape.dtype.kv(), backend).expect(BUILDS);
                let tested = test(&attention);
                Ok((timed_attention(cx, attention, heads, self.rows)?, tested))
            }
            OpSize::Row { cols } if shape.op == Operator::Rope => {
                let rope = Rope::new(build, cols, shape.dtype.activations(), backend).expect(BUILDS);
                let sample = RotationSample::new(cols);
                let tested = test(&rope);
                Ok((Box::new(move |cx, _, output| sample.rotate(cx, rope.backend(), output)), tested))
            }
            OpSize::Row { cols } => {
                let dtype = shape.dtype.activations();
                let norm = Norm::rms(build, vec![1.0; cols], 1e-5, dtype, backend).expect(BUILDS);
                let tested = test(&norm);
                Ok((Box::new(move |cx, input, output| norm.forward(cx, input, output)), tested))
            }
        }
    }

    fn linear(&mut self, backend: Backend, copy: usize, n: usize, k: usize) -> Result<Linear, OutOfMemory> {
        let weights = self.pack(self.shape, backend, n, k, copy)?;
        #[cfg_attr(not(test), expect(unused_mut, reason = "tests break it"))]
        let mut linear = Linear::new(self.build, weights, None, backend).expect(BUILDS);
        #[cfg(test)]
        if self.broken == Some(backend) {
            linear.break_backends();
        }
        Ok(linear)
    }

    fn mlp(
        &mut self,
        backend: Backend,
        copy: usize,
        hidden: usize,
        ffn: usize,
        gated: bool,
    ) -> Result<Mlp, OutOfMemory> {
        let down = OpShape::matrix(Operator::Linear, self.shape.dtype, hidden, ffn);
        let weights = MlpWeights {
            up: self.pack(self.shape, backend, if gated { 2 * ffn } else { ffn }, hidden, copy)?,
            down: self.pack(down, backend, hidden, ffn, copy)?,
            up_bias: None,
            down_bias: None,
        };
        let activation = if gated { Activation::Silu } else { Activation::Gelu };
        Ok(Mlp::new(self.build, weights, activation, backend).expect(BUILDS))
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
        let key = (spec, n, k);
        self.packed.resize_with(self.packed.len().max(copy + 1), Vec::new);
        let packed = &mut self.packed[copy];
        if let Some((_, weights)) = packed.iter().find(|(packed, _)| *packed == key) {
            return Ok(Arc::clone(weights));
        }
        let fill = |rows: Range<usize>, out: &mut [f32]| {
            let mut random = Random(1 + (rows.start * 0x9e37 + copy) as u64);
            out.fill_with(|| random.next() / 16.0);
            Ok::<_, Infallible>(())
        };
        let weights = PackedWeights::pack(spec, n, k, &self.cx.par, fill).map_err(|error| match error {
            PackError::OutOfMemory(error) => error,
            PackError::Fill(never) => match never {},
        })?;
        let weights = Arc::new(weights);
        packed.push((key, Arc::clone(&weights)));
        Ok(weights)
    }
}

/// The last rows of a sequence of [`KV_TOKENS`]; plans for the rows of every class are made beforehand.
fn timed_attention(
    cx: &OpCx<'_>,
    attention: Attention,
    heads: AttentionShape,
    rows: [usize; 3],
) -> Result<Forward, OutOfMemory> {
    let kv = SampleKv::new(&heads, attention.shape().dtype.kv(), KV_TOKENS)?;
    let plans = rows.map(|rows| {
        let mut plan = AttentionPlan::default();
        plan.rebuild(&heads, cx.par.threads(), std::iter::once((KV_TOKENS - rows, rows)));
        plan
    });
    Ok(Box::new(move |cx, input, output| {
        let plan = &plans[MClass::of(input.rows()) as usize];
        attention.forward(cx, 0, plan, &kv, input, output);
    }))
}
