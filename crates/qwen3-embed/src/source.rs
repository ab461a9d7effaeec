use std::fs;
use std::path::{Path, PathBuf};

use qwen3_embed_text::Tokenizer;

use crate::{Error, Result};

/// Where a model's files are: a folder with `config.json`, `tokenizer.json` and the weights, as
/// published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    folder: PathBuf,
}

impl Source {
    /// The folder with the model's files.
    pub(crate) fn folder(&self) -> Result<&Path> {
        if self.folder.is_dir() {
            Ok(&self.folder)
        } else {
            Err(Error::NoSuchFolder { path: self.folder.clone() })
        }
    }
}

/// Reads the tokenizer from its file.
pub(crate) fn read_tokenizer(path: &Path) -> Result<Tokenizer> {
    let json = fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    Ok(Tokenizer::from_json(&json, path)?)
}

impl From<PathBuf> for Source {
    fn from(folder: PathBuf) -> Self {
        Self { folder }
    }
}

impl From<&Path> for Source {
    fn from(folder: &Path) -> Self {
        Self { folder: folder.into() }
    }
}

impl From<&str> for Source {
    fn from(folder: &str) -> Self {
        Self { folder: folder.into() }
    }
}

impl From<String> for Source {
    fn from(folder: String) -> Self {
        Self { folder: folder.into() }
    }
}
