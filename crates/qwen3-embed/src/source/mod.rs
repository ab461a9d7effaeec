//! Model sources: a folder, a GGUF file, or a model on the hub. No other module of this crate reads files.

mod adapter;
mod files;
#[cfg(feature = "hub")]
mod headers;
mod id;
mod info;
mod open;
#[cfg(feature = "hub")]
mod selection;

use std::path::{Path, PathBuf};

pub(crate) use files::{CHAT_TEMPLATES, read, read_tokenizer};
pub use info::Info;
pub(crate) use open::Local;
#[cfg(feature = "hub")]
pub(crate) use qwen3_embed_hub::Hub;

/// The place of a model: a folder, a GGUF file, or an id on the hub.
///
/// - A folder contains `config.json`, `tokenizer.json` and the weights, as published, or exactly one GGUF file.
/// - A GGUF file may have any name. It contains the configuration, the weights and the vocabulary. A `tokenizer.json`
///   in the same folder takes precedence over the vocabulary in the file.
/// - `owner/name` is a model on the hub, at its newest commit. `owner/name@revision` is the model at a branch, a tag or
///   a commit. `owner/name:Q8_0` is the GGUF file of that repository whose name ends with `Q8_0`; the full file name is
///   accepted too, and `@revision` may follow. The needed files are downloaded once, into the cache of the `Hub`.
///
/// A string can be a folder, a file or an id; an existing folder or file takes precedence over an id. A [`Path`] is
/// never an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    path: PathBuf,
    /// Whether the source is a string, which may be an id.
    is_text: bool,
}

/// Takes the place of the type `Hub` in a build without the feature `hub`. It has no values.
#[cfg(not(feature = "hub"))]
#[derive(Debug, Clone)]
pub(crate) enum Hub {}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self { path, is_text: false }
    }
}

impl From<&PathBuf> for Source {
    fn from(path: &PathBuf) -> Self {
        path.clone().into()
    }
}

impl From<&Path> for Source {
    fn from(path: &Path) -> Self {
        path.to_path_buf().into()
    }
}

impl From<&str> for Source {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<&String> for Source {
    fn from(text: &String) -> Self {
        text.clone().into()
    }
}

impl From<String> for Source {
    fn from(text: String) -> Self {
        Self { path: text.into(), is_text: true }
    }
}
