//! The squares of a product's inputs, by every backend, against those computed by hand.

// Helpers unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use common::{act, everywhere, formats, numbers, product, read, stored, tolerance, wide};
use pace_kernels::Activation;
use pace_ops::{
    InputMeans, InputSquares, LayerKind, Linear, Mlp, MlpWeights, OpCx, OpShape, Operator, OutProjection,
    Product,
};

/// The mean square of each of `k` columns.
fn by_hand(rows: &[f64], k: usize) -> Vec<f64> {
    let n = rows.len() as f64 / k as f64;
    (0..k).map(|col| rows.iter().skip(col).step_by(k).map(|x| x * x).sum::<f64>() / n).collect()
}

/// `tolerance` is relative to the largest.
fn assert_close(name: &str, got: &InputMeans, want: &[f64], tolerance: f64) {
    assert_eq!(got.mean_squares.len(), want.len(), "{name}");
    let off = tolerance * want.iter().fold(0.0, |a: f64, &b| a.max(b));
    for (i, (&got, want)) in got.mean_squares.iter().zip(want).enumerate() {
        assert!((f64::from(got) - want).abs() <= off, "{name} {i}: {got}, not {want}");
    }
}

#[test]
fn projections_show_what_they_read() {
    let (n, k) = (70, 45);
    for (op, product) in [(Operator::Linear, Product::Linear), (Operator::OutProjection, Product::Out)] {
        everywhere(op, |cell| {
            let inputs = InputSquares::new();
            let cx = OpCx { inputs: Some(&inputs), ..cell.cx };
            let format = formats(cell.dtype)[0];
            let weights = cell.pack(OpShape::matrix(op, cell.dtype, n, k), format, &numbers(1, n * k), n, k);
            let mut seen = Vec::new();
            // One row and several, in two calls of the same layer.
            for (seed, rows) in [(2, 1), (3, 7)] {
                let x = act(&cx, cell.act_dtype(), &numbers(seed, rows * k), rows, k);
                let mut out = act(&cx, cell.act_dtype(), &numbers(4, rows * n), rows, n);
                seen.extend(wide(&read(&cx, x.rows(rows))));
                cx.enter(LayerKind::Decoder, Some(3));
                if op == Operator::Linear {
                    let linear = Linear::new(cell.build, weights.clone(), None, cell.backend).unwrap();
                    linear.forward(&cx, x.rows(rows), out.rows_mut(rows));
                } else {
                    let out_proj =
                        OutProjection::new(cell.build, weights.clone(), None, cell.backend).unwrap();
                    out_proj.forward(&cx, x.rows(rows), out.rows_mut(rows));
                }
            }
            let means = inputs.means();
            assert_eq!(means.len(), 1, "{}", cell.name());
            assert_eq!((means[0].layer, means[0].product, means[0].rows), (Some(3), product, 8));
            assert_close(&cell.name(), &means[0], &by_hand(&seen, k), 1e-6);
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_feed_forward_layer_shows_its_inner_rows_too_chunk_by_chunk_or_at_once() {
    let (rows, hidden, ffn) = (9, 40, 300);
    let (x, up) = (numbers(1, rows * hidden), numbers(2, ffn * hidden));
    everywhere(Operator::Mlp, |cell| {
        let inputs = InputSquares::new();
        let cx = OpCx { inputs: Some(&inputs), ..cell.cx };
        let mut build = cell.build.clone();
        build.imbps_chunks = Some(3);
        let format = formats(cell.dtype)[0];
        let shape = OpShape::mlp(cell.dtype, hidden, ffn, false);
        let weights = MlpWeights {
            up: cell.pack(shape, format, &up, ffn, hidden),
            down: cell.pack(
                OpShape::matrix(Operator::Linear, cell.dtype, hidden, ffn),
                format,
                &numbers(3, hidden * ffn),
                hidden,
                ffn,
            ),
            up_bias: None,
            down_bias: None,
        };
        let seen = act(&cx, cell.act_dtype(), &x, rows, hidden);
        let seen_wide = wide(&read(&cx, seen.rows(rows)));
        let mut inner = product(&seen_wide, &stored(&weights.up), &vec![0.0; ffn], ffn, hidden);
        inner.iter_mut().for_each(|x| *x = x.max(0.0));
        let mut residual = act(&cx, cell.act_dtype(), &numbers(4, rows * hidden), rows, hidden);
        let mlp = Mlp::new(&build, weights, Activation::Relu, cell.backend).unwrap();
        cx.enter(LayerKind::Decoder, Some(0));
        mlp.forward(&cx, seen.rows(rows), residual.rows_mut(rows));
        let means = inputs.means();
        let kinds: Vec<_> = means.iter().map(|m| (m.layer, m.product, m.rows)).collect();
        assert_eq!(kinds, [(Some(0), Product::Up, 9), (Some(0), Product::Down, 9)], "{}", cell.name());
        assert_close(&cell.name(), &means[0], &by_hand(&seen_wide, hidden), 1e-6);
        // A square is off by twice as much as its number.
        assert_close(&cell.name(), &means[1], &by_hand(&inner, ffn), 2.0 * tolerance(cell.dtype));
        Ok(())
    })
    .unwrap();
}
