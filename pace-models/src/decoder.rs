//! [`Decoder`]: the one implementation of [`Model`], driven by a [`DecoderSpec`].

use std::hash::Hasher;
use std::sync::Arc;

use pace_kernels::{ActMut, ActRef, DType, Kernels, MatMut, Par, Unit};
use pace_ops::{
    AttentionShape, Backend, Embedding, LayerKind, LmHead, Norm, OpCx, OpShape, Operator, Rope, RopeAngles,
    Selection, Work,
};

use crate::arch::{Architecture, Role};
use crate::batch::{Sequence, Workspace};
use crate::layer::{Layer, load_norm};
use crate::rope::RopeFrequencies;
use crate::self_attention::attention_shape;
use crate::tensor_loader::{LoadOptions, TensorLoader};
use crate::weights::WeightSource;
use crate::weights::packed::PackedMatrix;
use crate::{DecoderSpec, Model, ModelError, WeightMemory};

/// A pre-norm decoder-only transformer.
pub struct Decoder {
    spec: DecoderSpec,
    activations: DType,
    embedding: Embedding,
    layers: Vec<Layer>,
    final_norm: Norm,
    lm_head: LmHead,
    rope: Rope,
    frequencies: RopeFrequencies,
    weights: WeightMemory,
    attention: AttentionShape,
    selection: Selection,
}

impl Decoder {
    /// Checks every tensor's presence and shape, then packs the weights of `source` on the threads of `par` for the
    /// tier of `kernels`.
    /// `progress` is called with the number of weights just packed, from any thread.
    ///
    /// # Errors
    /// A tensor (or an importance) is missing, misshapen, unreadable or (unless the options allow it) holds what no model does; a file
    /// was changed meanwhile; an operator has no such backend; there is no memory.
    pub fn load(
        source: &dyn WeightSource,
        arch: Architecture,
        spec: &DecoderSpec,
        options: LoadOptions,
        kernels: Kernels,
        par: Par<'_>,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Self, ModelError> {
        Self::load_keeping(source, arch, spec, options, kernels, par, progress, None)
    }

    /// As [`load`](Self::load); the matrices are put into `kept`, too.
    pub(crate) fn load_keeping(
        source: &dyn WeightSource,
        arch: Architecture,
        spec: &DecoderSpec,
        options: LoadOptions,
        kernels: Kernels,
        par: Par<'_>,
        progress: &(dyn Fn(usize) + Sync),
        kept: Option<&mut Vec<PackedMatrix>>,
    ) -> Result<Self, ModelError> {
        let mut loader = TensorLoader::new(source, arch, spec, options, kernels, par, progress)?;
        loader.kept = kept;
        let (activations, bytes) = (loader.options.activations, loader.formats.bytes(spec));
        let (embedding, lm_head) = load_vocabulary(&mut loader)?;
        let layers = (0..spec.n_layers).map(|i| Layer::load(&mut loader, i)).collect::<Result<_, _>>()?;
        let final_norm = load_norm(&mut loader, Role::FinalNorm)?;
        let choice = loader.choose(OpShape::row(Operator::Rope, activations.into(), spec.head_dim))?;
        let rope = Rope::new(loader.build(), spec.head_dim, activations, choice)?;
        let rope = loader.admit(rope);
        source.check_unchanged()?;
        let losses = source.packed().map_or_else(|| loader.losses.into_list(), |packed| packed.losses());
        Ok(Self {
            spec: spec.clone(),
            activations,
            embedding,
            layers,
            final_norm,
            lm_head,
            rope,
            frequencies: RopeFrequencies::new(&spec.rope, spec.head_dim),
            weights: WeightMemory {
                bytes,
                huge_share: loader.arena.huge_share(),
                layout: loader.layout.finish(),
                addresses: loader.arena.addresses(),
                losses,
            },
            attention: attention_shape(spec),
            selection: loader.selection,
        })
    }

    /// The angles of every new token of the batch.
    fn angles<'a>(
        &self,
        cx: &OpCx<'a>,
        inv_freq: &mut Vec<f64>,
        batch: &[Sequence],
        rows: usize,
    ) -> RopeAngles<'a> {
        let _span = cx.span("rope_angles", Backend::Native, || {
            // A cosine and a sine for each pair of dimensions.
            let bytes = rows * self.spec.head_dim * size_of::<f32>();
            Work { rows, bytes, flops: 0, unit: Unit::F32 }
        });
        let mut angles = self.rope.angles(cx, rows);
        let mut row = 0;
        for seq in batch.iter().filter(|s| !s.input.is_empty()) {
            let past = seq.kv.len();
            self.frequencies.for_length(seq.rope_len.max(past + seq.input.len()), inv_freq);
            for i in 0..seq.input.len() {
                angles.set(row, past + i, inv_freq);
                row += 1;
            }
        }
        angles
    }

    /// Normalises the rows that need logits into `ws.out`.
    fn keep_outputs(&self, cx: &OpCx<'_>, ws: &mut Workspace, batch: &[Sequence]) {
        ws.output_rows = batch.iter().map(Sequence::output_rows).sum();
        let rows: usize = batch.iter().map(|s| s.input.len()).sum();
        // The rows are gathered into `normed`, which is free after the last layer.
        let (x, mut kept) = (ws.x.rows(rows), ws.normed.rows_mut(ws.output_rows));
        let (mut from, mut to) = (0, 0);
        for seq in batch {
            let end = from + seq.input.len();
            for row in end - seq.output_rows()..end {
                copy_row(x, row, &mut kept, to);
                to += 1;
            }
            from = end;
        }
        self.final_norm.forward(cx, ws.normed.rows(ws.output_rows), ws.out.rows_mut(ws.output_rows));
    }
}

impl Model for Decoder {
    fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    fn activations(&self) -> DType {
        self.activations
    }

    fn weights(&self) -> WeightMemory {
        self.weights.clone()
    }

    fn selection(&self) -> &Selection {
        &self.selection
    }

    fn forward(&self, cx: &OpCx<'_>, ws: &mut Workspace, batch: &mut [Sequence]) {
        let rows: usize = batch.iter().map(|s| s.input.len()).sum();
        let new = batch.iter().map(|s| (s.kv.len(), s.input.len()));
        ws.plan.rebuild(&self.attention, cx.par.threads(), new);
        cx.enter(LayerKind::Embedding, None);
        let angles = self.angles(cx, &mut ws.inv_freq, batch, rows);
        self.embedding.forward(cx, batch.iter().flat_map(|s| &s.input), ws.x.rows_mut(rows));
        for (i, layer) in self.layers.iter().enumerate() {
            cx.enter(LayerKind::Decoder, Some(i));
            layer.forward(cx, i, ws, &angles, batch);
        }
        cx.enter(LayerKind::Output, None);
        self.keep_outputs(cx, ws, batch);
        for seq in batch {
            let len = seq.kv.len() + seq.input.len();
            seq.kv.set_len(len);
            seq.input.clear();
        }
    }

    fn logits(&self, cx: &OpCx<'_>, hidden: ActRef<'_>, logits: MatMut<'_, f32>) {
        cx.enter(LayerKind::Output, None);
        self.lm_head.forward(cx, hidden, logits);
    }
}

/// The embedding and the LM head, which share a matrix where the model ties them.
fn load_vocabulary(loader: &mut TensorLoader<'_>) -> Result<(Embedding, LmHead), ModelError> {
    let DecoderSpec { vocab_size, hidden, tied_embeddings, .. } = *loader.spec;
    let format = loader.formats.lm_head;
    let shape = OpShape::matrix(Operator::LmHead, format.into(), vocab_size, hidden);
    let (choice, packed) = (loader.choose(shape)?, loader.pack_spec(shape, format)?);
    let role = if tied_embeddings { Role::Embedding } else { Role::LmHead };
    let head = loader.matrix(&[role], hidden, packed)?;
    let embedding = if let Some(format) = loader.formats.embedding {
        let packed = loader.build().pack_spec(shape, Backend::Native.into(), format);
        loader.matrix(&[Role::Embedding], hidden, packed)?
    } else {
        Arc::clone(&head)
    };
    let lm_head = LmHead::new(loader.build(), head, choice)?;
    Ok((Embedding::new(embedding), loader.admit(lm_head)))
}

fn copy_row(from: ActRef<'_>, row: usize, to: &mut ActMut<'_>, at: usize) {
    match (from, to) {
        (ActRef::F32(from), ActMut::F32(to)) => to.row_mut(at).copy_from_slice(from.row(row)),
        (ActRef::Bf16(from), ActMut::Bf16(to)) => to.row_mut(at).copy_from_slice(from.row(row)),
        _ => unreachable!("a workspace holds one type"),
    }
}
