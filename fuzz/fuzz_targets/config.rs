//! `config.json`, and the same bytes as `generation_config.json`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pace_fuzz::run("config", data));
