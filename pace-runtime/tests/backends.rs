//! Every backend, alone and mixed with others: the log-probabilities of transformers, and the same bits wherever they
//! are promised.

// Helpers unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use pace_kernels::{DType, Isa, Kernels, MatMut, Pool, Scratch, WeightFormat};
use pace_models::weights::WeightSource;
use pace_models::weights::random::{RandomSource, random_spec};
use pace_models::{Architecture, Decoder, DecoderSpec, LoadOptions, Model, ModelError, Sequence, Workspace};
use pace_ops::{Backend, BuildCx, OpCx, OpDType, OpShape, OpSize, Operator, OperatorConfig};
use pace_runtime::ModelFiles;
use pace_runtime::kv_cache::{BmcConfig, BmcGrow, BmcGrowth, KvCacheKind, KvConfig, KvShape};

use common::{Case, assert_close, fixtures, model};

const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// Where models are loaded and run, step by step.
struct Machine {
    kernels: Kernels,
    pool: Pool,
    kv: KvConfig,
}

impl Machine {
    fn new(threads: usize) -> Self {
        let kernels = Kernels::new(Isa::from_env().unwrap()).unwrap();
        Self { kernels, pool: Pool::unpinned(threads).unwrap(), kv: KvConfig::default() }
    }

    fn load(
        &self,
        source: &dyn WeightSource,
        arch: Architecture,
        spec: &DecoderSpec,
        options: LoadOptions,
    ) -> Result<Decoder, ModelError> {
        Decoder::load(source, arch, spec, options, self.kernels, self.pool.par(), &|_| {})
    }

    /// The logits behind every token of each prompt. All prompts are fed together; step i feeds up to
    /// `chunks[i % chunks.len()]` tokens of each.
    fn logits(&self, model: &Decoder, prompts: &[&[u32]], chunks: &[usize]) -> Vec<Vec<f32>> {
        let scratch = Scratch::new();
        let cx = OpCx {
            kernels: self.kernels,
            par: self.pool.par(),
            scratch: &scratch,
            profile: None,
            inputs: None,
        };
        let (mut ws, vocab) = (Workspace::new(model.spec(), model.activations()), model.spec().vocab_size);
        let mut batch: Vec<Sequence> = prompts.iter().map(|p| self.sequence(model, p.len())).collect();
        let mut all = vec![Vec::new(); prompts.len()];
        for chunk in chunks.iter().cycle() {
            for (seq, prompt) in batch.iter_mut().zip(prompts) {
                seq.input.extend(prompt[seq.kv.len()..].iter().take(*chunk));
                seq.kv.reserve(seq.kv.len() + seq.input.len()).unwrap();
            }
            let rows: Vec<usize> = batch.iter().map(|s| s.input.len()).collect();
            let total: usize = rows.iter().sum();
            if total == 0 {
                break;
            }
            model.forward(&cx, &mut ws, &mut batch);
            let mut logits = vec![0.0; total * vocab];
            model.logits(&cx, ws.outputs(), MatMut::new(&mut logits, total, vocab));
            let mut rest = logits.as_slice();
            for (all, rows) in all.iter_mut().zip(rows) {
                let (own, others) = rest.split_at(rows * vocab);
                all.extend_from_slice(own);
                rest = others;
            }
        }
        all
    }

    /// An empty sequence of up to `len` tokens, all of which need logits.
    fn sequence(&self, model: &Decoder, len: usize) -> Sequence {
        let kv = self.kv.build(KvShape::new(model.spec(), model.activations(), len)).unwrap();
        Sequence { kv, input: Vec::new(), rope_len: len, outputs: usize::MAX }
    }
}

fn options(dtype: DType, operators: OperatorConfig) -> LoadOptions {
    let weights = if dtype == DType::F32 { WeightFormat::F32 } else { WeightFormat::Bf16 };
    LoadOptions { operators, ..LoadOptions::new(weights, dtype) }
}

/// The operators of a model, and which backends they have on this CPU.
struct Cells(Vec<(Operator, Vec<Backend>)>);

impl Cells {
    fn new(kernels: Kernels, spec: &DecoderSpec, dtype: DType) -> Self {
        let cx = BuildCx::new(kernels);
        let DecoderSpec { n_heads, n_kv_heads, head_dim, .. } = *spec;
        let backends = |op: Operator| {
            let size = match op {
                Operator::Attention => OpSize::Heads { n_heads, n_kv_heads, head_dim },
                _ => OpSize::Row { cols: spec.hidden },
            };
            let shape = OpShape { op, dtype: OpDType::from(dtype), size };
            op.backends().iter().copied().filter(|&b| cx.resolve(shape, b.into()).is_ok()).collect()
        };
        Self(OperatorConfig::OPERATORS.into_iter().map(|op| (op, backends(op))).collect())
    }

    /// `backend` for every operator that has it; none if no operator does.
    fn single(&self, backend: Backend) -> Option<OperatorConfig> {
        let mut config = OperatorConfig::default();
        for (op, _) in self.0.iter().filter(|(_, backends)| backends.contains(&backend)) {
            config.set(op.name(), backend.name()).unwrap();
        }
        (config != OperatorConfig::default()).then_some(config)
    }

    /// A random backend for every operator; if `bit_equal`, only such that promise the same bits.
    fn mixed(&self, random: &mut u64, bit_equal: bool) -> OperatorConfig {
        let mut config = OperatorConfig::default();
        for (op, backends) in &self.0 {
            let allowed: Vec<Backend> =
                backends.iter().copied().filter(|&b| !bit_equal || !self.loses_bits(*op, b)).collect();
            // The generator of Knuth's MMIX; its upper bits are the good ones.
            *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let backend = allowed[(*random >> 33) as usize % allowed.len()];
            config.set(op.name(), backend.name()).unwrap();
        }
        config
    }

    /// NATIVE for all, each other backend by itself, and `mixed` random mixtures, every second one without what
    /// promises no bits.
    fn configurations(&self, seed: u64, mixed: usize) -> Vec<OperatorConfig> {
        let mut random = seed;
        let singles = Backend::ALL.into_iter().filter_map(|backend| self.single(backend));
        let mixed = (0..mixed).map(|i| self.mixed(&mut random, i % 2 == 0));
        singles.chain(mixed).collect()
    }

    /// Whether every operator has a backend of the bit-equal class.
    fn keeps_bits(&self, config: &OperatorConfig) -> bool {
        config.iter().all(|(op, backend)| !self.loses_bits(op, backend))
    }

    /// Whether an operator that could give the bits of the class is computed by the reference. Norms give the same
    /// bits by both, RoPE does not: vectors fuse its products. A head that no tile takes has only the reference.
    fn loses_bits(&self, op: Operator, backend: Backend) -> bool {
        let only = self.0.iter().any(|(o, backends)| *o == op && *backends == [Backend::Native]);
        backend == Backend::Native && op != Operator::Norm && !only
    }
}

/// The model was built as configured, and nothing failed its self-test.
fn assert_obeyed(model: &Decoder, config: &OperatorConfig) {
    let selection = model.selection();
    assert!(selection.demotions().is_empty(), "{config:?}: {:?}", selection.demotions());
    for chosen in selection.chosen() {
        let wanted = config.get(chosen.shape.op);
        assert!(wanted == Backend::Auto || chosen.choice == wanted.into(), "{config:?}: {chosen:?}");
    }
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// |difference| of every log-probability that a case has, given and next.
fn differences(case: &Case, logits: &[f32]) -> Vec<f64> {
    let rows: Vec<Vec<f64>> = logits.chunks_exact(case.next_logprobs.len()).map(log_softmax).collect();
    assert_eq!((rows.len(), case.logprobs.len()), (case.prompt.len(), case.prompt.len()));
    let behind = rows.iter().zip(&case.prompt[1..]).zip(&case.logprobs[1..]);
    let given = behind.map(|((row, &id), want)| (row[id as usize] - want.unwrap()).abs());
    let next = rows[rows.len() - 1].iter().zip(&case.next_logprobs).map(|(got, want)| (got - want).abs());
    given.chain(next).collect()
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
    row.iter().map(|&x| f64::from(x - max) - sum.ln()).collect()
}

/// Every configuration on every fixture: close to transformers, and equal to each other where bits are promised.
fn parity(dtype: DType) {
    let machine = Machine::new(2);
    let mut flash = 0;
    for (seed, (dir, expected)) in fixtures().into_iter().enumerate() {
        let files = ModelFiles::open(&model(&dir, &expected)).unwrap();
        let cells = Cells::new(machine.kernels, files.spec(), dtype);
        let mut first: Option<(OperatorConfig, Vec<u32>)> = None;
        let mut compared = 0;
        for config in cells.configurations(seed as u64, 8) {
            let what = format!("{}: {config:?}", expected.name);
            let source = (files.source(), files.architecture(), files.spec());
            let model = machine.load(source.0, source.1, source.2, options(dtype, config)).unwrap();
            assert_obeyed(&model, &config);
            let run = |case: &Case| machine.logits(&model, &[&case.prompt], &[usize::MAX]).concat();
            let logits: Vec<Vec<f32>> = expected.cases.iter().map(run).collect();
            let off: Vec<f64> =
                expected.cases.iter().zip(&logits).flat_map(|(case, l)| differences(case, l)).collect();
            assert_close(&what, dtype, &off);
            if cells.keeps_bits(&config) {
                let bits = bits(&logits.concat());
                let (other, want) = first.get_or_insert_with(|| (config, bits.clone()));
                assert!(bits == *want, "{what}: other bits than {other:?}");
                compared += 1;
            }
        }
        assert!(compared >= 6, "{}: {compared} configurations promise bits", expected.name);
        flash += usize::from(cells.single(Backend::Flash).is_some());
    }
    assert!(flash >= 2, "{flash} fixtures have heads that tiles take");
}

#[test]
fn every_configuration_in_f32_gives_the_log_probabilities_of_transformers() {
    parity(DType::F32);
}

#[test]
fn every_configuration_in_bf16_stays_close_to_transformers() {
    parity(DType::Bf16);
}

/// A model with heads that every attention backend takes, dimensions that fill no panel, and two units of positions.
fn ragged_spec() -> DecoderSpec {
    DecoderSpec { head_dim: 24, n_layers: 2, max_positions: 1024, ..random_spec("tiny").unwrap() }
}

fn prompt(len: usize, step: usize) -> Vec<u32> {
    (0..len).map(|t| ((t * step + len) % 259) as u32).collect()
}

#[test]
fn the_bits_do_not_depend_on_batch_chunks_or_threads() {
    let (spec, machines) = (ragged_spec(), [1, 2, 3].map(Machine::new));
    let source = RandomSource::new(&spec, 7);
    let (long, medium, short) = (prompt(540, 53), prompt(70, 31), prompt(5, 11));
    for dtype in DTYPES {
        let cells = Cells::new(machines[1].kernels, &spec, dtype);
        let mut configs = cells.configurations(1, 2);
        configs.retain(|config| cells.keeps_bits(config));
        assert!(configs.len() >= 4, "{configs:?}");
        for config in configs {
            let load = options(dtype, config);
            let model = machines[1].load(&source, Architecture::Llama, &spec, load).unwrap();
            assert!(model.selection().is_bit_equal(), "{config:?}");
            let alone = |prompt: &[u32]| machines[0].logits(&model, &[prompt], &[usize::MAX]).concat();
            let want = [&long, &medium, &short].map(|p| bits(&alone(p)));
            for (machine, chunks) in machines.iter().zip([&[1][..], &[17, 1, 2], &[usize::MAX]]) {
                let got = machine.logits(&model, &[&medium], chunks).concat();
                assert!(bits(&got) == want[1], "{config:?} in {dtype}: alone in chunks of {chunks:?}");
            }
            for (machine, chunks) in machines.iter().zip([&[usize::MAX][..], &[512], &[130, 1, 3, 40]]) {
                let got = machine.logits(&model, &[&short, &long, &medium], chunks);
                for (got, want) in got.iter().zip([&want[2], &want[0], &want[1]]) {
                    assert!(bits(got) == *want, "{config:?} in {dtype}: together in chunks of {chunks:?}");
                }
            }
        }
    }
}

/// Every kind of cache, and BMC with parts of several lengths.
fn caches() -> Vec<KvConfig> {
    let mut all = KvCacheKind::ALL.map(KvConfig::from).to_vec();
    for grow in [BmcGrow::Copy, BmcGrow::Commit] {
        for (splits, growth) in [(4, BmcGrowth::Doubling), (3, BmcGrowth::Linear), (540, BmcGrowth::Linear)] {
            let bmc = BmcConfig { splits: Some(splits), growth: Some(growth), grow, ..BmcConfig::default() };
            all.push(KvConfig { kind: KvCacheKind::Bmc, bmc, ..KvConfig::default() });
        }
    }
    all
}

#[test]
fn the_bits_do_not_depend_on_the_cache() {
    let spec = ragged_spec();
    let (source, prompt) = (RandomSource::new(&spec, 10), prompt(540, 53));
    for dtype in DTYPES {
        let mut want = None;
        for kv in caches() {
            let machine = Machine { kv, ..Machine::new(2) };
            let load = options(dtype, OperatorConfig::default());
            let model = machine.load(&source, Architecture::Llama, &spec, load).unwrap();
            assert!(model.selection().is_bit_equal());
            for chunks in [&[1][..], &[70, 1, 3]] {
                let got = bits(&machine.logits(&model, &[&prompt], chunks).concat());
                assert!(
                    got == *want.get_or_insert_with(|| got.clone()),
                    "{kv} in {dtype}, chunks of {chunks:?}"
                );
            }
        }
    }
}

#[test]
fn the_bits_do_not_depend_on_panels_or_imbps_chunks() {
    let (spec, machine) = (ragged_spec(), Machine::new(2));
    let (source, prompt) = (RandomSource::new(&spec, 8), prompt(40, 53));
    for dtype in DTYPES {
        let cells = Cells::new(machine.kernels, &spec, dtype);
        let run = |config, panel_width, imbps_chunks| {
            let load = LoadOptions { panel_width, imbps_chunks, ..options(dtype, config) };
            let model = machine.load(&source, Architecture::Llama, &spec, load).unwrap();
            bits(&machine.logits(&model, &[&prompt], &[usize::MAX]).concat())
        };
        let imbps = OperatorConfig { mlp: Backend::Imbps, ..OperatorConfig::default() };
        let want = run(imbps, None, None);
        for chunks in [1, 3] {
            assert!(run(imbps, Some(64), Some(chunks)) == want, "{chunks} chunks in {dtype}");
        }
        for config in [Backend::Tpp, Backend::Jit, Backend::Imbps].into_iter().filter_map(|b| cells.single(b))
        {
            assert!(run(config, Some(32), None) == want, "panels of 32 in {dtype}: {config:?}");
        }
    }
}

#[test]
fn heads_that_no_tile_takes_are_refused_by_flash_and_left_to_the_reference_by_auto() {
    let machine = Machine::new(1);
    let spec = random_spec("tiny").unwrap();
    let source = RandomSource::new(&spec, 9);
    for dtype in DTYPES {
        let load = |attention| {
            let config = OperatorConfig { attention, ..OperatorConfig::default() };
            machine.load(&source, Architecture::Llama, &spec, options(dtype, config))
        };
        let error = load(Backend::Flash).err().expect("it is refused").to_string();
        for word in ["attention", "`flash`", "6/2 heads of 12", "multiples of 8"] {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
        let model = load(Backend::Auto).unwrap();
        let mut chosen = model.selection().chosen().iter();
        let attention = chosen.find(|c| c.shape.op == Operator::Attention).unwrap();
        assert_eq!(attention.choice, Backend::Native.into());
        assert!(!model.selection().is_bit_equal());
    }
}
