//! Models whose files are in memory, and the bundled model.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::{fs, iter};

use qwen3_embed::{Embedder, Error, ModelError, Precision, Reranker, Source};
use qwen3_embed_testing::fixtures;

/// The files in a folder, in memory until the program ends.
fn files_of(dir: &Path) -> Vec<(&'static str, &'static [u8])> {
    let mut files = Vec::new();
    let mut folders = vec![(dir.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
            if path.is_dir() {
                folders.push((path, format!("{name}/")));
            } else {
                files.push((&*name.leak(), &*fs::read(path).unwrap().leak()));
            }
        }
    }
    files
}

/// A fixture whose files are in memory, except for the file `left_out`.
fn in_memory(fixture: &str, left_out: &str) -> Source {
    let mut files = files_of(&fixtures::path(fixture));
    files.retain(|(name, _)| *name != left_out);
    Source::from_files("my-model", files.leak())
}

#[test]
fn embeddings_are_those_of_the_same_files_in_a_folder() {
    let texts = ["What is the capital of China?", "今天天气真好,适合出去散步", ""];
    for name in ["models/wide", "models/sharded", "sentence-transformers/mean-dense"] {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let [memory, disk] =
                [in_memory(name, ""), fixtures::path(name).into()].map(|source: Source| {
                    let embedder = Embedder::builder(source).precision(precision).build().unwrap();
                    [embedder.embed_documents(&texts), embedder.embed_queries(&texts)]
                        .map(|embeddings| embeddings.unwrap().into_vec())
                });
            assert_eq!(memory, disk, "{name}, {precision}");
        }
    }
}

#[test]
fn scores_are_those_of_the_same_files_in_a_folder() {
    for name in ["rerankers/untied", "rerankers/classifier", "sentence-transformers/logit-score"] {
        let [memory, disk] =
            [in_memory(name, ""), fixtures::path(name).into()].map(|source: Source| {
                Reranker::builder(source).build().unwrap().score("capital", "Beijing").unwrap()
            });
        assert_eq!(memory, disk, "{name}");
    }
}

#[test]
fn adds_an_adapter_to_a_base_in_memory() {
    let adapter = fixtures::path("adapters/lora");
    let [memory, disk] =
        [in_memory("models/base", ""), fixtures::model("base").into()].map(|base: Source| {
            let embedder = Embedder::builder(base).adapter(adapter.as_path()).build().unwrap();
            embedder.embed_document("capital").unwrap()
        });
    assert_eq!(memory, disk);
}

#[test]
fn describes_a_source_in_memory() {
    let name = "sentence-transformers/mean-dense";
    let source = in_memory(name, "");
    assert_eq!(source.to_string(), "my-model");
    assert!(!format!("{source:?}").contains("files"), "{source:?}");
    assert_eq!(source.info().unwrap(), Source::from(fixtures::path(name)).info().unwrap());
    assert_eq!(source.clone(), source);
    assert_eq!(Source::from("a/b@main").to_string(), "a/b@main");
    assert_eq!(Source::from(Path::new("a/b")).to_string(), "a/b");
    assert_ne!(Source::from(Path::new("a/b")), Source::from("a/b"));
}

#[cfg(feature = "hub")]
#[test]
fn downloads_nothing_for_a_source_in_memory() {
    let source = in_memory("models/base", "");
    let cache = tempfile::tempdir().unwrap();
    let hub = qwen3_embed::Hub::new(cache.path());
    assert_eq!(source.download(&hub).unwrap(), source);
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn errors_name_the_missing_file() {
    for file in ["config.json", "tokenizer.json"] {
        let error = Embedder::builder(in_memory("models/base", file)).build().unwrap_err();
        let expected = Path::new("my-model").join(file);
        assert!(
            matches!(&error, Error::Model(ModelError::Io { path, .. }) if *path == expected),
            "{error}"
        );
    }
    // An embedding model has no head for rerank scores. The tokenizer needs the tokens `yes` and `no`.
    let mut files = files_of(&fixtures::model("base"));
    files.retain(|(name, _)| *name != "tokenizer.json");
    let tokenizer = fs::read(fixtures::reranker("tied").join("tokenizer.json")).unwrap();
    files.extend(iter::once(("tokenizer.json", &*tokenizer.leak())));
    let source = Source::from_files("my-model", files.leak());
    let error = Reranker::builder(source).build().unwrap_err();
    assert!(
        matches!(&error, Error::Model(ModelError::NoRerankHead { path, .. }) if path == Path::new("my-model")),
        "{error}"
    );
}

#[test]
fn bundled_model_embeds_four_languages() {
    let source = Source::demo();
    assert_eq!(source.to_string(), "qwen3-embed-demo");
    let embedder = Embedder::builder(source.clone()).build().unwrap();
    let texts = ["It rains.", "下雨了。", "雨が降っています。", "비가 옵니다."];
    let embeddings = embedder.embed_documents(&texts).unwrap();
    assert_eq!((embeddings.len(), embeddings.dimensions()), (4, 256));
    assert_eq!(source.info().unwrap().dimensions(), [1, 256]);
    Reranker::builder(source).build().unwrap_err();
}
