//! `cargo fuzz run fuzz-rerank`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qwen3_embed_fuzz::rerank::check(data));
