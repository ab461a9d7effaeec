use std::fs;
use std::path::{Path, PathBuf};

use qwen3_embed_text::{Tokenizer, Vocabulary};

use crate::{Error, Result};

/// Where a model's files are: a folder with `config.json`, `tokenizer.json` and the weights, as
/// published, or a file whose name ends in `.gguf`, which holds all of it.
///
/// A `tokenizer.json` beside a GGUF file is read in place of the vocabulary in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    path: PathBuf,
}

impl Source {
    /// The model's folder or GGUF file, which is there.
    pub(crate) fn model(&self) -> Result<&Path> {
        if self.path.is_dir() || (self.is_gguf() && self.path.is_file()) {
            Ok(&self.path)
        } else {
            Err(Error::NoSuchModel { path: self.path.clone() })
        }
    }

    /// The file that holds the tokenizer.
    pub(crate) fn tokenizer(&self) -> PathBuf {
        if self.path.is_dir() {
            return self.path.join("tokenizer.json");
        }
        let beside = self.path.with_file_name("tokenizer.json");
        if beside.is_file() { beside } else { self.path.clone() }
    }

    fn is_gguf(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
    }
}

/// Reads the tokenizer from its file: `tokenizer.json`, or else a GGUF file.
pub(crate) fn read_tokenizer(path: &Path) -> Result<Tokenizer> {
    if path.file_name().is_some_and(|name| name == "tokenizer.json") {
        let json =
            fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
        return Ok(Tokenizer::from_json(&json, path)?);
    }
    let stored = qwen3_embed_model::Vocabulary::read(path)?;
    let vocabulary = Vocabulary {
        model: &stored.model,
        pre_tokenizer: &stored.pre_tokenizer,
        tokens: &stored.tokens,
        token_types: &stored.token_types,
        merges: &stored.merges,
    };
    Ok(Tokenizer::from_vocabulary(&vocabulary, path)?)
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self { path }
    }
}

impl From<&Path> for Source {
    fn from(path: &Path) -> Self {
        Self { path: path.into() }
    }
}

impl From<&str> for Source {
    fn from(path: &str) -> Self {
        Self { path: path.into() }
    }
}

impl From<String> for Source {
    fn from(path: String) -> Self {
        Self { path: path.into() }
    }
}
