//! `qwen3-embed-demo`: a small embedding model with the architecture of Qwen3, as bytes in the program.
//!
//! The model is for demonstrations, and for tests that must not use the network. It does not replace Qwen3-Embedding: it
//! has 6 million parameters, a hundredth of the smallest published model.
//!
//! - Languages: Chinese, English, Japanese and Korean.
//! - Size: 12 MB of weights in bf16, which become a part of every program that uses this crate.
//! - Shape: 3 layers, hidden size 256, 4 query heads and 2 key/value heads of width 64, feed-forward size 512, a
//!   vocabulary of 16,384 tokens, and token embeddings without a separate head.
//!
//! The folder `model` of this crate is the sentence-transformers repository of the model. The crate `qwen3-embed` loads
//! the model from [`FILES`]: with its feature `demo-model`, `Source::demo()` is this model.
#![forbid(unsafe_code)]

/// The name of the model.
pub const NAME: &str = "qwen3-embed-demo";

/// The files of the model that are needed to use it: for each file, its path in the repository and its contents.
///
/// # Examples
///
/// ```
/// let names = qwen3_embed_demo::FILES.iter().map(|(name, _)| *name);
/// assert!(names.into_iter().any(|name| name == "config.json"));
/// ```
pub static FILES: &[(&str, &[u8])] = &[
    ("1_Pooling/config.json", include_bytes!("../model/1_Pooling/config.json")),
    ("config.json", include_bytes!("../model/config.json")),
    (
        "config_sentence_transformers.json",
        include_bytes!("../model/config_sentence_transformers.json"),
    ),
    ("model.safetensors", include_bytes!("../model/model.safetensors")),
    ("modules.json", include_bytes!("../model/modules.json")),
    ("tokenizer.json", include_bytes!("../model/tokenizer.json")),
];
