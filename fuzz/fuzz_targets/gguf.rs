//! A GGUF file: header, hyperparameters, tokenizer, template, reading.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pace_fuzz::run("gguf", data));
