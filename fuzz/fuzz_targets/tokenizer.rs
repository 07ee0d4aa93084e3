//! `tokenizer.json`, then encoding and decoding with what it makes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pace_fuzz::run("tokenizer", data));
