//! `cargo fuzz run fuzz-safetensors`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qwen3_embed_fuzz::safetensors::check(data));
