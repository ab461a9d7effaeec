//! A tokenizer of the fixtures.

use std::path::Path;
use std::sync::LazyLock;

use qwen3_embed_testing::fixtures;
use qwen3_embed_text::Tokenizer;

/// The tokenizer of a reranker. It appends the end-of-text token to every text.
pub(crate) fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
        let json = std::fs::read(fixtures::path("rerankers/tied/tokenizer.json")).unwrap();
        Tokenizer::from_json(&json, Path::new("tokenizer.json")).unwrap()
    });
    &TOKENIZER
}
