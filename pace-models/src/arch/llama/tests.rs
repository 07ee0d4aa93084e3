//! Configurations that are right and wrong, as HF and as GGUF write them.

mod gguf;
mod hf;
