//! `cargo fuzz run fuzz-gguf`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qwen3_embed_fuzz::gguf::check(data));
