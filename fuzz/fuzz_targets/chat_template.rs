//! A chat template, compiled and rendered.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pace_fuzz::run("chat_template", data));
