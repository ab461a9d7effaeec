//! `cargo fuzz run fuzz-config`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qwen3_embed_fuzz::config::check(data));
