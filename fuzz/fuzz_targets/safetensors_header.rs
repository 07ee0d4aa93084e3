//! A checkpoint file: header, layout, reading.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pace_fuzz::run("safetensors_header", data));
