//! [`InputSquares`]: how large the inputs of a model's matrix products are, for weighing what quantising loses.
//!
//! Operators show their inputs by [`OpCx::observe`], the models say by [`OpCx::enter`] which layer they belong to. Where
//! nobody wants to see them, both cost one comparison.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use pace_kernels::ActRef;

use crate::cx::load_row;
use crate::{OpCx, Operator};

/// Sums over all rows that were shown, for each layer and product. Used by one thread, the engine's.
///
/// Memory is 8 bytes for each input of each product; it is taken when a product is computed for the first time.
#[derive(Debug, Default)]
pub struct InputSquares {
    layer: Cell<Option<usize>>,
    sums: RefCell<BTreeMap<(Option<usize>, Product), Sums>>,
}

/// A matrix product of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Product {
    /// Query, key and value, which have one input.
    Qkv,
    /// The attention's output projection.
    Out,
    /// Gate and up, which have one input.
    Up,
    /// The down projection.
    Down,
    /// Logits.
    LmHead,
    /// A [`Linear`](crate::Linear) of its own.
    Linear,
}

/// The inputs of one product.
#[derive(Clone, Debug, PartialEq)]
pub struct InputMeans {
    /// The decoder layer, from 0; none outside of them.
    pub layer: Option<usize>,
    /// The product.
    pub product: Product,
    /// Rows that were shown: tokens.
    pub rows: u64,
    /// The mean of each input's square over these rows, `[k]`.
    pub mean_squares: Vec<f32>,
}

#[derive(Debug)]
struct Sums {
    rows: u64,
    squares: Vec<f64>,
}

impl InputSquares {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says which layer the products that follow belong to; `index` counts decoder layers from 0.
    pub fn enter(&self, index: Option<usize>) {
        self.layer.set(index);
    }

    /// What was seen so far, in the order of layers; those outside of layers come first.
    pub fn means(&self) -> Vec<InputMeans> {
        let sums = self.sums.borrow();
        let means = |(&(layer, product), sums): (&(_, _), &Sums)| {
            let mean = |&square: &f64| (square / sums.rows as f64) as f32;
            let mean_squares = sums.squares.iter().map(mean).collect();
            InputMeans { layer, product, rows: sums.rows, mean_squares }
        };
        sums.iter().map(means).collect()
    }

    fn add(&self, cx: &OpCx<'_>, product: Product, k: usize, first: usize, input: ActRef<'_>) {
        let mut sums = self.sums.borrow_mut();
        let new = || Sums { rows: 0, squares: vec![0.0; k] };
        let own = sums.entry((self.layer.get(), product)).or_insert_with(new);
        assert_eq!(own.squares.len(), k, "a layer has one {product:?} product");
        // A chunked product shows each row several times, and its first input once.
        own.rows += if first == 0 { input.rows() as u64 } else { 0 };
        let mut row = cx.scratch.take(input.cols());
        for i in 0..input.rows() {
            load_row(cx.kernels, input, i, &mut row);
            for (sum, &x) in own.squares[first..].iter_mut().zip(&*row) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
    }
}

impl OpCx<'_> {
    /// Shows the inputs `first..` of a product that has `k`, `[rows, some of k]`, if somebody wants to see them.
    pub(crate) fn observe(&self, product: Product, k: usize, first: usize, input: ActRef<'_>) {
        if let Some(inputs) = self.inputs {
            inputs.add(self, product, k, first, input);
        }
    }
}

impl Product {
    /// The product of a projection.
    pub(crate) const fn of(op: Operator) -> Self {
        match op {
            Operator::QkvProjection => Self::Qkv,
            Operator::OutProjection => Self::Out,
            Operator::LmHead => Self::LmHead,
            _ => Self::Linear,
        }
    }

    /// The name used in files: lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qkv => "qkv",
            Self::Out => "out",
            Self::Up => "up",
            Self::Down => "down",
            Self::LmHead => "lm_head",
            Self::Linear => "linear",
        }
    }
}
