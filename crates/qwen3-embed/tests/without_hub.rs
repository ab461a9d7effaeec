//! What is left without the feature `hub`: folders and files.
#![cfg(not(feature = "hub"))]
#![allow(clippy::unwrap_used)]

use qwen3_embed::{Embedder, Error, Source};

#[test]
fn an_id_is_refused_with_the_reason() {
    let error = Embedder::builder("Qwen/Qwen3-Embedding-0.6B@main").build().unwrap_err();
    assert!(matches!(&error, Error::NoHub { id } if id == "Qwen/Qwen3-Embedding-0.6B@main"));
    assert!(error.to_string().contains("without the feature `hub`"), "{error}");
    let error = Embedder::builder("./Qwen3-Embedding-0.6B").build().unwrap_err();
    assert!(matches!(error, Error::NoSuchModel { .. }), "{error}");
}

#[test]
fn a_folder_is_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/base");
    let embedder = Embedder::builder(folder).build().unwrap();
    assert_eq!(embedder.embed_documents(&["a"]).unwrap().dimensions(), 64);
    assert_eq!(Source::from(folder).info().unwrap().dimensions(), [1, 64]);
}
