//! [`TensorLoader`]: named tensors of a source to packed weights.

mod quantised;

use std::hash::{DefaultHasher, Hash};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pace_kernels::{
    ActQuant, Arena, DType, Kernels, KvDType, PackError, PackSpec, PackedWeights, Par, Placement, Scratch,
    SharedMemory, WeightFormat,
};
use pace_ops::{BuildCx, Choice, OpCx, OpError, OpShape, OperatorConfig, Plan, Selection, SelfTest};

pub(crate) use self::quantised::Losses;
pub use self::quantised::QuantLoss;
use crate::arch::{Architecture, LayerRole, Role, unpermute_row};
use crate::weights::WeightSource;
use crate::weights::packed::PackedMatrix;
use crate::{DecoderSpec, Importance, ModelError, ModelFormats};

/// In which formats a model is kept, and which backends compute it.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The format of packed matrices.
    pub weights: WeightFormat,
    /// The format of embedding and LM head; none: as `weights`.
    pub lm_head: Option<WeightFormat>,
    /// Whether matrices that the files hold as integers are computed as they are, whatever `weights` says.
    pub own_formats: bool,
    /// How weights become integers: by a search for the best scales, or by the largest magnitude alone.
    pub search_scales: bool,
    /// How much errors count by their input in a search for scales; none: all the same.
    pub importance: Option<Arc<Importance>>,
    /// How activations are rounded for integer weights.
    pub act_quant: ActQuant,
    /// The type of activations: f32 or bf16.
    pub activations: DType,
    /// The type of cached keys and values.
    pub kv: KvDType,
    /// One backend per operator.
    pub operators: OperatorConfig,
    /// What measured best, for operators that are left to `Auto`.
    pub plan: Option<Arc<Plan>>,
    /// Outputs in a panel of weights, 32 or 64 (`LIBXSMM_BLOCK_SIZE`); none: what measures best.
    pub panel_width: Option<usize>,
    /// Chunks of IMBPS (`IMBPS_BLOCK_SIZE`); none: as many as the rows and the caches suggest.
    pub imbps_chunks: Option<usize>,
    /// Bytes of all last-level caches together, for measurements.
    pub l3_bytes: Option<usize>,
    /// Bytes of the smallest last-level cache of the engine's CPUs, for the number of chunks.
    pub smallest_l3: Option<usize>,
    /// The memory of the matrices, if other processes are to have them, too, or have filled it already. Files are then
    /// read for the rest alone.
    pub shared: Option<Arc<SharedMemory>>,
    /// How the memory of the matrices is had.
    pub placement: Placement,
    /// Whether files are mapped while they are read, see [`WeightSource::set_mapped`].
    pub mmap: bool,
    /// Whether tensors may hold NaN, infinities, absurdly large numbers, or nothing but zeros. A file that does is
    /// damaged or was never finished, so it is refused by default.
    pub allow_nonfinite: bool,
}

impl LoadOptions {
    /// Weights in `weights`, everything else in `activations` (f32 or bf16); backends by the built-in rules; damaged
    /// tensors are refused.
    pub fn new(weights: WeightFormat, activations: DType) -> Self {
        Self {
            weights,
            lm_head: None,
            own_formats: false,
            search_scales: true,
            importance: None,
            act_quant: ActQuant::default(),
            activations,
            kv: activations.into(),
            operators: OperatorConfig::default(),
            plan: None,
            panel_width: None,
            imbps_chunks: None,
            l3_bytes: None,
            shared: None,
            smallest_l3: None,
            placement: Placement::default(),
            mmap: false,
            allow_nonfinite: false,
        }
    }

    /// How operators are built for the tier of `kernels`.
    pub fn build_cx(&self, kernels: Kernels) -> BuildCx {
        let mut build = BuildCx::new(kernels);
        build.panel_width = self.panel_width.unwrap_or(build.panel_width);
        build.imbps_chunks = self.imbps_chunks;
        build.act_quant = self.act_quant;
        build.l3_bytes = self.l3_bytes.unwrap_or(build.l3_bytes);
        build.smallest_l3 = self.smallest_l3.unwrap_or(build.smallest_l3);
        build
    }
}

/// What loading needs at every step. `progress` is called with the number of weights just packed, from any thread.
pub(crate) struct TensorLoader<'a> {
    pub(crate) source: &'a dyn WeightSource,
    pub(crate) arch: Architecture,
    pub(crate) spec: &'a DecoderSpec,
    pub(crate) options: LoadOptions,
    /// The format of each matrix.
    pub(crate) formats: ModelFormats,
    /// What weights lost on the way to integers.
    pub(crate) losses: Losses,
    /// Which backends the operators get.
    pub(crate) selection: Selection,
    pub(crate) par: Par<'a>,
    /// The memory of the matrices.
    pub(crate) arena: Arena,
    /// What each matrix was packed as, in their order.
    pub(crate) layout: DefaultHasher,
    pub(crate) progress: &'a (dyn Fn(usize) + Sync),
    /// Where matrices are kept, if somebody wants them besides the operators.
    pub(crate) kept: Option<&'a mut Vec<PackedMatrix>>,
}

impl<'a> TensorLoader<'a> {
    /// Checks every tensor's presence and shape, and that a packed model is what the options ask for.
    pub(crate) fn new(
        source: &'a dyn WeightSource,
        arch: Architecture,
        spec: &'a DecoderSpec,
        options: LoadOptions,
        kernels: Kernels,
        par: Par<'a>,
        progress: &'a (dyn Fn(usize) + Sync),
    ) -> Result<Self, ModelError> {
        arch.validate_shapes(source, spec)?;
        options.importance.as_ref().map_or(Ok(()), |importance| importance.check(spec))?;
        if let Some(packed) = source.packed() {
            packed.check_options(arch, &options)?;
        }
        let arena = match &options.shared {
            Some(memory) => Arena::shared(options.placement, Arc::clone(memory)),
            None => Arena::new(options.placement),
        };
        Ok(Self {
            source,
            arch,
            spec,
            formats: ModelFormats::new(source, arch, spec, &options),
            losses: Losses::default(),
            selection: Selection::new(options.build_cx(kernels), options.operators, options.plan.clone()),
            options,
            par,
            arena,
            layout: DefaultHasher::new(),
            progress,
            kept: None,
        })
    }
}

impl TensorLoader<'_> {
    /// How operators are built.
    pub(crate) const fn build(&self) -> &BuildCx {
        self.selection.build()
    }

    /// The backends for an operator of a shape.
    pub(crate) fn choose(&mut self, shape: OpShape) -> Result<Choice, OpError> {
        self.selection.choose(shape)
    }

    /// How the weights of an operator of a shape are packed in a format.
    pub(crate) fn pack_spec(&mut self, shape: OpShape, format: WeightFormat) -> Result<PackSpec, OpError> {
        self.selection.pack_spec(shape, format)
    }

    /// Tests an operator that was just built, if it is the first of its shape.
    pub(crate) fn admit<T: SelfTest>(&mut self, op: T) -> T {
        let (kernels, scratch) = (self.selection.build().kernels(), Scratch::new());
        self.selection
            .admit(&OpCx { kernels, par: self.par, scratch: &scratch, profile: None, inputs: None }, op)
    }

    /// Packs the rows of `roles`, one below the other, into one `[n, k]` matrix.
    pub(crate) fn matrix(
        &mut self,
        roles: &[Role],
        k: usize,
        spec: impl Into<PackSpec>,
    ) -> Result<Arc<PackedWeights>, ModelError> {
        let parts = self.parts(roles);
        let (n, spec) = (parts.last().map_or(0, |p| p.rows.end), spec.into());
        (n, k, spec).hash(&mut self.layout);
        if let Some(source) = self.source.packed() {
            let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
            let weights = source.matrix(&names, (n, k), spec, &self.arena, &self.par)?;
            weights.input_order().hash(&mut self.layout);
            (self.progress)(n * k);
            return Ok(Arc::new(weights));
        }
        let importance = self.importance(roles);
        let weights = match self.pack(&parts, n, k, spec, importance.as_deref()) {
            Ok(weights) => Arc::new(weights),
            Err(PackError::Fill(error)) => return Err(error),
            Err(PackError::OutOfMemory(e)) => {
                let tensor = parts.first().map_or_else(String::new, |p| p.name.clone());
                return Err(ModelError::OutOfMemory { tensor, bytes: e.bytes });
            }
        };
        weights.input_order().hash(&mut self.layout);
        if self.arena.is_filled() {
            (self.progress)(n * k);
            return Ok(weights);
        }
        parts.iter().try_for_each(|part| self.refuse_zeros(part))?;
        if let Some(kept) = &mut self.kept {
            let parts = parts.into_iter().map(|part| (part.name, part.rows.len())).collect();
            kept.push(PackedMatrix { parts, weights: Arc::clone(&weights) });
        }
        Ok(weights)
    }

    /// Packs the rows of `parts` in any format.
    fn pack(
        &self,
        parts: &[Part],
        n: usize,
        k: usize,
        spec: PackSpec,
        importance: Option<&[f32]>,
    ) -> Result<PackedWeights, PackError<ModelError>> {
        if spec.format.is_quantised() {
            return self.pack_integers(parts, n, k, spec, self.rounding(importance));
        }
        PackedWeights::pack_in(&self.arena, spec, n, k, &self.par, |rows, out| {
            for (part, own) in overlaps(parts, &rows) {
                let slice = &mut out[(own.start - rows.start) * k..(own.end - rows.start) * k];
                self.read_rows(part, own.start - part.rows.start, k, slice)?;
            }
            (self.progress)(out.len());
            Ok(())
        })
    }

    /// The vectors of `roles`, one behind the other.
    pub(crate) fn vector(&self, roles: &[Role]) -> Result<Vec<f32>, ModelError> {
        let mut out = Vec::new();
        for part in self.parts(roles) {
            let start = out.len();
            out.resize(start + part.rows.len(), 0.0);
            if let Some(head_dim) = part.permuted_heads {
                let mut stored = vec![0.0; part.rows.len()];
                self.read(&part, 0, &mut stored)?;
                for (row, value) in out[start..].iter_mut().enumerate() {
                    *value = stored[unpermute_row(row, head_dim)];
                }
            } else {
                self.read(&part, 0, &mut out[start..])?;
            }
            self.refuse_zeros(&part)?;
            (self.progress)(part.rows.len());
        }
        Ok(out)
    }

    /// The vectors of `roles` where the spec has them.
    pub(crate) fn bias(&self, has: bool, roles: &[Role]) -> Result<Option<Vec<f32>>, ModelError> {
        has.then(|| self.vector(roles)).transpose()
    }

    /// How much errors of the weights of `roles`, which have one input, count by it.
    fn importance(&self, roles: &[Role]) -> Option<Vec<f32>> {
        let importance = self.options.importance.as_ref()?;
        importance.of(*roles.first()?, self.spec.tied_embeddings)
    }

    fn parts(&self, roles: &[Role]) -> Vec<Part> {
        let naming = self.source.naming();
        let mut first = 0;
        roles
            .iter()
            .map(|&role| {
                let name = self.arch.tensor_name(naming, role);
                let rows = self.source.info(&name).and_then(|t| t.shape.first().copied()).unwrap_or(0);
                let permuted = self.arch.permuted_qk(naming) && is_query_or_key(role);
                first += rows;
                Part {
                    name,
                    rows: first - rows..first,
                    permuted_heads: permuted.then_some(self.spec.head_dim),
                    has_weights: AtomicBool::new(may_be_zero(role)),
                }
            })
            .collect()
    }

    /// A tensor of zeros is what remains of one that was never written.
    fn refuse_zeros(&self, part: &Part) -> Result<(), ModelError> {
        if self.options.allow_nonfinite || part.has_weights.load(Ordering::Relaxed) {
            return Ok(());
        }
        let what = "holds nothing but zeros; the file is damaged or was never finished";
        Err(ModelError::tensor(self.source.path(&part.name), part.name.as_str(), what))
    }

    /// Reads rows of `part` from its row `first` on into `out`, put back into HF's order where the file permuted
    /// them.
    fn read_rows(&self, part: &Part, first: usize, k: usize, out: &mut [f32]) -> Result<(), ModelError> {
        let Some(head_dim) = part.permuted_heads else {
            return self.read(part, first * k, out);
        };
        for (i, row) in out.chunks_exact_mut(k).enumerate() {
            self.read(part, unpermute_row(first + i, head_dim) * k, row)?;
        }
        Ok(())
    }

    /// Reads elements of `part` from `start` on, and refuses what no model holds.
    fn read(&self, part: &Part, start: usize, out: &mut [f32]) -> Result<(), ModelError> {
        if self.options.allow_nonfinite {
            return self.source.read_any_f32(&part.name, start, out);
        }
        self.source.read_f32(&part.name, start, out)?;
        // Finite numbers without their sign are ordered as their bits are; the loop has no branches.
        let largest = out.iter().fold(0, |largest, x| x.abs().to_bits().max(largest));
        if largest > 0 {
            part.has_weights.store(true, Ordering::Relaxed);
        }
        if largest >= ABSURD.to_bits()
            && let Some(at) = out.iter().position(|x| x.abs() >= ABSURD)
        {
            let (at, number) = (start + at, out[at]);
            let what =
                format!("element {at} is {number:e}; weights are far below {ABSURD:e}, the file is damaged");
            return Err(ModelError::tensor(self.source.path(&part.name), part.name.as_str(), what));
        }
        Ok(())
    }
}

/// No weight comes near this: sums of its products with activations would leave what f32 can hold.
const ABSURD: f32 = 1e18;

/// A tensor's place among the rows of a fused matrix.
struct Part {
    name: String,
    rows: Range<usize>,
    /// The head size, when the file interleaves the two halves of each head.
    permuted_heads: Option<usize>,
    /// Whether a number other than 0 has been seen, or need not be there.
    has_weights: AtomicBool,
}

/// The parts that have some of `rows` of the fused matrix, and which rows these are.
fn overlaps<'p>(parts: &'p [Part], rows: &Range<usize>) -> impl Iterator<Item = (&'p Part, Range<usize>)> {
    let rows = rows.clone();
    let own = move |part: &'p Part| (part, rows.start.max(part.rows.start)..rows.end.min(part.rows.end));
    parts.iter().map(own).filter(|(_, own)| !own.is_empty())
}

const fn is_query_or_key(role: Role) -> bool {
    matches!(role, Role::Layer(_, LayerRole::Q | LayerRole::K | LayerRole::QBias | LayerRole::KBias))
}

/// Biases often are zero, and so are the two output projections of layers that were inserted to deepen a model
/// (block expansion): such a layer starts as the identity.
const fn may_be_zero(role: Role) -> bool {
    match role {
        Role::Embedding | Role::FinalNorm | Role::LmHead => false,
        Role::Layer(_, part) => !matches!(
            part,
            LayerRole::AttnNorm
                | LayerRole::Q
                | LayerRole::K
                | LayerRole::V
                | LayerRole::FfnNorm
                | LayerRole::Gate
                | LayerRole::Up
        ),
    }
}
