//! Warnings about models that load and are probably not what is wanted.
#![allow(clippy::unwrap_used)]

mod log;

use std::fs;
use std::path::{Path, PathBuf};

use log::warnings;
use qwen3_embed::{Embedder, Reranker};
use serde_json::{Value, json};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// A copy of a fixture's folder, with the files of other ones.
fn copy(name: &str, others: &[&str]) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    let files = fs::read_dir(fixture(name)).unwrap().map(|entry| entry.unwrap().path());
    for file in files.chain(others.iter().map(|other| fixture(other))) {
        if file.is_file() {
            fs::write(to.path().join(file.file_name().unwrap()), fs::read(&file).unwrap()).unwrap();
        }
    }
    to
}

fn of_embedder(source: impl AsRef<Path>) -> String {
    warnings(|| drop(Embedder::builder(source.as_ref()).build().unwrap()))
}

#[test]
fn a_model_that_looks_like_a_reranker_is_warned_of() {
    let causal_lm = "it is a causal language model without a modules.json";
    let named = "its name contains `rerank`";
    let gguf = tempfile::tempdir().unwrap();
    let gguf = gguf.path().join("Qwen3-Reranker.gguf");
    fs::create_dir_all(gguf.parent().unwrap()).unwrap();
    fs::write(&gguf, fs::read(fixture("models/gguf-q8-0/model.gguf")).unwrap()).unwrap();
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
    // Where it is used as one, it is none of these.
    assert_eq!(
        warnings(|| drop(Reranker::builder(fixture("rerankers/tied")).build().unwrap())),
        ""
    );
}

#[test]
fn an_adapter_that_is_not_read_is_warned_of() {
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

/// A model with a vocabulary of this size, whose embeddings are zeros.
fn with_vocabulary(n_tokens: usize, appends: bool) -> TempDir {
    let dir = copy("sentence-transformers/last-token", &[]);
    let folder = fixture("sentence-transformers/last-token/1_Pooling/config.json");
    fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    fs::write(dir.path().join("1_Pooling/config.json"), fs::read(folder).unwrap()).unwrap();
    let edit = |file: &str, edit: &dyn Fn(&mut Value)| {
        let path = dir.path().join(file);
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut value);
        fs::write(path, value.to_string()).unwrap();
    };
    edit("config.json", &|config| config["vocab_size"] = n_tokens.into());
    if !appends {
        edit("tokenizer.json", &|tokenizer| tokenizer["post_processor"] = Value::Null);
    }
    // The embeddings become the last tensor, and the file as long as they are.
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let (length, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let (n_bytes, width) = (data.len(), 32);
    header["embed_tokens.weight"]["shape"] = json!([n_tokens, width]);
    header["embed_tokens.weight"]["data_offsets"] =
        json!([n_bytes, n_bytes + n_tokens * width * 4]);
    // Every byte has to belong to a tensor: what the embeddings were is a buffer that is not read.
    let old: Value = serde_json::from_slice(&rest[..rest.len() - n_bytes]).unwrap();
    let range = old["embed_tokens.weight"]["data_offsets"].clone();
    let n = (range[1].as_u64().unwrap() - range[0].as_u64().unwrap()) / 4;
    header["rotary_emb.inv_freq"] = json!({"dtype": "F32", "shape": [n], "data_offsets": range});
    let header = header.to_string();
    let zeros = vec![0; n_tokens * width * 4];
    let length = (header.len() as u64).to_le_bytes();
    fs::write(&path, [&length, header.as_bytes(), data, &zeros].concat()).unwrap();
    dir
}

#[test]
fn a_published_model_without_its_template_is_warned_of() {
    let log = of_embedder(with_vocabulary(151_669, false).path());
    assert!(log.contains("tokenizer.json does not append an end-of-text token"), "{log}");
    assert_eq!(of_embedder(with_vocabulary(151_669, true).path()), "");
    // That of a base model, whose tokenizer has never appended one.
    assert_eq!(of_embedder(with_vocabulary(151_936, false).path()), "");
}
