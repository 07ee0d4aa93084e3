//! [`Module`]: a quantised matrix, whatever the tensors are that hold it.

use pace_kernels::{CodeRows, InputOrder, WeightFormat};

use crate::weights::codes;

/// A matrix `[outputs, inputs]` of integers: weight = (code - zero) * scale, with a scale and a zero for each group of
/// inputs of an output.
#[derive(Debug)]
pub(super) struct Module {
    /// Its name, without `.weight`.
    pub(super) prefix: String,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// 4 or 8.
    pub(super) bits: u32,
    /// Inputs that share a scale; divides `inputs`.
    pub(super) group: usize,
    /// Whether the zero is the middle code, always.
    pub(super) symmetric: bool,
    /// Where the inputs of a group are, if they are not neighbours (act-order).
    pub(super) scattered: Option<Scattered>,
    pub(super) stored: Stored,
}

/// Groups of inputs that lie anywhere in a row.
#[derive(Debug)]
pub(super) struct Scattered {
    /// The group of each input.
    pub(super) groups: Vec<u32>,
    /// The inputs sorted by group; none if some groups have more of them than others.
    pub(super) sorted: Option<InputOrder>,
}

impl Scattered {
    /// `groups` are the groups of inputs, of which each should have `size`.
    pub(super) fn new(groups: Vec<u32>, size: usize) -> Self {
        let mut inputs: Vec<u32> = (0..).take(groups.len()).collect();
        inputs.sort_by_key(|&input| groups[input as usize]);
        let even = inputs.iter().enumerate().all(|(at, &input)| groups[input as usize] as usize == at / size);
        Self { groups, sorted: InputOrder::new(inputs).filter(|_| even) }
    }
}

/// In what order a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// Input after input, each with all outputs.
    Columns(ByColumns),
    /// Output after output.
    Rows(ByRows),
}

/// Matrices stored input after input: `qweight`, `qzeros`, `scales`, and `g_idx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByColumns {
    /// A word holds neighbouring inputs; what is added to a stored zero.
    Gptq { zero_offset: u8 },
    /// A word holds eight neighbouring outputs, in an order of its own.
    Awq,
}

/// Matrices stored output after output: `weight` or `weight_packed`, and `weight_scale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByRows {
    /// A byte an input, signed.
    Bytes,
    /// A word holds neighbouring inputs, the middle code being 0.
    Words,
}

/// What belongs to the codes of some rows.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// `[rows, groups]`.
    pub(super) scales: Vec<f32>,
    /// The codes that stand for 0, `[rows, groups]`.
    pub(super) zeros: Vec<u8>,
}

impl Module {
    /// The name of the tensor that it stands for.
    pub(super) fn weight(&self) -> String {
        format!("{}.weight", self.prefix)
    }

    /// The name of the tensor of its scales.
    pub(super) fn scales(&self) -> String {
        let part = if matches!(self.stored, Stored::Columns(_)) { "scales" } else { "weight_scale" };
        format!("{}.{part}", self.prefix)
    }

    /// The names of the tensors that may be parts of it.
    pub(super) fn parts(&self) -> impl Iterator<Item = String> {
        let parts: &[&str] = match self.stored {
            Stored::Columns(_) => &["qweight", "qzeros", "scales", "g_idx"],
            Stored::Rows(ByRows::Bytes) => &["weight", "weight_scale", "weight_zero_point"],
            Stored::Rows(ByRows::Words) => {
                &["weight_packed", "weight_scale", "weight_shape", "weight_zero_point"]
            }
        };
        parts.iter().map(|part| format!("{}.{part}", self.prefix))
    }

    /// How it is stored, for people.
    pub(super) fn label(&self) -> String {
        let method = match self.stored {
            Stored::Columns(ByColumns::Gptq { .. }) => "GPTQ",
            Stored::Columns(ByColumns::Awq) => "AWQ",
            Stored::Rows(_) => "compressed-tensors",
        };
        format!("{method} int{}", self.bits)
    }

    /// Groups in a row.
    pub(super) const fn groups(&self) -> usize {
        self.inputs / self.group
    }

    /// The code in the middle, which is 0 in a symmetric matrix.
    pub(super) const fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }

    /// The order of the inputs in which groups are neighbours, if that is not the model's.
    pub(super) fn input_order(&self) -> Option<&InputOrder> {
        self.scattered.as_ref()?.sorted.as_ref()
    }

    /// The format that holds the integers and scales as they are, inputs in the order of
    /// [`input_order`](Self::input_order); none if the groups are not made of groups that a format has.
    pub(super) fn format(&self) -> Option<WeightFormat> {
        if self.scattered.is_some() && self.input_order().is_none() {
            return None;
        }
        // A group that is a whole row may end in the middle of a format's group; one that divides the row pads nothing.
        let whole = self.group == self.inputs;
        let largest = |groups: &[usize]| {
            let divides = groups.iter().copied().find(|&group| self.group.is_multiple_of(group));
            divides.or_else(|| groups.last().copied().filter(|_| whole))
        };
        let four = if self.bits == 4 { largest(&[128, 64, 32]) } else { None };
        match (four, self.symmetric) {
            (Some(group), true) => Some(WeightFormat::Int4(group)),
            (Some(group), false) => Some(WeightFormat::Int4Min(group)),
            (None, true) if whole => Some(WeightFormat::Int8),
            (None, true) => largest(&[256, 128, 64, 32, 16]).map(WeightFormat::Int8Group),
            (None, false) => largest(&[256, 128, 64, 32, 16]).map(WeightFormat::Int8Min),
        }
    }

    /// Turns rows whose codes are in place into rows of `format`, the module's own.
    pub(super) fn store(&self, format: WeightFormat, unpacked: &Unpacked, rows: &mut CodeRows<'_>) {
        if let Some(order) = self.input_order() {
            let mut stored = vec![0; self.inputs];
            for row in rows.codes.chunks_exact_mut(self.inputs) {
                stored.copy_from_slice(row);
                order.sort(&stored, row);
            }
        }
        if !format.has_min() {
            let shift = format.zero() - self.middle();
            rows.codes.iter_mut().for_each(|code| *code += shift);
        }
        let per_row = codes::groups(format, self.inputs);
        let width = format.group().unwrap_or(self.inputs);
        for (at, scale) in rows.scales.iter_mut().enumerate() {
            let from = at / per_row * self.groups() + at % per_row * width / self.group;
            *scale = unpacked.scales[from];
            if let Some(min) = rows.mins.get_mut(at) {
                *min = -f32::from(unpacked.zeros[from]) * *scale;
            }
        }
    }

    /// Writes the weights of rows, `[rows, inputs]`.
    pub(super) fn dequantise(&self, codes: &[u8], unpacked: &Unpacked, out: &mut [f32]) {
        let groups = self.groups();
        let rows = unpacked.scales.chunks_exact(groups).zip(unpacked.zeros.chunks_exact(groups));
        let codes = codes.chunks_exact(self.inputs).zip(out.chunks_exact_mut(self.inputs));
        for ((scales, zeros), (codes, out)) in rows.zip(codes) {
            if let Some(scattered) = &self.scattered {
                for ((out, &code), &group) in out.iter_mut().zip(codes).zip(&scattered.groups) {
                    let (scale, zero) = (scales[group as usize], zeros[group as usize]);
                    *out = (f32::from(code) - f32::from(zero)) * scale;
                }
            } else {
                let cut = codes.chunks_exact(self.group).zip(out.chunks_exact_mut(self.group));
                for ((codes, out), (&scale, &zero)) in cut.zip(scales.iter().zip(zeros)) {
                    for (out, &code) in out.iter_mut().zip(codes) {
                        *out = (f32::from(code) - f32::from(zero)) * scale;
                    }
                }
            }
        }
    }
}
