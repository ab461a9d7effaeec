//! `config.json` of a small model.
//!
//! Properties: a configuration is rejected, or the model runs and its vectors are finite. A rejected configuration is
//! rejected by an error that names the file. A file that is not JSON is rejected.

use std::fs;
use std::sync::LazyLock;

use qwen3_embed_testing::checkpoint::RandomCheckpoint;
use qwen3_embed_testing::fixtures;
use serde_json::Value;
use tempfile::TempDir;

use crate::files;

const FILE: &str = "config.json";

/// Checks one `config.json`.
pub fn check(data: &[u8]) {
    static DIR: LazyLock<TempDir> = LazyLock::new(|| files::folder(&files::small()));
    let path = DIR.path().join(FILE);
    fs::write(&path, data).unwrap();
    let is_json = serde_json::from_slice::<Value>(data).is_ok();
    match files::run(DIR.path()) {
        Ok(()) => assert!(is_json, "accepted a file that is not JSON"),
        Err(error) => assert!(error.to_string().contains(name(&DIR)), "{error}"),
    }
}

/// The name of the folder, which every error contains.
fn name(dir: &TempDir) -> &str {
    dir.path().file_name().and_then(|name| name.to_str()).unwrap()
}

/// The configurations of fixtures, and those of two small models.
pub fn seeds() -> Vec<Vec<u8>> {
    let models =
        ["models/base", "models/bidirectional", "models/causal-lm-tied", "rerankers/classifier"];
    let mut seeds =
        models.map(|model| fs::read(fixtures::path(model).join(FILE)).unwrap()).to_vec();
    let with_bias =
        RandomCheckpoint { attention_bias: true, tie_word_embeddings: false, ..files::small() };
    for small in [files::small(), with_bias] {
        seeds.push(fs::read(files::folder(&small).path().join(FILE)).unwrap());
    }
    seeds
}
