//! Where weights come from: [`WeightSource`] and its implementations.
//!
//! A source hands out rows of a named tensor as f32, which packing rounds to the format that is kept, or where they are
//! stored as integers with scales as these. No source ever holds a whole tensor in f32.

pub mod codes;
pub mod gguf;
pub mod packed;
pub mod quantised;
pub mod random;
pub mod safetensors;

use std::path::Path;

use pace_kernels::{CodeRows, InputOrder, WeightFormat};

use crate::ModelError;

/// How a source names its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `model.layers.0.self_attn.q_proj.weight`: HF checkpoints and random models.
    Hf,
    /// `blk.0.attn_q.weight`: GGUF files.
    Gguf,
}

/// What a source knows of one tensor before reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name in its file.
    pub name: String,
    /// Row-major shape: `[out, in]` for a projection, `[n]` for a vector.
    pub shape: Vec<usize>,
    /// How the numbers are stored, in the file's own spelling: `BF16`, `Q4_1`.
    pub format: String,
}

/// A checkpoint that can be read tensor by tensor, from several threads.
pub trait WeightSource: Send + Sync {
    /// How tensors are named.
    fn naming(&self) -> Naming;

    /// Every tensor, in the order of the file.
    fn tensors(&self) -> &[TensorInfo];

    /// The tensor called `name`, if there is one.
    fn info(&self, name: &str) -> Option<&TensorInfo>;

    /// The file that holds `name`, or that should: for messages.
    fn path(&self, name: &str) -> &Path;

    /// Reads `out.len()` numbers of `name` from element `start` on (row-major), as f32. `start` and `out.len()`
    /// are multiples of the tensor's last dimension.
    ///
    /// # Errors
    /// The tensor is unknown, the range leaves it, the file cannot be read or has changed, or a number is NaN
    /// or infinite.
    fn read_f32(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), ModelError>;

    /// As [`read_f32`](Self::read_f32), but lets NaN and infinities pass.
    ///
    /// # Errors
    /// All others of [`read_f32`](Self::read_f32).
    fn read_any_f32(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), ModelError> {
        self.read_f32(name, start, out)
    }

    /// The format that holds the integers and scales of `name` as they are stored; none for a tensor of floating-point
    /// numbers, or of integers that no format holds.
    fn codes(&self, name: &str) -> Option<WeightFormat> {
        let _ = name;
        None
    }

    /// The order in which [`read_codes`](Self::read_codes) gives the inputs of `name`; none: the model's. In it, the inputs
    /// that share a scale are neighbours.
    fn input_order(&self, name: &str) -> Option<&InputOrder> {
        let _ = name;
        None
    }

    /// Reads rows of a matrix as integers, from row `first_row` on and as many as `rows` has room for, in `format`: the
    /// one of [`codes`](Self::codes), or one that [`codes::join`] makes of it and another.
    ///
    /// # Errors
    /// The tensor is unknown or has no integers, `format` does not hold them, the rows leave the tensor, the file cannot
    /// be read or has changed, or a scale or a minimum is NaN, infinite or, where it cannot be right, 0.
    fn read_codes(
        &self,
        name: &str,
        first_row: usize,
        format: WeightFormat,
        rows: &mut CodeRows<'_>,
    ) -> Result<(), ModelError> {
        let _ = (first_row, format, rows);
        Err(ModelError::tensor(self.path(name), name, "is not stored as integers with scales"))
    }

    /// As [`read_codes`](Self::read_codes), whatever the scales are.
    ///
    /// # Errors
    /// All others of [`read_codes`](Self::read_codes).
    fn read_any_codes(
        &self,
        name: &str,
        first_row: usize,
        format: WeightFormat,
        rows: &mut CodeRows<'_>,
    ) -> Result<(), ModelError> {
        self.read_codes(name, first_row, format, rows)
    }

    /// The packed model that this is, whose matrices are had in their packed form alone.
    fn packed(&self) -> Option<&packed::PackedSource> {
        None
    }

    /// Reads the files through mappings from now on, or no longer. A mapping shares the system's copy of a file, and each
    /// page of it is a fault; a file that somebody shortens while it is mapped ends the process.
    ///
    /// # Errors
    /// A file cannot be mapped.
    fn set_mapped(&self, mapped: bool) -> Result<(), ModelError> {
        let _ = mapped;
        Ok(())
    }

    /// Checks that the files still are what they were when they were opened.
    ///
    /// # Errors
    /// One was written to since.
    fn check_unchanged(&self) -> Result<(), ModelError> {
        Ok(())
    }
}

/// The first NaN or infinity. The common answer, none, comes from a loop without branches.
fn first_not_finite(numbers: &[f32]) -> Option<usize> {
    const EXPONENT: u32 = 0x7f80_0000;
    let largest = numbers.iter().fold(0, |largest, x| (x.to_bits() & EXPONENT).max(largest));
    if largest < EXPONENT { None } else { numbers.iter().position(|x| !x.is_finite()) }
}
