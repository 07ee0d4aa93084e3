//! Self-attention of one layer: projection with RoPE, append to the cache, attention, output projection.

use pace_kernels::{ActRef, Unit};
use pace_ops::{
    Attention, AttentionShape, Backend, KvBatch, KvCache, KvRows, OpCx, OpShape, Operator, OutProjection,
    QkvProjection, RopeAngles, Work,
};

use crate::arch::{LayerRole, Role};
use crate::batch::{Sequence, Workspace};
use crate::tensor_loader::TensorLoader;
use crate::{DecoderSpec, ModelError};

pub(crate) struct SelfAttention {
    qkv: QkvProjection,
    attention: Attention,
    out: OutProjection,
    shape: AttentionShape,
}

impl SelfAttention {
    pub(crate) fn load(loader: &mut TensorLoader<'_>, layer: usize) -> Result<Self, ModelError> {
        let shape = attention_shape(loader.spec);
        let kv = loader.options.kv;
        let choice = loader.choose(shape.op_shape(kv))?;
        let attention = Attention::new(loader.build(), shape, kv, choice)?;
        Ok(Self {
            qkv: load_qkv(loader, layer)?,
            attention: loader.admit(attention),
            out: load_out(loader, layer)?,
            shape,
        })
    }

    /// Adds the attention of the rows of `ws.normed` to the residual stream `ws.x`.
    pub(crate) fn forward(
        &self,
        cx: &OpCx<'_>,
        layer: usize,
        ws: &mut Workspace,
        angles: &RopeAngles<'_>,
        batch: &mut [Sequence],
    ) {
        let rows = angles.tokens();
        let q_cols = self.shape.n_heads * self.shape.head_dim;
        self.qkv.forward(cx, ws.normed.rows(rows), angles, ws.qkv.rows_mut(rows));
        let qkv = ws.qkv.rows(rows);
        append(cx, layer, &self.shape, qkv.cols_range(q_cols..qkv.cols()), batch);
        let q = qkv.cols_range(0..q_cols);
        self.attention.forward(cx, layer, &ws.plan, &Caches(batch), q, ws.attn.rows_mut(rows));
        self.out.forward(cx, ws.attn.rows(rows), ws.x.rows_mut(rows));
    }
}

fn load_qkv(loader: &mut TensorLoader<'_>, layer: usize) -> Result<QkvProjection, ModelError> {
    let DecoderSpec { hidden, n_heads, n_kv_heads, head_dim, qkv_bias, .. } = *loader.spec;
    let n = (n_heads + 2 * n_kv_heads) * head_dim;
    let format = loader.formats.layers[layer].qkv;
    let shape = OpShape::matrix(Operator::QkvProjection, format.into(), n, hidden);
    let (choice, packed) = (loader.choose(shape)?, loader.pack_spec(shape, format)?);
    let roles = |roles: [LayerRole; 3]| roles.map(|role| Role::Layer(layer, role));
    let weights = loader.matrix(&roles([LayerRole::Q, LayerRole::K, LayerRole::V]), hidden, packed)?;
    let bias = loader.bias(qkv_bias, &roles([LayerRole::QBias, LayerRole::KBias, LayerRole::VBias]))?;
    let qkv = QkvProjection::new(loader.build(), weights, bias, n_heads, n_kv_heads, head_dim, choice)?;
    Ok(loader.admit(qkv))
}

fn load_out(loader: &mut TensorLoader<'_>, layer: usize) -> Result<OutProjection, ModelError> {
    let DecoderSpec { hidden, n_heads, head_dim, out_bias, .. } = *loader.spec;
    let k = n_heads * head_dim;
    let format = loader.formats.layers[layer].out;
    let shape = OpShape::matrix(Operator::OutProjection, format.into(), hidden, k);
    let (choice, packed) = (loader.choose(shape)?, loader.pack_spec(shape, format)?);
    let weights = loader.matrix(&[Role::Layer(layer, LayerRole::O)], k, packed)?;
    let bias = loader.bias(out_bias, &[Role::Layer(layer, LayerRole::OBias)])?;
    let out = OutProjection::new(loader.build(), weights, bias, choice)?;
    Ok(loader.admit(out))
}

/// The caches of a batch, as attention reads them.
struct Caches<'a>(&'a [Sequence]);

impl KvBatch for Caches<'_> {
    fn cache(&self, seq: usize) -> &dyn KvCache {
        self.0[seq].kv.as_ref()
    }
}

/// The attention shape of every layer of `spec`.
pub(crate) fn attention_shape(spec: &DecoderSpec) -> AttentionShape {
    AttentionShape {
        n_heads: spec.n_heads,
        n_kv_heads: spec.n_kv_heads,
        head_dim: spec.head_dim,
        scale: 1.0 / (spec.head_dim as f32).sqrt(),
    }
}

/// Appends the keys and values of the batch, `[rows, k heads | v heads]`, to the caches of `layer`.
fn append(cx: &OpCx<'_>, layer: usize, shape: &AttentionShape, kv: ActRef<'_>, batch: &mut [Sequence]) {
    let _span = cx.span("kv_append", Backend::Native, || Work {
        rows: kv.rows(),
        // Read from the projection, written to the cache.
        bytes: 2 * kv.rows() * kv.cols() * kv.dtype().size(),
        flops: 0,
        unit: Unit::F32,
    });
    let (mut first_row, k_cols) = (0, shape.n_kv_heads * shape.head_dim);
    for seq in batch {
        let rows = kv.rows_range(first_row..first_row + seq.input.len());
        first_row += seq.input.len();
        let (k, v) = (rows.cols_range(0..k_cols), rows.cols_range(k_cols..2 * k_cols));
        let first = seq.kv.len();
        seq.kv.append(cx.par, layer, KvRows { first, k, v });
    }
}
