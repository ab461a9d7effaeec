//! Without the feature `hub`, models are read from folders and files only.
#![cfg(not(feature = "hub"))]
#![allow(clippy::unwrap_used)]

use qwen3_embed::{Embedder, Error, Source};

#[test]
fn rejects_id_and_says_why() {
    let error = Embedder::builder("Qwen/Qwen3-Embedding-0.6B@main").build().unwrap_err();
    assert!(matches!(&error, Error::NoHub { id } if id == "Qwen/Qwen3-Embedding-0.6B@main"));
    assert!(error.to_string().contains("without the feature `hub`"), "{error}");
    let error = Embedder::builder("./Qwen3-Embedding-0.6B").build().unwrap_err();
    assert!(matches!(error, Error::NoSuchModel { .. }), "{error}");
}

#[test]
fn reads_folder() {
    let folder = qwen3_embed_testing::fixtures::model("base");
    let embedder = Embedder::builder(folder.as_path()).build().unwrap();
    assert_eq!(embedder.embed_documents(&["a"]).unwrap().dimensions(), 64);
    assert_eq!(Source::from(folder).info().unwrap().dimensions(), [1, 64]);
}
