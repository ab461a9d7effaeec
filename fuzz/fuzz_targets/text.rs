//! `cargo fuzz run fuzz-text`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qwen3_embed_fuzz::text::check(data));
