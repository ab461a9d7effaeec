//! `model.safetensors` of a small model.
//!
//! Properties: a file is rejected, or the model runs and its vectors are finite. A file that the safetensors crate
//! rejects is rejected.

use std::fs;
use std::sync::LazyLock;

use qwen3_embed_testing::checkpoint::RandomCheckpoint;
use qwen3_embed_testing::fixtures::Dtype;
use safetensors::SafeTensors;
use tempfile::TempDir;

use crate::files;

/// Checks one `model.safetensors`.
pub fn check(data: &[u8]) {
    static DIR: LazyLock<TempDir> = LazyLock::new(|| files::folder(&files::small()));
    fs::write(DIR.path().join("model.safetensors"), data).unwrap();
    let runs = files::run(DIR.path()).is_ok();
    assert!(!runs || SafeTensors::deserialize(data).is_ok(), "accepted a damaged file");
}

/// The weights of the small model in each type, with and without a prefix of their names.
pub fn seeds() -> Vec<Vec<u8>> {
    let kinds = [(Dtype::F16, ""), (Dtype::BF16, "model."), (Dtype::F32, "")];
    let seed = |(dtype, prefix)| {
        let dir = files::folder(&RandomCheckpoint { dtype, prefix, ..files::small() });
        fs::read(dir.path().join("model.safetensors")).unwrap()
    };
    kinds.map(seed).to_vec()
}
