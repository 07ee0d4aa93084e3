//! Sweeps the chunks of IMBPS: where splitting the intermediate dimension pays, and where not.

use std::io::Write;
use std::time::Instant;

use clap::Parser;
use pace_benches::Bench;
use pace_benches::mlp::Layer;
use pace_benches::paired::{median, paired};
use pace_ops::{Backend, BuildCx, Mlp};

/// A gated feed-forward layer by IMBPS beside TPP, for chunks x rows x intermediate dimension.
///
/// Both alternate in one run; a figure is the median of TPP's time by IMBPS's, so above 1 the chunks pay.
#[derive(Debug, Parser)]
#[command(name = "imbps", version)]
struct Args {
    /// Alternations for each figure.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    samples: u32,
    /// Inputs and outputs of the layer.
    #[arg(long, default_value_t = 2048)]
    hidden: usize,
    /// Rows: tokens of a prompt.
    #[arg(long, value_delimiter = ',', default_values_t = [128, 512, 2048])]
    rows: Vec<usize>,
    /// Intermediate dimensions.
    #[arg(long, value_delimiter = ',', default_values_t = [5632, 8192, 14336])]
    ffn: Vec<usize>,
}

/// 0 stands for what the rows and the caches suggest.
const CHUNKS: [usize; 6] = [1, 2, 4, 8, 16, 0];

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let bench = Bench::new();
    let mut out = std::io::stdout().lock();
    writeln!(out, "| rows | intermediate | TPP ms | 1 chunk | 2 | 4 | 8 | 16 | auto |")?;
    writeln!(out, "|---:|---:|---:|---:|---:|---:|---:|---:|---:|")?;
    for &ffn in &args.ffn {
        for &rows in &args.rows {
            let mut build = BuildCx::new(bench.cx().kernels);
            let mut layer = Layer::new(&bench, &build, args.hidden, ffn, rows);
            let tpp = layer.build(&build, Backend::Tpp);
            let (mut ratios, mut milliseconds) = (Vec::new(), Vec::new());
            for chunks in CHUNKS {
                build.imbps_chunks = (chunks > 0).then_some(chunks);
                let imbps = layer.build(&build, Backend::Imbps);
                let layer = std::cell::RefCell::new(&mut layer);
                let rate = |mlp: &Mlp| {
                    let start = Instant::now();
                    layer.borrow_mut().run(&bench, mlp, rows);
                    1.0 / start.elapsed().as_secs_f64()
                };
                let both = paired(args.samples as usize, || rate(&tpp), || rate(&imbps));
                milliseconds.push(1e3 / both.limit);
                ratios.push(format!("{:.3}", both.fraction));
            }
            writeln!(out, "| {rows} | {ffn} | {:.2} | {} |", median(&mut milliseconds), ratios.join(" | "))?;
            out.flush()?;
        }
    }
    Ok(())
}
