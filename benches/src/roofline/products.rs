//! Matrix products.

use pace_kernels::{
    ActMut, ActQuant, ActRef, Epilogue, MatMut, MatRef, PackedWeights, Unit, WeightFormat, bf16,
};

use super::limits::Limits;
use super::{Options, Row};
use crate::paired::{Paired, giga_rate, paired};
use crate::{Bench, check, numbers};

/// (k, n) of products with many rows: projections of models of 1 to 7 billion parameters.
const SHAPES: [(usize, usize); 4] = [(2048, 2048), (2048, 8192), (8192, 2048), (4096, 11008)];
const MANY_ROWS: [usize; 2] = [512, 2048];

/// The 4-bit format: groups as small as they come, with the most scales to read.
const INT4: WeightFormat = WeightFormat::Int4(32);

/// Inputs of the products that read a gibibyte of weights.
const STREAM_K: usize = 4096;
const STREAM_BYTES: usize = 1 << 30;

/// A product with its operands.
struct Product<'a> {
    bench: &'a Bench,
    w: &'a PackedWeights,
    quant: ActQuant,
    m: usize,
    a: Vec<bf16>,
    wide_a: Vec<f32>,
    c: Vec<bf16>,
    wide_c: Vec<f32>,
}

impl<'a> Product<'a> {
    /// f32 weights get f32 operands, others bf16.
    fn new(bench: &'a Bench, w: &'a PackedWeights, quant: ActQuant, m: usize) -> Self {
        let wide = w.format() == WeightFormat::F32;
        let a = numbers(1, m * w.k());
        let narrow = |len| if wide { Vec::new() } else { vec![bf16::ZERO; len] };
        let mut this = Self {
            bench,
            w,
            quant,
            m,
            a: if wide { Vec::new() } else { a.iter().map(|&x| bf16::from_f32(x)).collect() },
            wide_a: if wide { a } else { Vec::new() },
            c: narrow(m * w.n()),
            wide_c: if wide { vec![0.0; m * w.n()] } else { Vec::new() },
        };
        this.run();
        this.check();
        this
    }

    /// The last row's last results in f64, with the weights as they are stored.
    fn check(&self) {
        let (k, n) = (self.w.k(), self.w.n());
        let a = numbers(1, self.m * k).split_off((self.m - 1) * k);
        let mut row = vec![0.0; k];
        let columns = n - n.min(64)..n;
        let want: Vec<f64> = columns
            .clone()
            .map(|j| {
                self.w.row(j, &self.bench.cx().kernels, &mut row);
                row.iter().zip(&a).map(|(w, a)| f64::from(*w) * f64::from(*a)).sum()
            })
            .collect();
        let at = (self.m - 1) * n + columns.start..self.m * n;
        let got: Vec<f32> = if self.w.format() == WeightFormat::F32 {
            self.wide_c[at].to_vec()
        } else {
            self.c[at].iter().map(|c| c.to_f32()).collect()
        };
        check("gemm", &got, &want, 0.05);
    }

    fn run(&mut self) {
        let (m, k, n) = (self.m, self.w.k(), self.w.n());
        let (a, c) = if self.w.format() == WeightFormat::F32 {
            let a = ActRef::F32(MatRef::new(&self.wide_a, m, k));
            (a, ActMut::F32(MatMut::new(&mut self.wide_c, m, n)))
        } else {
            let a = ActRef::Bf16(MatRef::new(&self.a, m, k));
            (a, ActMut::Bf16(MatMut::new(&mut self.c, m, n)))
        };
        let cx = self.bench.gemm_cx(self.quant);
        self.bench.cx().kernels.gemm(&cx, a, self.w, c, &Epilogue::default());
    }

    fn flops(&self) -> f64 {
        2.0 * (self.m * self.w.k() * self.w.n()) as f64
    }

    fn row(&self, kernel: &'static str, unit: &'static str, got: Paired) -> Row {
        let (m, k, n) = (Some(self.m), Some(self.w.k()), Some(self.w.n()));
        Row { m, k, n, ..Row::new(self.bench, kernel, unit, got) }
    }
}

pub(super) fn measure(
    bench: &Bench,
    limits: &Limits<'_>,
    options: &Options,
    progress: &dyn Fn(&str),
    rows: &mut Vec<Row>,
) {
    let kinds = [
        ("gemm_f32", WeightFormat::F32, ActQuant::Groups, Unit::F32),
        ("gemm_bf16", WeightFormat::Bf16, ActQuant::Groups, Unit::Bf16),
        ("gemm_int8", WeightFormat::Int8, ActQuant::Token, Unit::Int8),
        ("gemm_int8_g64", WeightFormat::Int8RotatedGroup, ActQuant::Groups, Unit::Int8),
        ("gemm_int4", INT4, ActQuant::Groups, Unit::Int8),
    ];
    for (kernel, format, quant, unit) in kinds {
        let beside = format == WeightFormat::F32 && options.wants("gemm_crate_f32");
        for (k, n) in SHAPES {
            if !options.wants(kernel) {
                break;
            }
            let w = bench.panels(format, n, k);
            for m in MANY_ROWS {
                progress(&format!("{kernel} {m} x {k} x {n}"));
                let mut product = Product::new(bench, &w, quant, m);
                let flops = product.flops();
                let work = || giga_rate(flops, || product.run());
                let got = paired(options.samples, || limits.peak(unit), work);
                rows.push(product.row(kernel, "GFLOP/s", got));
            }
        }
        for (m, (k, n)) in
            SHAPES.into_iter().flat_map(|shape| MANY_ROWS.map(|m| (m, shape))).filter(|_| beside)
        {
            progress(&format!("gemm_crate_f32 {m} x {k} x {n}"));
            rows.push(library(bench, limits, options, m, k, n));
        }
    }
    let streams: [(_, _, &[usize]); 5] = [
        ("gemv_bf16", WeightFormat::Bf16, &[1]),
        ("gemv_int8", WeightFormat::Int8, &[1, 8]),
        ("gemv_int8_g64", WeightFormat::Int8RotatedGroup, &[1, 8]),
        ("gemv_int4", INT4, &[1, 8]),
        ("skinny_bf16", WeightFormat::Bf16, &[4, 8, 16]),
    ];
    for what in streams {
        stream(bench, limits, options, progress, rows, what);
    }
}

/// The `gemm` crate on the same f32 shape, with the right operand in the order it likes best and the
/// columns divided among the threads.
fn library(bench: &Bench, limits: &Limits<'_>, options: &Options, m: usize, k: usize, n: usize) -> Row {
    let (a, b) = (numbers(1, m * k), numbers(2, k * n));
    let (a, b) = (MatRef::new(&a, m, k), MatRef::new(&b, k, n));
    let mut c = vec![0.0; m * n];
    let (cx, flops) = (bench.cx(), 2.0 * (m * k * n) as f64);
    let width = n.div_ceil(cx.par.threads());
    let kernels = cx.kernels;
    let work = || {
        let c = MatMut::new(&mut c, m, n);
        giga_rate(flops, || {
            cx.par.grid(c, &[0, m], width, &mut [], |_, _, part, tile| {
                let cols = part * width..part * width + tile.cols();
                kernels.matmul_nn(a, b.cols_range(cols), tile, false);
            });
        })
    };
    let got = paired(options.samples, || limits.peak(Unit::F32), work);
    let (m, k, n) = (Some(m), Some(k), Some(n));
    Row { m, k, n, ..Row::new(bench, "gemm_crate_f32", "GFLOP/s", got) }
}

/// Products of few rows over a gibibyte of weights: bound by reading them, and with more rows by
/// arithmetic.
fn stream(
    bench: &Bench,
    limits: &Limits<'_>,
    options: &Options,
    progress: &dyn Fn(&str),
    rows: &mut Vec<Row>,
    (kernel, format, counts): (&'static str, WeightFormat, &[usize]),
) {
    if !options.wants(kernel) {
        return;
    }
    progress(&format!("{kernel}: packing"));
    let w = bench.panels(format, STREAM_BYTES / format.bytes(STREAM_K), STREAM_K);
    let bytes = w.bytes() as f64;
    for &m in counts {
        progress(&format!("{kernel} {m}"));
        let mut product = Product::new(bench, &w, ActQuant::Groups, m);
        let flops = product.flops();
        let got = if m == 1 {
            paired(options.samples, || limits.read(), || giga_rate(bytes, || product.run()))
        } else {
            let unit = if format.is_quantised() { Unit::Int8 } else { Unit::Bf16 };
            let limit = || limits.peak(unit).min(limits.read() * flops / bytes);
            paired(options.samples, limit, || giga_rate(flops, || product.run()))
        };
        rows.push(product.row(kernel, if m == 1 { "GB/s" } else { "GFLOP/s" }, got));
    }
}
