//! `cargo fuzz run fuzz-index`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qwen3_embed_fuzz::index::check(data));
