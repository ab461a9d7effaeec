//! `cargo fuzz run fuzz-ragged`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qwen3_embed_fuzz::ragged::check(data));
