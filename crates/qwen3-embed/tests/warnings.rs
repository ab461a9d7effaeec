//! Warnings about models that can be loaded but are probably not the intended ones.
#![allow(clippy::unwrap_used)]

mod log;

use std::fs;
use std::path::Path;

use log::warnings;
use qwen3_embed::{Embedder, Reranker};
use qwen3_embed_testing::fixtures::{self, Dtype, Tensor, path as fixture};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A copy of a fixture, to which files of other fixtures are added.
fn copy(name: &str, others: &[&str]) -> TempDir {
    let to = fixtures::copy(name);
    for file in others.iter().map(fixture) {
        fixtures::copy_file(&file, &to.path().join(file.file_name().unwrap()));
    }
    to
}

/// The warnings that are logged when an embedder is built.
fn of_embedder(source: impl AsRef<Path>) -> String {
    warnings(|| drop(Embedder::builder(source.as_ref()).build().unwrap()))
}

#[test]
fn warns_about_model_that_looks_like_a_reranker() {
    let causal_lm = "it is a causal language model without a modules.json";
    let named = "its name contains `rerank`";
    let gguf = tempfile::tempdir().unwrap();
    let gguf = gguf.path().join("Qwen3-Reranker.gguf");
    fs::create_dir_all(gguf.parent().unwrap()).unwrap();
    fixtures::copy_file(&fixture("models/gguf-q8-0/model.gguf"), &gguf);
    for (source, expected) in [
        (fixture("rerankers/tied"), named),
        (fixture("models/causal-lm-tied"), causal_lm),
        (fixture("models/causal-lm-untied"), causal_lm),
        (gguf, named),
    ] {
        let log = of_embedder(&source);
        assert_eq!(log.matches("WARN").count(), 1, "{log}");
        assert!(log.contains(expected) && log.contains("`serve --reranker-path`"), "{log}");
    }
    let modules = ["sentence-transformers/mean-dense/modules.json"];
    let with_modules = copy("models/causal-lm-tied", &modules);
    let list = json!([
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "pooling", "type": "sentence_transformers.models.Pooling"},
    ]);
    fs::write(with_modules.path().join("modules.json"), list.to_string()).unwrap();
    fs::create_dir(with_modules.path().join("pooling")).unwrap();
    fs::write(with_modules.path().join("pooling/config.json"), "{}").unwrap();
    for source in [
        with_modules.path().to_path_buf(),
        fixture("models/base"),
        fixture("models/gguf-float/model.gguf"),
        fixture("sentence-transformers/last-token"),
        fixture("sentence-transformers/projected"),
    ] {
        assert_eq!(of_embedder(&source), "", "{}", source.display());
    }
    // A reranker that is loaded as a reranker gives no warning.
    assert_eq!(
        warnings(|| drop(Reranker::builder(fixture("rerankers/tied")).build().unwrap())),
        ""
    );
}

#[test]
fn warns_about_adapter_that_is_not_read() {
    let adapter = ["adapters/lora/adapter_config.json", "adapters/lora/adapter_model.safetensors"];
    let merged = copy("models/base", &adapter);
    let log = of_embedder(merged.path());
    let expected = format!("`--adapter {}`", merged.path().display());
    assert!(log.contains("the adapter is not read") && log.contains(&expected), "{log}");
    let given = warnings(|| {
        let builder = Embedder::builder(merged.path()).adapter(merged.path());
        drop(builder.build().unwrap());
    });
    assert_eq!(given, "");
    assert_eq!(of_embedder(fixture("adapters/lora")), "");
}

/// A model with a vocabulary of `n_tokens` tokens, whose token embeddings are zeros. `appends`: whether its tokenizer
/// appends an end-of-text token.
fn with_vocabulary(n_tokens: usize, appends: bool) -> TempDir {
    let dir = copy("sentence-transformers/last-token", &[]);
    let edit = |file: &str, edit: &dyn Fn(&mut Value)| {
        fixtures::edit_json(&dir.path().join(file), edit);
    };
    edit("config.json", &|config| config["vocab_size"] = n_tokens.into());
    if !appends {
        edit("tokenizer.json", &|tokenizer| tokenizer["post_processor"] = Value::Null);
    }
    let zeros =
        Tensor { dtype: Dtype::F32, shape: vec![n_tokens, 32], data: vec![0; n_tokens * 32 * 4] };
    fixtures::edit_tensors(&dir.path().join("model.safetensors"), |tensors| {
        tensors.insert("embed_tokens.weight".into(), zeros);
    });
    dir
}

#[test]
fn warns_about_published_model_without_post_processor() {
    let log = of_embedder(with_vocabulary(151_669, false).path());
    assert!(log.contains("tokenizer.json does not append an end-of-text token"), "{log}");
    assert_eq!(of_embedder(with_vocabulary(151_669, true).path()), "");
    // The vocabulary of base models, whose tokenizers never append the token.
    assert_eq!(of_embedder(with_vocabulary(151_936, false).path()), "");
}
