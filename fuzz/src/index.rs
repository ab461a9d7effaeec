//! `model.safetensors.index.json` of a small model with two shards.
//!
//! Properties: an index is rejected, or it is JSON, lists only files in the folder, and the vectors are finite.

use std::fs;
use std::path::{Component, Path};
use std::sync::LazyLock;

use qwen3_embed_testing::checkpoint::RandomCheckpoint;
use serde_json::Value;
use tempfile::TempDir;

use crate::files;

const INDEX: &str = "model.safetensors.index.json";

fn folder() -> TempDir {
    let dir = files::folder(&RandomCheckpoint { n_shards: 2, ..files::small() });
    // A file that an index must not reach with `../`.
    let inner = dir.path().join("model");
    fs::create_dir(&inner).unwrap();
    for entry in fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
        if entry.path().is_file() {
            fs::copy(entry.path(), inner.join(entry.file_name())).unwrap();
        }
    }
    dir
}

/// Checks one index.
pub fn check(data: &[u8]) {
    static DIR: LazyLock<TempDir> = LazyLock::new(folder);
    let model = DIR.path().join("model");
    fs::write(model.join(INDEX), data).unwrap();
    if files::run(&model).is_err() {
        return;
    }
    let index: Value = serde_json::from_slice(data).expect("accepted a file that is not JSON");
    for file in index["weight_map"].as_object().expect("accepted an index without a map").values() {
        let file = Path::new(file.as_str().expect("accepted a file name that is not a string"));
        let is_inside =
            file.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        assert!(is_inside, "read {}", file.display());
    }
}

/// The index of the model, and one that names a file outside of the folder.
pub fn seeds() -> Vec<Vec<u8>> {
    let index = fs::read_to_string(folder().path().join(INDEX)).unwrap();
    let outside = index.replace("model-00001", "../model-00001");
    [index, outside].map(String::into_bytes).to_vec()
}
