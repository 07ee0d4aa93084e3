//! Flash attention: prefill against arithmetic, decode against reading keys and values.

use std::hint::black_box;

use pace_kernels::{
    ActMut, ActRef, AttentionParams, AttentionPlan, AttentionSegment, MatMut, MatRef, Scratch, Unit, bf16,
};

use super::limits::{Limits, memory_bytes};
use super::{Options, Row};
use crate::blocks::Layers;
use crate::paired::{giga_rate, paired};
use crate::{Bench, numbers};

const N_HEADS: usize = 32;
const N_KV_HEADS: usize = 8;
const HEAD_DIMS: [usize; 2] = [64, 128];
const PREFILL_TOKENS: [usize; 2] = [512, 2048];
const DECODE_TOKENS: usize = 4096;
const DECODE_SEQUENCES: [usize; 2] = [1, 8];

/// A batch with its operands.
struct Batch<'a> {
    bench: &'a Bench,
    params: AttentionParams<'static>,
    plan: AttentionPlan,
    layers: Layers,
    q: Vec<bf16>,
    out: Vec<bf16>,
    scratch: Scratch,
}

impl<'a> Batch<'a> {
    /// The last `new` of `tokens` tokens of each sequence.
    fn new(
        bench: &'a Bench,
        head_dim: usize,
        sequences: usize,
        tokens: usize,
        new: usize,
        bytes: usize,
    ) -> Self {
        let params = AttentionParams::causal(N_HEADS, N_KV_HEADS, head_dim);
        let mut plan = AttentionPlan::new();
        let segment = AttentionSegment { position: tokens - new, tokens: new };
        plan.rebuild(&params, bench.cx().par.threads(), (0..sequences).map(|_| segment));
        let len = sequences * new * N_HEADS * head_dim;
        let mut this = Self {
            bench,
            params,
            plan,
            layers: Layers::new(head_dim, N_KV_HEADS, sequences, tokens, bytes),
            q: numbers(5, len).into_iter().map(bf16::from_f32).collect(),
            out: vec![bf16::ZERO; len],
            scratch: Scratch::new(),
        };
        this.run();
        // Values are below 1, and so is what a softmax makes of them.
        assert!(this.out.iter().all(|x| x.to_f32().abs() <= 1.0), "attention: a result is out of range");
        this
    }

    fn run(&mut self) {
        let (rows, cols) = (self.plan.rows(), N_HEADS * self.params.head_dim);
        let cx = self.bench.cx();
        let q = ActRef::Bf16(MatRef::new(&self.q, rows, cols));
        let out = ActMut::Bf16(MatMut::new(&mut self.out, rows, cols));
        cx.kernels.attention(&self.params, &self.plan, &self.layers, q, out, &self.scratch, &cx.par);
    }

    /// GB/s of reading all layers.
    fn read(&self) -> f64 {
        let cx = self.bench.cx();
        let data = self.layers.memory();
        let part = data.len() / cx.par.threads();
        giga_rate((part * cx.par.threads() * size_of::<f32>()) as f64, || {
            cx.par.run(|member| {
                black_box(cx.kernels.probe_read(&data[member * part..(member + 1) * part]));
            });
        })
    }

    /// GB/s of attention over all layers, one after the other.
    fn rotate(&mut self) -> f64 {
        let layers = self.layers.count();
        giga_rate((layers * self.layers.layer_bytes()) as f64, || {
            for layer in 0..layers {
                self.layers.select(layer);
                self.run();
            }
        })
    }
}

pub(super) fn measure(
    bench: &Bench,
    limits: &Limits<'_>,
    options: &Options,
    progress: &dyn Fn(&str),
    rows: &mut Vec<Row>,
) {
    if options.wants("attn_prefill") {
        for (head_dim, tokens) in HEAD_DIMS.into_iter().flat_map(|d| PREFILL_TOKENS.map(|t| (d, t))) {
            progress(&format!("attn_prefill {tokens} x {head_dim}"));
            rows.push(prefill(bench, limits, options, head_dim, tokens));
        }
    }
    if options.wants("attn_decode") {
        for (head_dim, sequences) in HEAD_DIMS.into_iter().flat_map(|d| DECODE_SEQUENCES.map(|s| (d, s))) {
            progress(&format!("attn_decode {sequences} x {DECODE_TOKENS} x {head_dim}"));
            rows.push(decode(bench, options, head_dim, sequences));
        }
    }
}

/// The causal half of the products is counted.
fn prefill(bench: &Bench, limits: &Limits<'_>, options: &Options, head_dim: usize, tokens: usize) -> Row {
    let mut batch = Batch::new(bench, head_dim, 1, tokens, tokens, 0);
    let flops = 4.0 * (N_HEADS * head_dim) as f64 * (tokens * (tokens + 1) / 2) as f64;
    let got = paired(options.samples, || limits.peak(Unit::Bf16), || giga_rate(flops, || batch.run()));
    let row = Row::new(bench, "attn_prefill", "GFLOP/s", got);
    Row { head_dim: Some(head_dim), tokens: Some(tokens), sequences: Some(1), ..row }
}

fn decode(bench: &Bench, options: &Options, head_dim: usize, sequences: usize) -> Row {
    let batch = Batch::new(bench, head_dim, sequences, DECODE_TOKENS, 1, memory_bytes());
    let batch = std::cell::RefCell::new(batch);
    let got = paired(options.samples, || batch.borrow().read(), || batch.borrow_mut().rotate());
    let row = Row::new(bench, "attn_decode", "GB/s", got);
    Row { head_dim: Some(head_dim), tokens: Some(DECODE_TOKENS), sequences: Some(sequences), ..row }
}
