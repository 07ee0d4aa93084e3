//! What attention reads: keys and values in blocks of 64 tokens.

mod kv;

pub use self::kv::{KV_BLOCK, KvLayout, KvMut, KvRef, KvRun};
