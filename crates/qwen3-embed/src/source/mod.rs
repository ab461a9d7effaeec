//! Model sources: a folder, a GGUF file, files in memory, or a model on the hub. No other module of this crate reads
//! files by their paths.

mod adapter;
mod files;
#[cfg(feature = "hub")]
mod headers;
mod id;
mod info;
mod open;
mod place;
#[cfg(feature = "hub")]
mod selection;

use std::fmt;
use std::path::{Path, PathBuf};

pub(crate) use files::{CHAT_TEMPLATES, read_tokenizer};
pub use info::Info;
pub(crate) use open::Local;
#[cfg(feature = "hub")]
pub(crate) use qwen3_embed_hub::Hub;
use qwen3_embed_model::Folder;

/// The place of a model: a folder, a GGUF file, an id on the hub, or files in memory.
///
/// - A folder contains `config.json`, `tokenizer.json` and the weights, as published, or exactly one GGUF file.
/// - A GGUF file may have any name. It contains the configuration, the weights and the vocabulary. A `tokenizer.json`
///   in the same folder takes precedence over the vocabulary in the file.
/// - `owner/name` is a model on the hub, at its newest commit. `owner/name@revision` is the model at a branch, a tag or
///   a commit. `owner/name:Q8_0` is the GGUF file of that repository whose name ends with `Q8_0`; the full file name is
///   accepted too, and `@revision` may follow. The needed files are downloaded once, into the cache of the `Hub`.
///
/// A string can be a folder, a file or an id; an existing folder or file takes precedence over an id. A [`Path`] is
/// never an id. [`from_files`](Self::from_files) makes a source of files in memory
#[cfg_attr(feature = "demo-model", doc = ", and [`demo`](Self::demo) is a small model in memory.")]
#[cfg_attr(not(feature = "demo-model"), doc = ".")]
///
/// A source is displayed as the path, the id, or the name of the files in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// A folder or a file.
    Path(PathBuf),
    /// A folder, a file or an id.
    Text(String),
    InMemory(Folder),
}

/// Takes the place of the type `Hub` in a build without the feature `hub`. It has no values.
#[cfg(not(feature = "hub"))]
#[derive(Debug, Clone)]
pub(crate) enum Hub {}

impl Source {
    /// A model whose files are in memory, such as a model that is part of the program. `files` are the files of a model's
    /// folder: for each file its path relative to the folder, and its contents. Errors and warnings contain `name` as
    /// the path of the folder.
    ///
    /// The files are those of a folder with safetensors files: `config.json`, `tokenizer.json`, the weights in one file
    /// or several, and the files of sentence-transformers if there are any. GGUF files cannot be in memory. Weights are
    /// packed into memory of their own, as those of a folder, but token embeddings are read where they are. The contents
    /// may begin at any address.
    ///
    /// # Examples
    ///
    /// A program that contains a model:
    ///
    /// ```
    /// use qwen3_embed::{Embedder, Source};
    ///
    /// static FILES: &[(&str, &[u8])] = &[
    ///     ("config.json", include_bytes!("../../../../fixtures/models/base/config.json")),
    ///     ("model.safetensors", include_bytes!("../../../../fixtures/models/base/model.safetensors")),
    ///     ("tokenizer.json", include_bytes!("../../../../fixtures/models/base/tokenizer.json")),
    /// ];
    ///
    /// let embedder = Embedder::builder(Source::from_files("my-model", FILES)).build()?;
    /// # assert_eq!(embedder.max_dimensions(), 64);
    /// # Ok::<(), qwen3_embed::Error>(())
    /// ```
    pub fn from_files(name: &str, files: &'static [(&'static str, &'static [u8])]) -> Self {
        Self(Kind::InMemory(Folder::in_memory(name, files)))
    }

    /// `qwen3-embed-demo`: a small embedding model for Chinese, English, Japanese and Korean, which the feature
    /// `demo-model` adds to the program. It is for examples, and for tests that must not use the network. It does not
    /// replace Qwen3-Embedding: it has 6 million parameters.
    ///
    /// # Examples
    ///
    /// ```
    /// use qwen3_embed::{Embedder, Source};
    ///
    /// let embedder = Embedder::builder(Source::demo()).build()?;
    /// println!("{} dimensions", embedder.max_dimensions());
    /// # assert_eq!(Source::demo().to_string(), "qwen3-embed-demo");
    /// # Ok::<(), qwen3_embed::Error>(())
    /// ```
    #[cfg(feature = "demo-model")]
    pub fn demo() -> Self {
        Self::from_files(qwen3_embed_demo::NAME, qwen3_embed_demo::FILES)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Path(path) => path.display().fmt(f),
            Kind::Text(text) => text.fmt(f),
            Kind::InMemory(folder) => folder.path().display().fmt(f),
        }
    }
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self(Kind::Path(path))
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
        Self(Kind::Text(text))
    }
}
