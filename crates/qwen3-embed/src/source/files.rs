//! The names of a model's files, and functions that read single files.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use qwen3_embed_model::{Checkpoint, StoredTokenizer};
use qwen3_embed_text::{Tokenizer, Vocabulary};

use crate::{Error, Result};

/// The settings of a LoRA adapter.
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// The files that may contain the chat template, in the order in which they are read.
pub(crate) const CHAT_TEMPLATES: [&str; 2] = ["chat_template.jinja", "tokenizer_config.json"];

/// The files that contain or list a model's weights. A folder with weights has one of these two files.
const MODEL_WEIGHTS: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];

/// Whether the name of a file ends with `.gguf`, in upper or lower case.
pub(super) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Whether a file begins with the magic number of a GGUF file. Other programs store GGUF files under names without an
/// extension.
pub(super) fn begins_as_gguf(path: &Path) -> Result<bool> {
    let mut magic = [0; 4];
    let begin = |mut file: File| match file.read_exact(&mut magic) {
        Ok(()) => Ok(magic == *b"GGUF"),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    };
    let begun = File::open(path).and_then(begin);
    begun.map_err(|source| Error::Io { path: path.to_path_buf(), source })
}

/// Whether a folder contains the weights of a model.
pub(super) fn has_weights(dir: &Path) -> bool {
    MODEL_WEIGHTS.iter().any(|file| dir.join(file).is_file())
}

/// Whether a file is a pickle file with weights, judged by its name.
pub(super) fn is_pickle(name: &str) -> bool {
    let (stem, extension) = name.rsplit_once('.').unwrap_or_default();
    let is_weights = ["model", "adapter", "weights"].iter().any(|word| stem.contains(word));
    is_weights && ["bin", "pt", "pth", "ckpt", "pkl"].contains(&extension)
}

/// Reads the tokenizer of a checkpoint. Returns the tokenizer and the path of its file.
pub(crate) fn read_tokenizer(checkpoint: &Checkpoint) -> Result<(Tokenizer, PathBuf)> {
    match checkpoint.tokenizer()? {
        StoredTokenizer::Json { path, contents } => {
            Ok((Tokenizer::from_json(&contents, &path)?, path))
        }
        StoredTokenizer::Gguf(stored) => {
            let vocabulary = Vocabulary {
                model: &stored.model,
                pre_tokenizer: &stored.pre_tokenizer,
                tokens: &stored.tokens,
                token_types: &stored.token_types,
                merges: &stored.merges,
            };
            let path = checkpoint.path().to_path_buf();
            Ok((Tokenizer::from_vocabulary(&vocabulary, &path)?, path))
        }
    }
}
