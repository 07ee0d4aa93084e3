#![doc = include_str!("../README.md")]
//!
//! # Tour
//! - [`Isa`] and [`Kernels`]: what the CPU can run, found at run time; every kernel is a method of
//!   the handle that proves it.
//! - [`MatRef`], [`MatMut`], [`ActRef`], [`ActMut`]: borrowed matrices. [`ActBuf`], [`Buffer`], [`Arena`],
//!   [`Scratch`]: memory.
//! - [`Pool`] and [`Par`]: threads.
//! - [`PackedWeights`]: a weight matrix, packed once. [`WeightSlice`]: a part of one.
//! - [`Jit`]: products and attention by code that is generated for their shape.
//! - [`KvLayout`], [`KvRun`]: keys and values in blocks of [`KV_BLOCK`] tokens.
//! - [`Kernels::attention`], [`AttentionPlan`], [`KvSource`]: flash attention over them.

mod activation;
mod arch;
mod arena;
mod attention;
mod buffer;
mod convert;
mod dtype;
mod embed;
mod gemm;
mod generic;
mod isa;
mod jit;
mod library;
mod norm;
mod par;
mod probe;
mod quantize;
mod rope;
mod scratch;
mod select;
mod softmax;
mod table;
mod view;
mod weights;

#[cfg(test)]
mod tests;

pub use half::{bf16, f16};

pub use crate::activation::{Activation, UnknownActivation};
pub use crate::arena::Arena;
pub use crate::attention::{
    AttentionParams, AttentionPlan, AttentionSegment, KV_BLOCK, KvLayout, KvMut, KvRef, KvRun, KvSource,
};
pub use crate::buffer::huge_pages::share as huge_share;
pub use crate::buffer::mapped::MappedFile;
pub use crate::buffer::shared::SharedMemory;
pub use crate::buffer::{Buffer, HugePages, OutOfMemory, Placement};
pub use crate::dtype::{DType, Element, KvDType, UnknownDType};
pub use crate::gemm::{ActQuant, Epilogue, GemmCx};
pub use crate::isa::{Isa, IsaError};
pub use crate::jit::{Jit, JitCapacity, JitEntry, JitError, UnknownKey};
pub use crate::norm::RowNorm;
pub use crate::par::{Par, Pool, PoolError, PoolOptions, default_float_mode};
pub use crate::probe::Unit;
pub use crate::scratch::{Scratch, ScratchBuf};
pub use crate::table::Kernels;
pub use crate::view::{ActBuf, ActMut, ActRef, MatMut, MatRef};
pub use crate::weights::{
    CodeRows, InputOrder, PackError, PackSpec, PackedWeights, Rounding, UnknownWeightFormat, WeightFormat,
    WeightLayout, WeightSlice,
};
