//! A small checkpoint, and a folder in which a target writes the files of one input.

use std::path::{Path, PathBuf};
use std::{env, fs};

use qwen3_embed_model::{Checkpoint, Error, LoadOptions, Model, Precision, Summary};
use qwen3_embed_testing::checkpoint::RandomCheckpoint;
use qwen3_embed_testing::fixtures::Dtype;
use tempfile::TempDir;

/// A model with one layer whose files have a few kilobytes.
pub(crate) fn small() -> RandomCheckpoint {
    RandomCheckpoint {
        hidden_size: 8,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 4,
        vocab_size: 16,
        max_position_embeddings: 64,
        dtype: Dtype::F16,
        deviation: 0.3,
        norm_spread: 0.1,
        ..RandomCheckpoint::default()
    }
}

/// The files of a checkpoint in a temporary folder.
pub(crate) fn folder(checkpoint: &RandomCheckpoint) -> TempDir {
    let written = checkpoint.write(1);
    let dir = tempfile::tempdir_in(memory()).unwrap();
    for entry in fs::read_dir(written.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

/// A folder for temporary files, which is in memory if the system has such a folder.
pub(crate) fn memory() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { env::temp_dir() }
}

/// Opens, describes, loads and runs the model at `path`.
///
/// Every step may fail, but a vector that is returned is finite. An error of the last step is not returned.
pub(crate) fn run(path: &Path) -> Result<(), Error> {
    let checkpoint = Checkpoint::open(path)?;
    let summary = Summary::of(&checkpoint)?;
    for precision in Precision::ALL {
        let _ = summary.memory(precision, usize::MAX).total();
    }
    let _ = checkpoint.tokenizer();
    let model = Model::load_with(&checkpoint, &LoadOptions::default())?;
    let last = model.config().vocab_size as u32 - 1;
    // Damaged weights give vectors that are not finite, and a configuration may allow one token only.
    let Ok(vectors) = model.forward(&[vec![0, last], vec![last]]) else { return Ok(()) };
    assert_eq!(vectors.len(), 2 * model.embedding_size());
    assert!(vectors.iter().all(|value| value.is_finite()), "{vectors:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_model_is_valid() {
        for n_shards in [1, 2] {
            let dir = folder(&RandomCheckpoint { n_shards, ..small() });
            run(dir.path()).unwrap();
        }
    }
}
