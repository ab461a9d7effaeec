//! `cargo fuzz run fuzz-server`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qwen3_embed_fuzz::server::check(data));
