//! `cargo fuzz run fuzz-sharing`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qwen3_embed_fuzz::sharing::check(data));
